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
from reports.answer import ReferenceVerdict
from reports.diagnostics import group_shares
from reports.laws import SURFACE_PARAMETERS, ArmFit, Comparison
from reports.numbers import Formatter, fixed, general, interval, percent, scientific, short, text
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
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"


def latex_escape(value: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(c) or _LATEX_SYMBOLS.get(c, c) for c in value)


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _records(table: pd.DataFrame) -> tuple[dict[str, Any], ...]:
    return tuple(records(table))


PLAN_TABLE = (
    Column("run_id", "run", numeric=False),
    Column("arm", "arm", numeric=False),
    Column("size", "size", numeric=False),
    Column("num_params", "parameters", short),
    Column("num_params_global", "of these global", short),
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
    return Table("plan", caption, PLAN_TABLE, _records(study.runs))


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
    return Table("losses", "Held-out losses at the end of each usable run.", columns, _records(merged))


def stories_table(scores: Sequence[StoryScore]) -> Table:
    rows = tuple({**{f: getattr(s, f) for f in s.__dataclass_fields__}, "verdict": s.verdict} for s in scores)
    rows = tuple({**r, "interval": interval(r["low"], r["high"], percent(1))} for r in rows)
    columns = (
        Column("task", "task", numeric=False),
        Column("direction", "direction", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("flops", "FLOPs", scientific),
        Column("items", "items", numbers.count),
        Column("accuracy", "accuracy", percent(1)),
        Column("interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
        Column("chance", "chance", percent(0)),
        Column("verdict", "against chance", numeric=False),
    )
    return Table("stories", "Story completion on final checkpoints, with Wilson's binomial interval.", columns, rows)


def fits_table(fits: Sequence[ArmFit]) -> Table:
    """A row a fitted surface; parameters with their intervals, warnings in full."""
    rows = []
    for fit in fits:
        if fit.surface is None:
            continue
        row: dict[str, Any] = {
            "arm": fit.arm, "target": fit.target, "kinds": f"{fit.n_kind}, {fit.d_kind}", "points": fit.surface.n,
            "objective": fit.surface.objective, "level": fit.surface.level,
            "warnings": "; ".join(fit.surface.warnings + fit.warnings) or "none",
        }  # fmt: skip
        for name in SURFACE_PARAMETERS:
            band = fit.surface.intervals.get(name)
            row[name] = general(getattr(fit.surface.law, name)) + (f" {interval(*band, general)}" if band else "")
        rows.append(row)
    greek = {"alpha": "α", "beta": "β"}
    columns = (
        Column("arm", "arm", numeric=False),
        Column("target", "target", numeric=False),
        Column("kinds", "N and D", numeric=False),
        Column("points", "runs", numbers.count),
        *(Column(name, greek.get(name, name), numeric=False) for name in SURFACE_PARAMETERS),
        Column("objective", "objective", general),
        Column("level", "interval level", percent(0)),
        Column("warnings", "warnings", numeric=False),
    )
    return Table("fits", "Loss surfaces L(N, D) = E + A / N^α + B / D^β, with bootstrap intervals.", columns, tuple(rows))


def comparisons_table(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        low, high = c.overlap or (math.nan, math.nan)
        rows.append(
            {
                "arm": c.arm,
                "baseline": c.baseline,
                "target": c.target,
                "method": c.method,
                "multiplier": c.multiplier.value,
                "interval": interval(c.multiplier.low, c.multiplier.high, fixed(2)),
                "level": c.level,
                "overlap": interval(low, high, fixed(3)),
                "warnings": "; ".join(c.warnings) or "none",
            }
        )
    columns = (
        Column("arm", "arm", numeric=False),
        Column("baseline", "against", numeric=False),
        Column("target", "target", numeric=False),
        Column("method", "method", numeric=False),
        Column("multiplier", "compute multiplier (×)", fixed(2)),
        Column("interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
        Column("overlap", "overlap (nats / token)", numeric=False),
        Column("warnings", "warnings", numeric=False),
    )
    return Table("multipliers", "Compute multipliers inside the overlap of losses.", columns, tuple(rows))


def shares_table(study: Study, kind: str) -> Table:
    rows = _records(group_shares(study.plan, kind))
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


def references_table(verdicts: Sequence[ReferenceVerdict]) -> Table:
    rows = tuple(
        {
            **{f: getattr(v, f) for f in v.__dataclass_fields__},
            "margin": v.margin,
            "verdict": "beaten" if v.beaten else "not beaten",
        }
        for v in verdicts
    )
    columns = (
        Column("modality", "modality", numeric=False),
        Column("reference", "reference", numeric=False),
        Column("reference_loss", "reference's loss (nats / token)", fixed(3)),
        Column("arm", "arm", numeric=False),
        Column("run_id", "best run", numeric=False),
        Column("loss", "run's loss (nats / token)", fixed(3)),
        Column("margin", "reference minus run (nats)", fixed(3)),
        Column("verdict", "verdict", numeric=False),
    )
    return Table(
        "references",
        "The best run of each arm at the largest budget against n-gram models of the same held-out tokens.",
        columns,
        rows,
    )


def residuals_table(table: pd.DataFrame) -> Table:
    columns = (
        Column("run_id", "run", numeric=False),
        Column("arm", "arm", numeric=False),
        Column("size", "size", numeric=False),
        Column("flops", "FLOPs", scientific),
        Column("loss", "measured (nats / token)", fixed(4)),
        Column("fitted", "fitted (nats / token)", fixed(4)),
        Column("residual", "residual of ln loss", percent(2)),
    )
    return Table("residuals", "Measured and fitted losses.", columns, _records(table))


def minima_table(fits: Sequence[ArmFit]) -> Table:
    """The isoFLOP minima of every arm and target."""
    rows = []
    for fit in fits:
        for p in fit.profiles():
            rows.append(
                {
                    "arm": fit.arm,
                    "target": fit.target,
                    "flops_budget": p.budget,
                    "status": p.status.replace("_", " "),
                    "optimal_params": p.optimum.value,
                    "params_interval": interval(p.optimum.low, p.optimum.high, short),
                    "optimal_loss": p.minimum.value,
                    "loss_interval": interval(p.minimum.low, p.minimum.high, fixed(3)),
                    "level": fit.isoflop.level if fit.isoflop else math.nan,
                }
            )
    columns = (
        Column("arm", "arm", numeric=False),
        Column("target", "target", numeric=False),
        Column("flops_budget", "budget (FLOPs)", scientific),
        Column("status", "minimum", numeric=False),
        Column("optimal_params", "parameters", short),
        Column("params_interval", "interval", numeric=False),
        Column("optimal_loss", "loss (nats / token)", fixed(3)),
        Column("loss_interval", "interval", numeric=False),
        Column("level", "level", percent(0)),
    )
    return Table(
        "minima",
        "Minima of the isoFLOP parabolas with bootstrap intervals; a dash where the minimum is not inside the trained sizes.",
        columns,
        tuple(rows),
    )
