"""Why each row of a plan is there: the ladder that a total has bought, and a line a row (`plan-sweep ... explain=true`)."""

from __future__ import annotations

import textwrap

from sweeps.columns import EVAL, PlanRow
from sweeps.plan import Plan
from sweeps.spend import Ladder, expected_optimum
from sweeps.study import Length, Matching, StudyConfig
from sweeps.text import WIDTH, aligned, scientific, short, wrapped


def ladder_text(plan: Plan) -> str:
    """The budgets that the study's total pays for, what is left of it, and the same study written by hand."""
    ladder, spend = plan.ladder, plan.study.spend
    assert ladder is not None, "no total has chosen this plan's lengths"
    table = [["budget", "optimum", "sizes", spend.currency, "share %"]]
    for rung in ladder.rungs:
        share = f"{100 * rung.cost / ladder.total:.1f}"
        table.append([scientific(rung.budget), short(rung.optimum), " ".join(rung.sizes), scientific(rung.cost), share])
    left = f"{scientific(ladder.left)} ({100 * ladder.left / ladder.total:.1f}%) of {scientific(ladder.total)} are left"
    by_hand = f"budgets=[{','.join(f'{rung.budget:g}' for rung in ladder.rungs)}] spend.sizes_per_budget={spend.window}"
    return "\n".join(
        [
            wrapped(
                "", f"what {ladder.total:.4g} {spend.currency} pay for ({left}; the last budget is what fits are tested on):"
            ),
            aligned(table, left={2}),
            wrapped("", f"the same by hand: {by_hand}"),
        ]
    )


def explain_text(plan: Plan) -> str:
    """A line a row, or as many as fit into WIDTH: which budget, why this size, what the arm is matched to."""
    names = aligned([["run", "arm", "size", ""], *([row.run_id, row.arm, row.size, ""] for row in plan.rows)], left={0, 1, 2})
    places = names.splitlines()
    indent = max(map(len, places)) + 2
    because = ["because", *(_because(plan, row) for row in plan.rows)]
    return "\n".join(
        textwrap.fill(reason, WIDTH, initial_indent=place.ljust(indent), subsequent_indent=" " * (indent + 2))
        for place, reason in zip(places, because, strict=True)
    )


def _because(plan: Plan, row: PlanRow) -> str:
    study = plan.study
    if row.kind != "pretrain":
        what = row.match_group.rpartition(f" {EVAL} ")[2] if row.kind == EVAL else ""
        return f"{row.kind} {what} of run {row.parent_run_id}".replace("  ", " ")
    reasons = [_length_reason(study, row, plan.ladder), *_size_reason(study, row)]
    if row.arm == study.of_arm(row.arm).reference_arm:
        reasons.append("the reference of its group")
    else:
        what = {Matching.FLOP: "FLOPs", Matching.UNIT: "steps and units", Matching.DATA: "tokens"}[study.matching]
        reasons.append(f"matched to {study.of_arm(row.arm).reference_arm} in {what}")
    if len(study.seeds) > 1:
        reasons.append(f"seed {row.seed} of {len(study.seeds)}")
    return "; ".join(reasons)


def _length_reason(study: StudyConfig, row: PlanRow, ladder: Ladder | None) -> str:
    named = row.match_group.split(" ")[0]
    if ladder is None:
        return named
    budgets = [rung.budget for rung in ladder.rungs]
    place = min(range(len(budgets)), key=lambda i: abs(budgets[i] - row.flops_budget))
    last = ", the one that fits are tested on" if place == len(budgets) - 1 else ""
    return f"rung {place + 1} of {len(budgets)}{last}"


def _size_reason(study: StudyConfig, row: PlanRow) -> list[str]:
    if study.length is not Length.BUDGETS:
        return []
    ratio = row.num_params / expected_optimum(row.flops_budget, study.spend.tokens_per_param)
    return [f"{ratio:.2g} x the expected optimum"]
