"""The report's tables: columns with units and formatting, rows of plain values; written as HTML cells, CSV and LaTeX.

A CSV file holds the values as they are (full precision), the page and LaTeX the same values formatted for reading. Which
numbers a table has is decided here; what they say is `answer`'s.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lst.assumptions import ASSUMPTIONS
from reports import numbers
from reports.diagnostics import group_shares
from reports.numbers import Formatter, fixed, general, interval, level_name, listed, percent, scientific, short, text
from reports.stories import StoryScore
from reports.study import BASELINE, GROUPS, TARGETS, Study, records

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ",
}  # fmt: skip
_LATEX_SYMBOLS = {"×": r"$\times$", "−": r"$-$", "→": r"$\to$", "—": "---", "α": r"$\alpha$", "β": r"$\beta$"} | {
    sign: f"$^{{{plain}}}$" for sign, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True)
}


@dataclass(frozen=True)
class Column:
    """`key` in the rows, `label` with the unit, and how a value is shown."""

    key: str
    label: str
    show: Formatter = text
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the page. `name` is its file name."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = field(default=())

    def cells(self) -> list[list[str]]:
        """The rows as shown, unescaped."""
        return [[column.show(row.get(column.key)) for column in self.columns] for row in self.rows]

    def csv(self) -> str:
        """The values in full, a header of keys."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.key for column in self.columns])
        for row in self.rows:
            writer.writerow([_plain(row.get(column.key)) for column in self.columns])
        return out.getvalue()

    def latex(self) -> str:
        """A booktabs table with the formatted values, everything escaped."""
        align = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            f"\\caption{{{latex_escape(self.caption)}}}",
            f"\\begin{{tabular}}{{{align}}}",
            "\\toprule",
            " & ".join(latex_escape(column.label) for column in self.columns) + r" \\",
            "\\midrule",
            *(" & ".join(latex_escape(cell) for cell in row) + r" \\" for row in self.cells()),
            "\\bottomrule",
            "\\end{tabular}",
            *(rf"\par\footnotesize {latex_escape(note)}" for note in self.notes),
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"


def latex_escape(value: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(c) or _LATEX_SYMBOLS.get(c, c) for c in value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "; ".join(str(v) for v in value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def as_rows(table: pd.DataFrame) -> tuple[dict[str, Any], ...]:
    return tuple(records(table))


DIRECTION = Column("direction", "direction", lambda value: text(value).replace("->", "→"), numeric=False)
PLAN_TABLE = (
    Column("run_id", "run", numeric=False),
    Column("arm", "arm", numeric=False),
    Column("size", "size", numeric=False),
    Column("num_params", "parameters", short),
    Column("num_params_global", "global parameters", short),
    Column("flops_budget", "budget (FLOPs)", scientific),
    Column("planned_flops", "planned FLOPs", lambda v: scientific(v, 4)),
    Column("train_flops", "spent FLOPs", lambda v: scientific(v, 4)),
    Column("planned_steps", "steps", numbers.count),
    Column("planned_units", "units", short),
    Column("planned_text_tokens", "text tokens", short),
    Column("planned_speech_tokens", "speech tokens", short),
    Column("patch_size", "patch size", general),
    Column("tokens_per_param", "tokens / parameter", fixed(1)),
    Column("speech_epochs", "speech epochs", fixed(2)),
    Column("lr", "peak learning rate", general),
    Column("seed", "seed", numbers.count),
    Column("match_group", "match group", numeric=False),
    Column("state", "state", numeric=False),
)


def plan_table(study: Study) -> Table:
    """Every planned run, refused ones included, beside what it spent."""
    caption = (
        "All planned runs in the plan's order; units and tokens as planned, spent FLOPs accumulated from the actual batches."
    )
    return Table("plan", caption, PLAN_TABLE, as_rows(study.runs))


def matching_table(study: Study) -> Table:
    """Means a budget and arm of what was spent (planned where unknown), and the widest FLOPs gap to the baseline in "
    "a match group."""
    runs = study.runs[study.runs["state"] != "refused"].copy()
    for name in ("units", "text_tokens", "speech_tokens", "tokens"):
        runs[name] = runs[name].fillna(runs[f"planned_{name}"])
    runs["flops"] = runs["train_flops"].where(runs["state"] == "done").fillna(runs["planned_flops"])
    runs["gap"] = _gaps(runs)
    rows: list[dict[str, Any]] = []
    for (budget, arm), part in runs.groupby(["flops_budget", "arm"], sort=True, dropna=False):
        means = {
            k: float(part[k].mean())
            for k in ("flops", "units", "text_tokens", "speech_tokens", "mean_patch_length", "speech_epochs")
        }
        signed = part["gap"].dropna()
        widest = float(max(signed, key=abs)) if len(signed) else math.nan
        rows.append({"flops_budget": budget, "arm": arm, "runs": len(part), **means, "widest_gap": widest})
    columns = (
        Column("flops_budget", "budget (FLOPs)", scientific),
        Column("arm", "arm", numeric=False),
        Column("runs", "runs", numbers.count),
        Column("flops", "FLOPs a run", lambda v: scientific(v, 4)),
        Column("widest_gap", "widest FLOPs gap to the baseline", percent(2)),
        Column("units", "units", short),
        Column("text_tokens", "text tokens", short),
        Column("speech_tokens", "speech tokens", short),
        Column("mean_patch_length", "tokens / speech patch", fixed(2)),
        Column("speech_epochs", "speech epochs", fixed(2)),
    )
    order = {arm: i for i, arm in enumerate(study.arms)}
    rows.sort(key=lambda r: (r["flops_budget"], order.get(r["arm"], 99)))
    caption = "Means over the sizes of each budget and arm: spent where the run is done, else planned."
    return Table("matching", caption, columns, tuple(rows))


def _gaps(runs: pd.DataFrame) -> pd.Series:
    """FLOPs of a run over its baseline's in the same match group, minus 1; empty where it has none."""
    base = runs[runs["arm"] == BASELINE].groupby("match_group")["flops"].mean()
    return (runs["flops"] / runs["match_group"].map(base) - 1).where(runs["arm"] != BASELINE)


def states_table(study: Study) -> Table:
    """Runs that are not in the figures, with the reason: refused, failed, unfinished or excluded."""
    usable = set(study.usable()["run_id"])
    rows = []
    for row in records(study.runs):
        if row["run_id"] in usable:
            continue
        excluded = text(row["excluded"])
        reason = excluded if excluded != numbers.MISSING else text(row["reason"])
        attempt = study.attempts[study.attempts["run_id"] == row["run_id"]]
        if reason == numbers.MISSING and len(attempt):
            reason = text(attempt.iloc[-1]["cause"])
        state = "excluded" if row["state"] == "done" else row["state"]
        rows.append({**{k: row[k] for k in ("run_id", "arm", "size", "flops_budget")}, "state": state, "reason": reason})
    columns = (
        Column("run_id", "run", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("flops_budget", "budget (FLOPs)", scientific),
        Column("state", "state", numeric=False),
        Column("reason", "reason", numeric=False),
    )
    return Table("left_out", "Runs that are in no figure and no fit.", columns, tuple(rows))


def losses_table(study: Study) -> Table:
    """The last held-out losses of each usable run."""
    merged: pd.DataFrame | None = None
    for target in TARGETS:
        final = study.final(target)[["run_id", "arm", "size", "num_params", "flops_budget", "flops", "loss"]].rename(
            columns={"loss": target}
        )
        merged = final if merged is None else merged.merge(final[["run_id", target]], on="run_id", how="outer")
    assert merged is not None
    order = {run: i for i, run in enumerate(study.plan["run_id"])}
    merged = merged.sort_values("run_id", key=lambda s: s.map(order), ignore_index=True)
    columns = (
        Column("run_id", "run", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("num_params", "parameters", short),
        Column("flops", "FLOPs", lambda v: scientific(v, 4)),
        *(Column(target, f"{target} loss (nats / token)", fixed(4)) for target in TARGETS),
    )
    return Table("losses", "Held-out losses at the end of each usable run.", columns, as_rows(merged))


def stories_table(scores: Sequence[StoryScore]) -> Table:
    ways = len({(s.task, s.direction, s.evaluated) for s in scores}) > len({(s.task, s.direction) for s in scores})
    rows = tuple({**{f: getattr(s, f) for f in s.__dataclass_fields__}, "verdict": s.verdict} for s in scores)
    rows = tuple({**r, "interval": interval(r["low"], r["high"], percent(1))} for r in rows)
    columns = (
        Column("task", "task", numeric=False),
        DIRECTION,
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("flops", "FLOPs", scientific),
        Column("items", "items", numbers.count),
        Column("accuracy", "accuracy", percent(1)),
        Column("interval", "interval", numeric=False),
        Column("chance", "chance", percent(0)),
        Column("verdict", "against chance", numeric=False),
        *([Column("evaluated", "evaluated with", numeric=False)] if ways else []),
    )
    levels = listed(sorted({level_name(s.level) for s in scores}))
    return Table("stories", f"Accuracy of final checkpoints, with {levels} binomial intervals (Wilson).", columns, rows)


def shares_table(study: Study, kind: str) -> Table:
    rows = as_rows(group_shares(study.plan, kind))
    columns = (
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("num_params", "parameters", short),
        *(Column(group, group, percent(1)) for group in GROUPS),
    )
    what = "planned training FLOPs" if kind == "flops_share" else "parameters"
    return Table("shares", f"Share of {what} by module group.", columns, rows)


def assumptions_table() -> Table:
    rows = tuple({"name": a.name, "value": a.value, "source": a.source} for a in ASSUMPTIONS)
    columns = tuple(
        Column(key, label, numeric=False) for key, label in (("name", "what"), ("value", "chosen"), ("source", "why"))
    )
    return Table("assumptions", "What the paper leaves open, and what was chosen.", columns, rows)
