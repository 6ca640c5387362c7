"""A plan as text that reads well at 100 columns: the table, totals, what is matched and what is not, assumptions, warnings.

Strings in, strings out; printing is the command's (`sweeps.cli`). Not here: any figure's computation beyond ratios.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lst.assumptions import ASSUMPTIONS, Assumption
from lst.config import ARM_PATCHING, Arm, Patching
from lst.ladder import BaselineMatch, named_count
from sweeps.accounting import accounting_text, speech_text
from sweeps.columns import EVAL, FINETUNE, PlanRow
from sweeps.contradictions import contradictions
from sweeps.plan import Plan
from sweeps.recipe import recipe_text
from sweeps.study import ContextMatch, Matching, StudyConfig
from sweeps.text import WIDTH, aligned, minutes, scientific, short, within, wrapped
from sweeps.variants import arm_of

REASONS_SHOWN = 10  # reasons of refused rows that are printed; all of them are in plan.csv

LEFT_OUT = ("batch", "params", "gap %")
"""Columns that a table of runs does without, one after another, where long names would pass WIDTH; plan.csv has them."""

PAPER_STATISTICS = "paper"  # sweeps/conf/statistics

MATCHED = {
    Matching.FLOP: "true training FLOPs (lst/flops.py: local modules and head included)",
    Matching.UNIT: "steps and units (the paper's compute-controlled comparison)",
    Matching.DATA: "tokens (the paper's data-controlled comparison)",
}
_ALWAYS = {"compute", "mixture", "epochs", "output head"}
_LOCAL = {
    "local modules' shape",
    "local modules on text",
    "patch query pooling",
    "queries per patch",
    "decoder input",
    "decoder cross-attention",
    "cross-attention positions",
    "cut patches",
}
_ALIGNED = {"silence", "aligned unit"}


def describe(plan: Plan, cores: int) -> str:
    """Everything that `plan-sweep` prints of a plan, but for where it was written."""
    from sweeps.explain import ladder_text
    from sweeps.show_price import price_text, savings_text

    parts = [
        _title(plan),
        *([ladder_text(plan)] if plan.ladder else []),
        run_table(plan.rows),
        price_text(plan.rows, plan.totals, plan.wall_minutes(cores), cores),
        *([trunks] if (trunks := savings_text(plan.rows, plan.study)) else []),
        matching_text(plan.study, plan.rows),
        accounting_text(plan.study, plan.rows),
        *([speech_text(plan.stated)] if plan.stated else []),
        wrapped("recipe: ", recipe_text(plan.study.recipe, len(plan.study.arms))),
        assumptions_text(plan.study),
        *([refusals_text(plan.rows)] if plan.totals.refused else []),
        *[wrapped("note: ", note) for note in plan.study.notes],
        *[wrapped(f"the paper's gap {found.gap}: ", found.text) for found in contradictions(plan)],
        *[wrapped("warning: ", warning) for warning in plan.warnings],
    ]
    return "\n\n".join(parts)


def _title(plan: Plan) -> str:
    title = f"study {plan.study.name}: {plan.totals.rows} runs of data {plan.study.data}"
    if plan.stated is None:
        return title
    return wrapped(
        "",
        f"{title}, which is no data set: planned from stated statistics ({plan.stated.source}; {plan.stated.data_id}), "
        "not measured. To run it, plan again with data=FOLDER",
    )


def run_table(rows: Sequence[PlanRow]) -> str:
    """A line a run."""
    header = ["budget", "size", "arm", "params", "steps", "batch", "tokens", "FLOPs", "gap %", "minutes", "status"]
    seeds = len({row.seed for row in rows}) > 1
    lines = [
        [
            EVAL if row.kind == EVAL else scientific(row.flops_budget),
            row.size,
            row.arm,
            short(row.num_params),
            f"{row.steps:,}",
            short(row.batch_units),
            short(row.tokens),
            scientific(row.planned_flops or row.planned_spent_flops),
            f"{100 * row.gap:+.2f}",
            minutes(row.est_minutes),
            row.status,
        ]
        for row in rows
    ]
    if seeds:
        header.insert(3, "seed")
        for line, row in zip(lines, rows, strict=True):
            line.insert(3, str(row.seed))
    table = within(WIDTH, [header, *lines], LEFT_OUT)
    return aligned(table, left={1, 2, len(table[0]) - 1})


def matching_text(study: StudyConfig, rows: Sequence[PlanRow]) -> str:
    """What is equal inside a match group, and for each arm what is not, as ratios to the reference arm."""
    what = f"{MATCHED[study.matching]}; in a sequence: {_context(study)}"
    told = _ratios_text(study, [row for row in rows if row.kind == "pretrain"], what)
    tuned = [row for row in rows if row.kind == FINETUNE]
    return "\n\n".join([told, *([_ratios_text(study, tuned, "the steps of fine-tuning, and so its units")] if tuned else [])])


def _ratios_text(study: StudyConfig, rows: Sequence[PlanRow], what: str) -> str:
    lines = [wrapped("matched: ", f"{what}. As ratios to {study.reference_arm}, the lowest and the highest:")]
    table = [["arm", "FLOPs", "units", "tokens", "text", "speech", "epochs", "passes"]]
    for arm in study.ordered_arms:
        pairs = _pairs(rows, arm, study.of_arm(arm).reference_arm)
        mine = [row for row in rows if row.arm == arm]
        if not mine:
            continue
        ratios = [_ratio(pairs, name) for name in ("units", "tokens", "text_tokens", "speech_tokens")]
        ratios.insert(0, _ratio(pairs, "planned_flops", digits=3))
        table.append([arm, *ratios, _range([r.speech_epochs for r in mine]), _range([r.corpus_passes for r in mine])])
    foot = "(epochs: speech tokens kept / unique; passes over the spoken documents, of which each keeps a share as speech)"
    cut = sum(row.final_batch_sequences > 0 for row in rows)
    if cut:
        foot += f"; {cut} of {len(rows)} runs end with a smaller batch, cut to land on what is matched"
    return "\n".join([*lines, aligned(table, left={0}), wrapped("", foot)])


def assumptions_touched(study: StudyConfig) -> tuple[Assumption, ...]:
    """The named assumptions that the study's runs rest on, in the table's order."""
    names = set(_ALWAYS)
    names.add("baseline parameters" if study.baseline_match == BaselineMatch.LST_PARAMS else "baseline shape")
    if any(named_count(size) is not None for size in study.sizes):
        names.add("size names")
    arms = {arm_of(arm) for arm in study.arms}
    kinds = {ARM_PATCHING[arm] for arm in arms}
    if Arm.BPE in arms:
        names |= {"speech pieces"}
    if kinds - {Patching.TOKEN}:
        names |= _LOCAL
    if kinds & {Patching.ALIGNED, Patching.MIXED, Patching.CURRICULUM}:
        names |= _ALIGNED
        names |= {"merged silence"} if study.patching.silence == "merged" else set()
        names |= {"piece times"} if study.patching.aligned_unit == "bpe" else set()
        names |= {"alignment noise"} if any(study.of_arm(arm).patching.boundary_noise_ms[1] for arm in study.arms) else set()
    if kinds & {Patching.MIXED, Patching.CURRICULUM}:
        names.add("patching draw")
    if Patching.MIXED in kinds:
        names.add("mixed share")
    if Patching.CURRICULUM in kinds:
        names.add("curriculum")
    if study.context_match is ContextMatch.UNITS:
        names.add("context")
    if study.evaluation.story_items:
        names.add("ending scores")
    if study.data == PAPER_STATISTICS:
        names |= {"document lengths", "mean patch lengths"}
    if study.after.kind == "finetune":
        names.add("fine-tuning")
    return tuple(assumption for assumption in ASSUMPTIONS if assumption.name in names)


def assumptions_text(study: StudyConfig) -> str:
    names = "; ".join(f"{a.name}: {_as_studied(study, a.value)}" for a in assumptions_touched(study))
    return wrapped("assumed: ", names)


def _as_studied(study: StudyConfig, text: str) -> str:
    """An assumption's text, with the study's values of the options that it names where they are not the defaults."""
    changed, named = [], []
    for section, key in re.findall(r"\b(model|patching)\.(\w+)", text):
        options = getattr(study, section)
        value = getattr(options, key)
        rungs = key == "queries_per_patch" and not value
        if value != getattr(type(options)(), key) and not rungs:
            changed.append(f"{section}.{key} = {str(value).lower() if isinstance(value, bool) else value}")
            named.append(f"{section}.{key} = " in text)
    if not changed:
        return text
    return f"{', '.join(changed)} (by default: {text})" if all(named) else f"{text}; here {', '.join(changed)}"


def refusals_text(rows: Sequence[PlanRow], label: str = "refused: ") -> str:
    refused = [row for row in rows if not row.admitted]
    reasons: dict[str, list[PlanRow]] = {}
    for row in refused:
        reasons.setdefault(row.reason, []).append(row)
    lines = []
    for reason, same in list(reasons.items())[:REASONS_SHOWN]:
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        lines.append(wrapped(label, f"{same[0].arm} {same[0].size} at {scientific(same[0].flops_budget)}{more}: {reason}"))
    left = len(refused) - sum(map(len, list(reasons.values())[:REASONS_SHOWN]))
    return "\n".join(lines + ([f"{label}and {left} more (plan.csv, column reason)"] if left else []))


def _context(study: StudyConfig) -> str:
    if study.context_match is ContextMatch.UNITS:
        return f"{study.seq_len_units:,} units, so patched arms see more tokens"
    return f"tokens as {study.seq_len_units:,} units of {study.reference_arm} hold, so patched arms have fewer units"


def _pairs(rows: Sequence[PlanRow], arm: str, reference: str) -> list[tuple[PlanRow, PlanRow]]:
    """Rows of `arm` with the reference's row of their match group, where there is one."""
    references = {row.match_group: row for row in rows if row.arm == reference}
    return [(row, references[row.match_group]) for row in rows if row.arm == arm and row.match_group in references]


def _ratio(pairs: Sequence[tuple[PlanRow, PlanRow]], column: str, digits: int = 2) -> str:
    ratios = [getattr(row, column) / getattr(reference, column) for row, reference in pairs if getattr(reference, column)]
    return _range(ratios, digits) if ratios else "-"


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
