"""A proposal as text and as JSON. Not here: what is proposed (`sweeps.propose`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from sweeps.plan import StoredPlan
from sweeps.propose import Proposal
from sweeps.text import aligned, scientific, wrapped


def proposal_text(stored: StoredPlan, proposal: Proposal) -> str:
    """What `plan-sweep propose` prints, within 100 columns."""
    table = [["budget", "size", "seed", "arms", proposal.currency, "worth", "because"]]
    for one in proposal.chosen:
        place, worth = one.place, "-" if one.worth is None else f"{one.worth:.1e}"
        cells = [scientific(place.budget), place.size, str(place.seed), str(len(one.rows)), f"{one.cost:.3g}", worth, one.why]
        table.append(cells)
    head = wrapped(
        "",
        f"given the results in {stored.folder} and {proposal.total:.3g} {proposal.currency}, run these ({proposal.left:.3g} are "
        "left; worth: variance saved in power.json's quantities, a FLOP):",
    )
    lines = [head, aligned(table, left={1, 6}), wrapped("optimum: ", proposal.optimum)]
    if any(one.planned for one in proposal.chosen):
        planned = sorted(row.run_id for one in proposal.chosen if one.planned for row in one.rows)
        lines.append(wrapped("planned already: ", f"submit-sweep submit {stored.folder} --run {' --run '.join(planned)}"))
    new = [one for one in proposal.chosen if not one.planned]
    groups: dict[tuple[float, int, tuple[str, ...]], list[str]] = {}
    for one in new:
        groups.setdefault((one.place.budget, one.place.seed, tuple(row.arm for row in one.rows)), []).append(one.place.size)
    for (budget, seed, arms), sizes in groups.items():
        given = f"budgets=[{budget:g}] sizes=[{','.join(sizes)}] seeds=[{seed}] arms=[{','.join(arms)}] arm_sizes={{}}"
        lines.append(wrapped("to plan: ", f"plan-sweep study={stored.study.name} {given} spend.sizes_per_budget=0 out=..."))
    if new:
        lines.append(wrapped("", "(with this plan's other overrides; a run's id does not depend on what it is planned beside)"))
    return "\n".join([*lines, *(wrapped("note: ", note) for note in proposal.notes)])


def proposal_json(proposal: Proposal) -> dict[str, Any]:
    return {
        "total": proposal.total,
        "currency": proposal.currency,
        "left": proposal.left,
        "optimum": proposal.optimum,
        "notes": list(proposal.notes),
        "proposed": [
            {
                **dataclasses.asdict(one.place),
                "planned": one.planned,
                "why": one.why,
                "worth": one.worth,
                "cost": one.cost,
                "rows": [dataclasses.asdict(row) for row in one.rows],
            }
            for one in proposal.chosen
        ],
    }
