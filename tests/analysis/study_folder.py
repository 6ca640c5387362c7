"""A synthetic study folder: a real plan.csv and real records files, with losses from a law that is known.

Runs cost 6ND FLOPs; an arm with efficiency e has the loss of the baseline with e times the tokens, so its compute multiplier
is e at every budget. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.laws import LossSurface
from lst import records
from sweeps.columns import PlanRow, rows_to_csv

TRUTH = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
BUDGETS = (1e18, 1e19, 1e20)
STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """What the folder holds."""

    arms: dict[str, float] = field(default_factory=lambda: {"baseline": 1.0, "lst_static": 1.3})  # arm -> efficiency
    one_size: tuple[str, ...] = ()  # arms with the second size of each budget only
    budgets: tuple[float, ...] = BUDGETS
    sizes: int = 4
    noise: float = 0.002  # standard deviation of ln loss
    stories: bool = True
    seed: int = 0


def sizes_at(budget: float, count: int) -> np.ndarray:
    """Sizes about the optimum, so that minima are interior."""
    return TRUTH.optimal(budget).num_params * np.geomspace(0.3, 3.2, count)


def rows(study: Synthetic) -> list[tuple[PlanRow, float]]:
    """Plan rows with the loss that each run reaches."""
    rng = np.random.default_rng(study.seed)
    found = []
    for budget in study.budgets:
        for index, params in enumerate(sizes_at(budget, study.sizes)):
            for arm, efficiency in study.arms.items():
                if arm in study.one_size and index != 1:
                    continue
                n = round(float(params))
                tokens = budget / 6 / n
                loss = float(TRUTH.predict(n, efficiency * tokens)) * float(np.exp(study.noise * rng.standard_normal()))
                found.append((plan_row(arm, f"s{index}", n, tokens, budget), loss))
    return found


def plan_row(arm: str, size: str, n: int, tokens: float, budget: float) -> PlanRow:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(PlanRow):
        values[f.name] = {"str": "", "int": 1, "float": 1.0}[getattr(f.type, "__name__", f.type)]
    values |= {"run_id": f"{abs(hash_of(arm, size, budget)):012x}"[:12], "study": "synthetic", "kind": "pretrain"}
    values |= {"arm": arm, "size": size, "num_params": n, "num_non_embedding_params": n // 2, "num_params_global": n // 4}
    values |= {
        "matching": "flop",
        "match_group": f"{budget:g}-{size}",
        "flops_budget": budget,
        "planned_flops": budget,
        "planned_spent_flops": budget,
    }
    values |= {"steps": STEPS, "tokens": tokens, "units": tokens / 2, "text_tokens": tokens / 2, "speech_tokens": tokens / 2}
    return PlanRow(**(values | {"seed": 0, "status": "admitted", "data_id": "toy", "flops_convention": "exact"}))


def hash_of(*parts: object) -> int:
    """A number that is the same in every process."""
    import hashlib

    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:12], 16)


def write_study(folder: Path, study: Synthetic | None = None) -> Path:
    """Write the folder with every run complete."""
    study = study or Synthetic()
    planned = rows(study)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.csv").write_text(rows_to_csv(row for row, _ in planned))
    references = {name: {"unigram": 6.0, "trigram": 1.0, "n_items": 1000} for name in ("speech", "text")}
    (folder / "references.json").write_text(json.dumps(references))
    for row, loss in planned:
        write_run(folder / "runs" / row.run_id, row, loss, stories=study.stories)
    write_ledger(folder, [row.run_id for row, _ in planned])
    return folder


def write_run(
    folder: Path, row: PlanRow, loss: float, *, stories: bool = True, steps: int = STEPS, finished: bool = True
) -> None:
    """The records of one run, as the trainer writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / records.RUN_CONFIG).write_text(
        f"run_id: {row.run_id}\nconfig: {{model: {{arm: {row.arm}}}, train: {{steps: {STEPS}}}}}\n"
    )
    with records.JsonLinesWriter(folder / records.TRAIN_RECORDS) as file:
        for step in range(1, steps + 1):
            file.write(train_record(row, step, loss + 3.0 * (1 - step / STEPS)))
    if not finished:
        return
    with records.JsonLinesWriter(folder / records.EVAL_RECORDS) as file:
        for task, direction, shift in (
            ("heldout_mixture", "ST->ST", 0.0),
            ("heldout_speech", "S->S", 0.4),
            ("heldout_text", "T->T", 0.2),
        ):
            file.write(eval_record(row, task, direction, "nats_per_token", loss + shift, 1000))
        if stories:
            for metric, value in (("accuracy", 0.75), ("chance", 0.5)):
                file.write(eval_record(row, "story_elsewhere", "S->S", metric, value, 4))
    if stories:
        with records.JsonLinesWriter(folder / records.ITEM_RECORDS) as file:
            for item in range(4):
                right = {"correct": item != 0, "scores": [-1.0 - 2 * (item == 0), -2.0]}
                file.write({"step": STEPS, "task": "story_elsewhere", "direction": "S->S", "item": item} | right)
    spent = {name: getattr(row, name) for name in ("units", "tokens", "text_tokens", "speech_tokens")}
    ended = {
        "run_id": row.run_id,
        "status": "done",
        "step": STEPS,
        "train_flops": row.planned_flops,
        "seconds": 12.5,
        "attempts": 1,
    }
    records.write_json(
        folder / records.EXIT, ended | spent | {"versions": {"torch": "2"}, "num_params": {"global": row.num_params_global}}
    )


def train_record(row: PlanRow, step: int, loss: float) -> dict[str, Any]:
    share = step / STEPS
    spent = {name: getattr(row, name) * share for name in ("units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens")}
    return {
        "step": step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "train_flops": row.planned_flops * share,
        "time": 1e9 + step,
    } | spent


def eval_record(row: PlanRow, task: str, direction: str, metric: str, value: float, n_items: int) -> dict[str, Any]:
    spent = {name: getattr(row, name) for name in ("units", "text_tokens", "speech_tokens")}
    named = {"task": task, "direction": direction, "metric": metric, "value": value, "n_items": n_items}
    return {"step": STEPS, "train_flops": row.planned_flops} | spent | named


def write_ledger(folder: Path, run_ids: list[str]) -> None:
    (folder / "launch").mkdir(exist_ok=True)
    with records.JsonLinesWriter(folder / "launch" / "ledger.jsonl") as file:
        for index, run_id in enumerate(run_ids):
            for event, extra in (("submitted", {}), ("started", {"gpus": 0}), ("ended", {"state": "done", "cause": ""})):
                file.write({"time": 1e9 + index, "run_id": run_id, "event": event, "attempt": 1, "job_id": str(index)} | extra)
