"""Which runs enter fits: the state of a run from what its folder holds, and the reason why it is left out, if it is.

Only final checkpoints of complete runs enter fits (DESIGN rule 11). Nothing is dropped silently: the reason stands in
runs.csv. Not here: reading of records (`analysis.collect`) and unsuitable tables (`analysis.table`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DONE, FAILED, UNFINISHED, NOT_STARTED, REFUSED = "done", "failed", "unfinished", "not_started", "refused"
DIVERGED_NATS = 1.0
"""A training loss that ends this far above its own lowest stretch has diverged. Generous: a curriculum's loss may rise when
aligned patches, which see where words end, give way to static ones."""
Losses = Sequence[float] | np.ndarray
LOSS_METRIC = "nats_per_token"
"""Per token by content (docs/evaluation.md): arms that cut speech into pieces divide by the same 25 Hz tokens as the others."""
STRETCHES = 20
"""Equal stretches of steps whose mean losses are compared: each is 5% of the steps."""


def run_state(
    plan: Mapping[str, Any], records: int, exit_record: Mapping[str, Any] | None, failure: Mapping[str, Any] | None
) -> str:
    """done (exit.json), refused (by the plan), failed (failure.json), unfinished (records), not_started."""
    if exit_record is not None:
        return DONE
    if str(plan.get("status", "")) == REFUSED:
        return REFUSED
    if failure is not None:
        return FAILED
    return UNFINISHED if records else NOT_STARTED


def state_reason(
    state: str, plan: Mapping[str, Any], step: int, exit_record: Mapping[str, Any] | None, failure: Mapping[str, Any] | None
) -> str:
    """Why a run is not complete, as its folder or the plan says; empty for a complete one."""
    if state == REFUSED:
        return f"refused by the plan: {plan.get('reason', '')}"
    if state == FAILED and failure is not None:
        return f"failed ({failure.get('class', 'error')}): {failure.get('cause', '')}"
    if state == UNFINISHED:
        return f"unfinished: step {step} of {plan.get('steps', '?')}"
    if state == NOT_STARTED:
        return "not started"
    return "" if exit_record is None or exit_record.get("status") == "done" else f"ended with status {exit_record.get('status')}"


def other_kind(plan: Mapping[str, Any]) -> str:
    """Why a row that is no pretraining from random weights enters no fit; empty for one that is (or a branch of one)."""
    kind = str(plan.get("kind") or "pretrain")
    return "" if kind in ("pretrain", "branch") else f"goes on from run {plan.get('parent_run_id')} ({kind})"


def stretch_means(losses: Losses) -> list[float]:
    """Mean loss of each of STRETCHES equal stretches of steps; fewer where there are fewer steps."""
    if not len(losses):
        return []
    stretches = min(STRETCHES, len(losses))
    starts = np.linspace(0, len(losses), stretches, endpoint=False).astype(int)
    sums = np.add.reduceat(np.asarray(losses, dtype=np.float64), starts)
    means: list[float] = (sums / np.diff([*starts, len(losses)])).tolist()
    return means


def final_loss(losses: Losses) -> float | None:
    """Mean training loss (nats) over the last 5% of the recorded steps, at least one."""
    return float(np.mean(losses[-max(1, round(len(losses) / STRETCHES)) :])) if len(losses) else None


def divergence(losses: Losses) -> str:
    """The reason if the training loss has diverged, else empty."""
    final = final_loss(losses)
    if final is None:
        return ""
    if not math.isfinite(final):
        return f"diverged: the training loss ends at {final}"
    means = stretch_means(losses)
    if final > min(means) + DIVERGED_NATS:
        return f"diverged: the training loss ends at {final:.3f}, {final - min(means):.3f} nats above its lowest stretch"
    if len(means) > 1 and final >= losses[0]:
        return f"diverged: the training loss ends at {final:.3f}, not below its start {losses[0]:.3f}"
    return ""


def warm_up(step: int, warmup_steps: float | None) -> str:
    """The reason if the learning rate was still rising at the run's last step, else empty."""
    if warmup_steps is None or step == 0 or step > warmup_steps:
        return ""
    return f"warm-up: the run ends at step {step}, inside its warm-up of {warmup_steps:g} steps"


def resumed(attempts: Sequence[Mapping[str, Any]], step: int) -> str:
    """The reason if the way to the weights at `step` was trained by several versions of the code, else empty.

    `attempts` are a run's in order, with `step` where each started and `code` it ran; one that got nowhere does not count.
    """
    codes: list[str] = []
    reached = step
    for attempt in reversed(attempts):
        code, start = attempt.get("code"), attempt.get("step")
        if code is not None and start is not None and start < reached:
            codes.append(str(code))
            reached = start
    known = list(dict.fromkeys(reversed(codes)))
    return f"resumed across versions: trained by code {', '.join(known)}" if len(known) > 1 else ""


def fingerprint(run: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str | None:
    """What two runs share only if one is the other again: arm, size, step, every value to the last digit. None without a loss."""
    own = [(r["task"], r["direction"], r["metric"], r["value"]) for r in evaluations if r["step"] == run["step"]]
    if run["state"] != DONE or run["final_loss"] is None or not own:
        return None
    named = [run[name] for name in ("arm", "size", "num_params", "step", "train_flops", "final_loss")]
    return repr([named, sorted(own)])


def without_duplicates(runs: Sequence[Mapping[str, Any]], prints: Sequence[str | None]) -> list[dict[str, Any]]:
    """The runs, those excluded whose fingerprint a run before them has that enters fits."""
    first: dict[str, str] = {}
    found = []
    for run, same in zip(runs, prints, strict=True):
        excluded = run["excluded"]
        if not excluded and same is not None and first.setdefault(same, run["run_id"]) != run["run_id"]:
            excluded = f"duplicated: the same losses at step {run['step']} as run {first[same]}"
        found.append({**run, "excluded": excluded})
    return found


def exclusion(state: str, reason: str, losses: Losses, step: int, steps: float | None, final: Sequence[Mapping[str, Any]]) -> str:
    """Why a run does not enter fits; empty for one that does. `final` are the evaluations of its last step."""
    if state != DONE:
        return reason
    if reason:
        return reason
    if steps is not None and step != steps:
        return f"stopped at step {step} of {steps:g}"
    if diverged := divergence(losses):
        return diverged
    return no_loss(final) if final else f"no evaluation at the final step {step}"


def no_loss(final: Sequence[Mapping[str, Any]]) -> str:
    """The reason if one of the evaluations has a held-out loss that no law can describe, else empty."""
    for row in final:
        if row["metric"] == LOSS_METRIC and not 0 < row["value"] < math.inf:
            why = "no loss" if math.isfinite(row["value"]) else "diverged"
            return f"{why}: {row['task']} {row['direction']} ends at {row['value']:g} nats per token"
    return ""


def uncounted(spent: Mapping[str, Any]) -> str:
    """The reason if what the run has spent is not known, else empty."""
    for name in ("train_flops", "tokens"):
        if not 0 < (spent.get(name) or 0) < math.inf:
            return f"no {name} in its records: train.jsonl or exit.json is missing or damaged"
    return ""
