"""A plan as text that reads well at 100 columns: the table, totals, what is matched and what is not, assumptions, warnings.

Strings in, strings out; printing is the command's (`sweeps.cli`). Not here: any figure's computation beyond ratios.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from lst.assumptions import ASSUMPTIONS, Assumption
from lst.config import ARM_PATCHING, Arm, Patching
from lst.ladder import BaselineMatch, named_count
from sweeps.columns import PlanRow
from sweeps.plan import Plan
from sweeps.study import ContextMatch, Matching, StudyConfig

WIDTH = 100  # columns
REASONS_SHOWN = 10  # refused rows whose reasons are printed; all of them are in plan.csv

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
    from sweeps.show_price import price_text

    parts = [
        f"study {plan.study.name}: {plan.totals.rows} runs of data {plan.study.data}",
        run_table(plan.rows),
        price_text(plan.rows, plan.totals, plan.wall_minutes(cores), cores),
        matching_text(plan.study, plan.rows),
        assumptions_text(plan.study),
        *([refusals_text(plan.rows)] if plan.totals.refused else []),
        *[wrapped("note: ", note) for note in plan.study.notes],
        *[wrapped("warning: ", warning) for warning in plan.warnings],
    ]
    return "\n\n".join(parts)


def run_table(rows: Sequence[PlanRow]) -> str:
    """A line a run."""
    header = ["budget", "size", "arm", "params", "steps", "batch", "tokens", "FLOPs", "gap %", "minutes", "status"]
    seeds = len({row.seed for row in rows}) > 1
    lines = [
        [
            scientific(row.flops_budget),
            row.size,
            row.arm,
            short(row.num_params),
            f"{row.steps:,}",
            short(row.batch_units),
            short(row.tokens),
            scientific(row.planned_flops),
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
    return aligned([header, *lines], left={1, 2, len(header) - 1})


def matching_text(study: StudyConfig, rows: Sequence[PlanRow]) -> str:
    """What is equal inside a match group, and for each arm what is not, as ratios to the reference arm."""
    what = f"{MATCHED[study.matching]}; in a sequence: {_context(study)}"
    lines = [wrapped("matched: ", f"{what}. As ratios to {study.reference_arm}, the lowest and the highest:")]
    table = [["arm", "FLOPs", "units", "tokens", "text", "speech", "epochs", "passes"]]
    for arm in [arm for arm in Arm if arm in study.arms]:
        pairs = _pairs(rows, arm, study.reference_arm)
        mine = [row for row in rows if row.arm == arm]
        if not mine:
            continue
        ratios = [_ratio(pairs, name) for name in ("units", "tokens", "text_tokens", "speech_tokens")]
        ratios.insert(0, _ratio(pairs, "planned_flops", digits=3))
        table.append([arm.value, *ratios, _range([r.speech_epochs for r in mine]), _range([r.corpus_passes for r in mine])])
    foot = "(epochs: speech tokens kept / unique; passes over the spoken documents, of which each keeps a share as speech)"
    return "\n".join([*lines, aligned(table, left={0}), wrapped("", foot)])


def assumptions_touched(study: StudyConfig) -> tuple[Assumption, ...]:
    """The named assumptions that the study's runs rest on, in the table's order."""
    names = set(_ALWAYS)
    names.add("baseline parameters" if study.baseline_match == BaselineMatch.LST_PARAMS else "baseline shape")
    if any(named_count(size) is not None for size in study.sizes):
        names.add("size names")
    kinds = {ARM_PATCHING[Arm(arm)] for arm in study.arms}
    if Arm.BPE in study.arms:
        names |= {"speech pieces"}
    if kinds - {Patching.TOKEN}:
        names |= _LOCAL
    if kinds & {Patching.ALIGNED, Patching.MIXED, Patching.CURRICULUM}:
        names |= _ALIGNED
        names |= {"merged silence"} if study.patching.silence == "merged" else set()
        names |= {"piece times"} if study.patching.aligned_unit == "bpe" else set()
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
    lines = [
        wrapped(label, f"{row.arm} {row.size} at {scientific(row.flops_budget)}: {row.reason}") for row in refused[:REASONS_SHOWN]
    ]
    more = len(refused) - REASONS_SHOWN
    return "\n".join(lines + ([f"{label}and {more} more (plan.csv, column reason)"] if more > 0 else []))


def wrapped(prefix: str, text: str) -> str:
    return textwrap.fill(prefix + text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def aligned(lines: list[list[str]], *, left: set[int]) -> str:
    """Columns padded to their widest cell; those in `left` to the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def scientific(value: float) -> str:
    """1.00e11"""
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


def short(value: float) -> str:
    """773k, 1.24M, 325B"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.3g}"


def minutes(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


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
