"""The price of a plan as text at 100 columns: a line a run, memory by part, why each choice was made, totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lst.memory import PARTS
from sweeps.canary import Canary
from sweeps.columns import PlanRow
from sweeps.plan import Totals
from sweeps.study import StudyConfig
from sweeps.text import WIDTH, aligned, scientific, short, within, wrapped
from sweeps.trunk import savings

LEFT_OUT = ("kept GiB", "disk GiB", "micro")  # columns that long names push out, one after another; plan.csv has them
PARTS_LEFT_OUT = ("runtime", "logits")  # parts of memory, the same; `all` counts them
CHOICES_SHOWN = 20  # choices of GPUs that are explained; all of them are in plan.csv


def price_text(rows: Sequence[PlanRow], totals: Totals, wall: float, cores: int) -> str:
    """Everything about the price, in the order in which it is read."""
    parts = [price_table(rows), memory_table(rows), *choices(rows), totals_text(totals, wall, cores)]
    return "\n\n".join(part for part in parts if part)


def price_table(rows: Sequence[PlanRow]) -> str:
    """A line a run: where it runs, how long, how much memory, disk (at most, and what stays) and money."""
    money = any(row.est_dollars for row in rows)
    seeds = len({row.seed for row in rows}) > 1
    header = ["budget", "size", "arm", *(["seed"] if seeds else []), "GPUs", "micro", "time", "GPU-hours", "peak GiB"]
    header += ["disk GiB", "kept GiB", *(["dollars"] if money else [])]
    lines = [header]
    for row in rows:
        line = [scientific(row.flops_budget), row.size, row.arm, *([str(row.seed)] if seeds else [])]
        line += [str(row.gpus or "-"), short(row.micro_batch_tokens), duration(row.est_minutes)]
        line += [amount(row.est_gpu_hours) if row.gpus else "-", f"{row.est_peak_gib:.2f}"]
        line += [amount(row.est_disk_gib), amount(row.est_kept_gib), *([amount(row.est_dollars)] if money else [])]
        lines.append(line)
    return aligned(within(WIDTH, lines, LEFT_OUT), left={1, 2})


def memory_table(rows: Sequence[PlanRow]) -> str:
    """Peak GiB of one process by part: of each size and arm the run that needs most."""
    most: dict[tuple[str, str], PlanRow] = {}
    for row in rows:
        known = most.setdefault((row.size, row.arm), row)
        if row.est_peak_gib > known.est_peak_gib:
            most[row.size, row.arm] = row
    table = [["GiB", "size", "arm", *(_SHORT.get(part, part) for part in PARTS), "all"]]
    for row in most.values():
        held = [getattr(row, f"est_gib_{part}") for part in PARTS]
        table.append(["", row.size, row.arm, *(f"{gib:.2f}" for gib in held), f"{row.est_peak_gib:.2f}"])
    title = wrapped("", "peak memory of one process by part (of each size and arm the run that needs most):")
    return "\n".join([title, aligned(within(WIDTH, [line[1:] for line in table], PARTS_LEFT_OUT), left={0, 1})])


_SHORT = {"gradients": "grads", "optimiser": "moments", "activations": "activ.", "workspace": "work", "gathered": "gather"}


def choices(rows: Sequence[PlanRow]) -> list[str]:
    """A line for each distinct choice of GPUs and micro-batch, with its reason."""
    found: dict[tuple[object, ...], int] = {}
    for row in rows:
        if row.placement_reason:
            key = (row.size, row.arm, row.gpus, row.micro_batch_tokens, row.placement_reason)
            found[key] = found.get(key, 0) + 1
    lines = [
        wrapped(
            "placed: ",
            f"{size} {arm} on {gpus} GPU{'s' if gpus != 1 else ''} in micro-batches of {micro:,} tokens "
            f"({count} run{'s' if count > 1 else ''}): {reason}",
        )
        for (size, arm, gpus, micro, reason), count in list(found.items())[:CHOICES_SHOWN]
    ]
    if len(found) > CHOICES_SHOWN:
        lines.append(f"placed: and {len(found) - CHOICES_SHOWN} more (plan.csv, placement_reason)")
    return ["\n".join(lines)] if lines else []


def totals_text(totals: Totals, wall: float, cores: int) -> str:
    text = (
        f"total: {totals.admitted} admitted and {totals.refused} refused runs, {scientific(totals.planned_flops)} FLOPs, "
        f"{totals.steps:,} steps, about {duration(totals.process_minutes)} of one run after another, "
        f"{duration(wall)} with {cores} at a time; peak memory of a process about {totals.peak_gib:.1f} GiB; checkpoints: "
        f"{amount(totals.kept_gib)} GiB stay, a run in training has up to {amount(totals.disk_gib)}"
    )
    if totals.gpu_hours:
        text += f"; {totals.gpu_hours:,.1f} GPU-hours"
    return wrapped("", text + (f", {totals.dollars:,.0f} dollars" if totals.dollars else ""))


def canary_text(canary: Canary, rows: Sequence[PlanRow]) -> str:
    """What was measured, beside the estimate of memory, and how many rows are reckoned from it."""
    by_id = {row.run_id: row for row in rows}
    table = [["measured", "size", "arm", "steps", "s/step", "FLOP/s", "MFU", "peak GiB", "estimate", "stands for"]]
    sources = [canary.nearest(row).run_id for row in rows if row.admitted]
    for run in canary.runs:
        row = by_id[run.run_id]
        line = [run.run_id, row.size, row.arm, f"{run.steps:,}", amount(run.step_seconds), scientific(run.flops_per_second)]
        line += ["-" if run.mfu is None else f"{run.mfu:.3f}", f"{run.peak_gib:.2f}", f"{run.est_peak_gib:.2f}"]
        table.append([*line, f"{sources.count(run.run_id):,} rows"])
    left = len(sources) - len({run.run_id for run in canary.runs} & {row.run_id for row in rows if row.admitted})
    text = f"{left} rows are extrapolated: the speed of the nearest measured run, of their own arm if there is one."
    if canary.foreign:
        text += f" {canary.foreign} run folders belong to another plan and were left out."
    return aligned(table, left={0, 1, 2}) + "\n" + wrapped("", text)


def savings_text(rows: Sequence[PlanRow], study: StudyConfig) -> str:
    """What a shared trunk saves, or would save, by group and in total; empty where no two budgets could share one."""
    planned = study.recipe.share_trunk
    if planned:
        rows = [dataclasses.replace(row, kind="pretrain") for row in rows]
    found = savings(rows, study.recipe.decay_share)
    if not found:
        return ""
    apart, saved = sum(group.flops for group in found), sum(group.saved_flops for group in found)
    hours = sum(group.saved_gpu_hours for group in found)
    text = (
        f"shared trunks {'save' if planned else 'would save'} about {scientific(saved)} of {scientific(apart)} FLOPs "
        f"({saved / apart:.0%}){f', {amount(hours)} GPU-hours' if hours and not planned else ''}"
    )
    if not planned:
        how = "one WSD run for all budgets of a size, arm and seed (recipe.schedule=wsd recipe.share_trunk=true)"
        return wrapped("trunk: ", f"{text}: {how}")
    table = [["size", "arm", "seed", "budgets", "FLOPs apart", "saved"]]
    for group in found:
        cells = [group.size, group.arm, str(group.seed), str(group.budgets), scientific(group.flops)]
        table.append([*cells, f"{scientific(group.saved_flops)} ({group.saved_flops / group.flops:.0%})"])
    return "\n".join([wrapped("trunk: ", text), aligned(table, left={0, 1})])


def duration(minutes: float) -> str:
    """42 s, 3.1 min, 17.2 h, 9.3 d"""
    for size, unit in ((24 * 60, "d"), (60, "h"), (1, "min")):
        if minutes >= (2 if unit == "d" else 1) * size:
            return f"{minutes / size:,.1f} {unit}"
    return f"{minutes * 60:.0f} s"


def amount(value: float) -> str:
    """Three digits: 0.0123, 4.56, 1,230"""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
