"""A study's folder written from a known law: test data, told apart from a real study by its name `known_truth`.

Truth: L(N, D) = E + A / N^alpha + B / D^beta for the baseline; an LST arm has the baseline's loss at EFFICIENCY times its FLOPs,
split evenly over N and D, so that its true compute multiplier is EFFICIENCY exactly. Losses get Gaussian noise of NOISE nats.
Fits in fits.json are the truth itself with given intervals, in `analysis.results`' types: no solver runs here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.form_results import AccuracyMultiplier, FormFit
from analysis.forms import ChanceSigmoid
from analysis.laws import IsoflopParabola, LossSurface
from analysis.results import IsoflopFit, IsoflopProfile, MultiplierCurve, SharedFit, SurfaceFit

E, A, B, ALPHA, BETA = 2.5, 80.0, 400.0, 0.35, 0.37
EFFICIENCY = 1.3
NOISE = 0.004
BUDGETS = (1e13, 3e13, 1e14)
SIZES = {"w32": 70_000, "w48": 160_000, "w64": 400_000, "w96": 1_100_000}
OFFSETS = {"mixture": 0.0, "speech": -0.4, "text": 0.5, "interleaved": -0.1}
DIRECTIONS = {"mixture": "ST->ST", "speech": "S->S", "text": "T->T", "interleaved": "ST->ST"}
TASKS = {target: (f"heldout_{target}", direction) for target, direction in DIRECTIONS.items()}
GRADED, GRADED_ITEMS = "story_graded", 4000
OF_LOSS = ChanceSigmoid(midpoint=4.0, slope=-4.0, chance=0.25)
"""The accuracy on GRADED of every run, a law of its text loss."""
LEVEL = 0.9
SAME_IN_RUNS = (
    "run_id", "study", "arm", "size", "seed", "matching", "match_group", "num_params", "num_non_embedding_params",
    "num_params_global", "flops_budget", "planned_flops", "units", "tokens", "text_tokens", "text_only_tokens", "speech_tokens",
)  # fmt: skip


@dataclass
class Truth:
    """What the study is to hold. `multiplier` is (value, low, high), or None for no overlap."""

    arms: tuple[str, ...] = ("baseline", "lst_static", "lst_curriculum")
    multiplier: tuple[float, float, float] | None = (1.3, 1.18, 1.42)
    failed: tuple[str, ...] = ()  # keys arm/size/index of the budget
    refused: tuple[str, ...] = ()
    stories: bool = True
    graded: bool = False  # stories at every budget, whose accuracies are OF_LOSS of the text loss; and their laws in fits.json
    flops_shares: bool = True
    data: str = "embedded"
    matching: str = "flop"
    references: dict[str, Any] = field(
        default_factory=lambda: {
            "speech": {"unigram": 5.4, "trigram": 3.62, "n_items": 30_000},
            "text": {"unigram": 6.4, "trigram": 4.2, "n_items": 20_000},
        }
    )


def true_loss(arm: str, params: float, tokens: float) -> float:
    gain = 1.0 if arm == "baseline" else math.sqrt(EFFICIENCY)
    return E + A / (gain * params) ** ALPHA + B / (gain * tokens) ** BETA


def best_params(arm: str, flops: float) -> float:
    """N of least loss at C = 6 N D: the baseline's closed form, over the arm's gain at its larger effective budget."""
    gain = 1.0 if arm == "baseline" else math.sqrt(EFFICIENCY)
    scale = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return scale * (gain**2 * flops / 6) ** (BETA / (ALPHA + BETA)) / gain


def cells(truth: Truth) -> list[tuple[str, str, int]]:
    """arm, size, index of the budget: three budgets by four sizes; the curriculum at one size of each budget."""
    sizes = {arm: ("w64",) if arm == "lst_curriculum" else tuple(SIZES) for arm in truth.arms}
    return [(arm, size, b) for b in range(len(BUDGETS)) for size in SIZES for arm in truth.arms if size in sizes[arm]]


def plan_row(truth: Truth, arm: str, size: str, b: int, number: int) -> dict[str, Any]:
    params, flops = SIZES[size] * (1.0 if arm == "baseline" else 1.2), BUDGETS[b] * (1 + 0.0005 * (number % 5))
    tokens = flops / 6 / params
    groups = {"embedding": 0.0, "encoder": 0.0, "global": 0.35, "decoder": 0.0, "head": 0.65}
    if arm != "baseline":
        groups = {"embedding": 0.0, "encoder": 0.1, "global": 0.2, "decoder": 0.2, "head": 0.5}
    bigger = list(SIZES).index(size) * 0.1
    groups = {g: v * (1 - bigger) + (bigger if g == "global" else 0) for g, v in groups.items()}
    refused = f"{arm}/{size}/{b}" in truth.refused
    return {
        "run_id": f"{number:03d}e45678901", "study": "known_truth", "kind": "pretrain", "parent_run_id": "",
        "arm": arm, "size": size, "num_params": int(params),
        "num_non_embedding_params": int(params * 0.6), "num_params_global": int(params * 0.4),
        **{f"num_params_{g}": int(params * v) for g, v in groups.items() if g != "global"},
        "matching": truth.matching, "match_group": f"b{b}-{size}", "flops_budget": BUDGETS[b], "planned_flops": flops,
        **({f"flops_share_{g}": v for g, v in groups.items()} if truth.flops_shares else {}),
        "flops_convention": "exact", "steps": 400, "seq_len_units": 256, "context_match": "units",
        "units": tokens * 0.8, "tokens": tokens,
        "text_tokens": tokens * 0.7, "text_only_tokens": tokens * 0.6, "speech_tokens": tokens * 0.28,
        "patch_size": 1 if arm == "baseline" else 4, "mean_patch_length": 1.0 if arm == "baseline" else 3.6,
        "tokens_per_param": tokens / params, "speech_epochs": tokens * 0.28 / 1.1e6, "corpus_passes": tokens / 1.3e6, "lr": 0.002,
        "batch_units": 4096, "warmup_steps": 20, "seed": 0, "recipe": "demo", "data_id": "abcdef012345", "est_minutes": 0.4,
        "status": "refused" if refused else "admitted", "reason": "needs 400 GiB" if refused else "",
    }  # fmt: skip


def write_study(folder: Path, truth: Truth | None = None) -> Path:
    """Write the whole folder as earlier stages would, and return it."""
    truth = truth or Truth()
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(7)
    plan = pd.DataFrame([plan_row(truth, *cell, number) for number, cell in enumerate(cells(truth))])
    plan.to_csv(folder / "plan.csv", index=False)
    keys = [f"{arm}/{size}/{b}" for arm, size, b in cells(truth)]
    runs, results, curves, items, attempts = [], [], [], [], []
    for key, row in zip(keys, plan.to_dict("records"), strict=True):
        if row["status"] == "refused":
            continue
        failed = key in truth.failed
        runs.append(run_row(row, failed))
        attempts.append(attempt_row(row, failed))
        curves += curve_rows(row, failed, noise)
        if not failed:
            results += result_rows(row, noise)
        if not failed and truth.stories and row["flops_budget"] == BUDGETS[-1]:
            scored, single = story_rows(row, noise)
            results, items = results + scored, items + single
        if not failed and truth.graded:
            results += graded_rows(row)
    pd.DataFrame(runs).to_csv(folder / "runs.csv", index=False)
    pd.DataFrame(results).assign(branch=None).to_csv(folder / "results.csv", index=False)
    pd.DataFrame(attempts).to_csv(folder / "attempts.csv", index=False)
    pd.DataFrame(curves).to_parquet(folder / "curves.parquet", index=False)
    if items:
        pd.DataFrame(items).assign(items_id=None, options=None, score=None, conditional=None).to_parquet(
            folder / "items.parquet", index=False
        )
    (folder / "references.json").write_text(json.dumps(truth.references))
    (folder / "study.yaml").write_text(
        f"name: known_truth\ndata: {truth.data}\nbudgets: [1e13, 3e13, 1e14]\ndata_about: {{licence: CC0, voices: [a, b]}}\n"
    )
    (folder / "fits.json").write_text(json.dumps(fits_content(truth)))
    write_exits(folder, runs)
    return folder


def write_exits(folder: Path, runs: list[dict[str, Any]]) -> None:
    for row in runs:
        if row["state"] == "done":
            path = folder / "runs" / row["run_id"] / "exit.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"run_id": row["run_id"], "versions": {"torch": "2.13.0", "lst-scaling": "0.1.0"}}))


def run_row(row: dict[str, Any], failed: bool) -> dict[str, Any]:
    same = SAME_IN_RUNS
    share = 0.5 if failed else 1.0
    return {
        **{k: row[k] for k in same}, "state": "failed" if failed else "done", 
        "reason": "loss became nan at step 200" if failed else "", "step": int(400 * share), "steps": 400,
        "train_flops": row["planned_flops"] * share, "spent_flops": row["planned_flops"] * share,
        "seconds": 20.0, "final_loss": 4.2,
        "excluded": "failed (nan): loss became nan at step 200" if failed else "",
    }  # fmt: skip


def attempt_row(row: dict[str, Any], failed: bool) -> dict[str, Any]:
    cause = "loss became nan at step 200" if failed else ""
    return {"run_id": row["run_id"], "attempt": 1, "job_id": "1", "state": "failed" if failed else "done", "cause": cause}


def curve_rows(row: dict[str, Any], failed: bool, noise: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, (200 if failed else 400) + 1):
        share = step / 400
        loss = true_loss(row["arm"], row["num_params"], row["tokens"] * share) + 0.03 * noise.standard_normal()
        rows.append(
            {"run_id": row["run_id"], "step": step, "train_flops": row["planned_flops"] * share, "loss": min(loss, 8.3),
             "lr": 0.002,
             "grad_norm": 1.0, "tokens": row["tokens"] * share}
        )  # fmt: skip
    return rows


def spent(row: dict[str, Any]) -> dict[str, Any]:
    return {"run_id": row["run_id"], "arm": row["arm"], "size": row["size"], "step": 400, "train_flops": row["planned_flops"],
            "units": row["units"], "text_tokens": row["text_tokens"], "speech_tokens": row["speech_tokens"]}  # fmt: skip


def result_rows(row: dict[str, Any], noise: np.random.Generator) -> list[dict[str, Any]]:
    loss = true_loss(row["arm"], row["num_params"], row["tokens"]) + NOISE * noise.standard_normal()
    return [
        {
            **spent(row),
            "task": task,
            "direction": direction,
            "metric": "nats_per_token",
            "value": loss + OFFSETS[target],
            "n_items": 30_000,
        }
        for target, (task, direction) in TASKS.items()
    ]


def story_rows(row: dict[str, Any], noise: np.random.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    scored, single = [], []
    for task, direction, share in (
        ("elsewhere", "S->S", 0.55),
        ("elsewhere", "T->T", 0.7),
        ("later", "S->S", 0.5),
        ("later", "T->T", 0.53),
    ):
        correct = noise.random(400) < share
        common = {**spent(row), "task": f"story_{task}", "direction": direction}
        scored.append({**common, "metric": "accuracy", "value": float(correct.mean()), "n_items": 400})
        scored.append({**common, "metric": "chance", "value": 0.5, "n_items": 400})
        for item in range(3):
            own = {k: common[k] for k in ("run_id", "arm", "size", "step", "task", "direction")}
            single.append({**own, "item": f"i{item}", "correct": bool(correct[item]), "scores": "[-1.0, -1.2]"})
    return scored, single


def graded_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    loss = true_loss(row["arm"], row["num_params"], row["tokens"]) + OFFSETS["text"]
    own = np.random.default_rng(int(row["run_id"][:3]))  # of its own, so that no other number changes
    share = own.binomial(GRADED_ITEMS, float(OF_LOSS.predict(loss))) / GRADED_ITEMS
    values = {"accuracy": share, "chance": OF_LOSS.chance}
    common = {**spent(row), "task": GRADED, "direction": "T->T", "n_items": GRADED_ITEMS}
    return [{**common, "metric": metric, "value": value} for metric, value in values.items()]


BASIS = {
    "n": 12, "loss": "huber", "delta": 1e-3, "objective": 1.2e-4, "residual_spread": 0.002, "level": LEVEL,
    "interval_method": "bootstrap", "resamples": 200, "failed": 0,
}  # fmt: skip


def around(value: float, share: float = 0.05) -> tuple[float, float]:
    return value * (1 - share), value * (1 + share)


def surface(arm: str, target: str) -> SurfaceFit:
    gain = 1.0 if arm == "baseline" else math.sqrt(EFFICIENCY)
    law = LossSurface(E + OFFSETS[target], A / gain**ALPHA, B / gain**BETA, ALPHA, BETA)
    return SurfaceFit(
        **BASIS, warnings=("12 runs are few for 5 parameters",), law=law,
        intervals={k: around(v) for k, v in law.to_json().items()},
        on_bound=(), runner_ups=(), ranges={"num_params": (7e4, 1.32e6), "tokens": (1e6, 2e8), "flops": (1e13, 1e14)},
    )  # fmt: skip


def isoflop(arm: str, target: str) -> IsoflopFit:
    profiles = []
    for b, budget in enumerate(BUDGETS):
        n = best_params(arm, budget)
        floor = true_loss(arm, n, budget / 6 / n) + OFFSETS[target]
        status = "interior" if min(SIZES.values()) < n < max(SIZES.values()) else "below_smallest"
        inside = status == "interior"
        profiles.append(
            IsoflopProfile(
                flops_budget=budget, train_flops=budget, num_params=tuple(SIZES.values()), losses=(floor,) * 4,
                parabola=IsoflopParabola(floor, 0.03 + 0.005 * b, math.log(n)), status=status,
                optimal_params=n if inside else None,
                optimal_tokens=budget / 6 / n if inside else None, optimal_loss=floor if inside else None,
                optimal_params_interval=around(n, 0.2) if inside else None,
                optimal_loss_interval=around(floor, 0.003) if inside else None, interior_share=0.9,
            )
        )  # fmt: skip
    return IsoflopFit(**BASIS, curvature="shared", profiles=tuple(profiles), optimal_params=None, optimal_tokens=None)


def multiplier_curve(value: float, low: float, high: float) -> MultiplierCurve:
    flops = np.geomspace(1.3e13, 1e14, 9)
    losses = tuple(float(true_loss("baseline", best_params("baseline", c), c / 6 / best_params("baseline", c))) for c in flops)
    return MultiplierCurve(
        method="envelope", losses=losses, arm_flops=tuple(flops / value), baseline_flops=tuple(flops), multiplier=(value,) * 9,
        low=(low,) * 9, high=(high,) * 9, mean=value, mean_interval=(low, high), overlap=(losses[-1], losses[0]), level=LEVEL,
        resamples=200, failed=0, warnings=("3 budgets are few",),
    )  # fmt: skip


def shared_fit(arm: str, value: float) -> SharedFit:
    root = math.sqrt(value)
    sides = {"params": root, "data": root, "compute": value}
    intervals = {arm: {k: around(v, 0.06) for k, v in sides.items()}}
    return SharedFit(
        **BASIS, baseline="baseline", law=LossSurface(E, A, B, ALPHA, BETA), efficiencies={arm: sides}, intervals=intervals,
        tokens_meaning="train_flops / (6 num_params)",
    )  # fmt: skip


def fits_content(truth: Truth) -> dict[str, Any]:
    """fits.json: surfaces and profiles of the arms with four sizes, comparisons of lst_static."""
    arms = [a for a in truth.arms if a != "lst_curriculum"]
    fits = [
        {"arm": arm, "target": target, "n_kind": "num_params", "d_kind": "tokens", "flops_convention": "exact",
         "loss_surface": surface(arm, target).to_json(), "isoflop": isoflop(arm, target).to_json(), "warnings": []}
        for arm in arms for target in OFFSETS
    ]  # fmt: skip
    comparisons = []
    for arm in [a for a in arms if a != "baseline" and "baseline" in arms]:
        names = {"baseline": "baseline", "arm": arm, "target": "mixture"}
        if truth.multiplier is None:
            comparisons.append({**names, "warnings": ["the losses of the two arms do not overlap"]})
        else:
            shared = shared_fit(arm, truth.multiplier[0]).to_json()
            comparisons.append(
                {**names, "curve": multiplier_curve(*truth.multiplier).to_json(), "shared": shared, "warnings": []}
            )
    return {"fits": fits, "comparisons": comparisons} | (accuracy_content(arms) if truth.graded else {})


def accuracy_content(arms: list[str]) -> dict[str, Any]:
    """Laws of GRADED for each arm with four sizes, in the loss for all, in ln C for the baseline alone; of others a refusal."""
    laws = []
    for arm in arms:
        about = {"arm": arm, "task": GRADED, "direction": "T->T", "loss_target": "text", "chance": OF_LOSS.chance}
        refused = "no law of accuracy in flops: accuracy does not rise as FLOPs grow: no such law holds here."
        of_flops = form_fit("accuracy_of_flops", ChanceSigmoid(31.3, 0.9, 0.25), {"flops": (1e13, 1e14)})
        base = arm == "baseline"
        laws.append(
            about | {"flops_convention": "exact", "warnings": [] if base else [refused]}
            | {"of_loss": form_fit("accuracy_of_loss", OF_LOSS, {"loss": (3.6, 5.0)}), "of_loss_band": BAND_OF_LOSS}
            | {"of_flops": of_flops if base else None, "of_flops_band": None}
        )  # fmt: skip
    items = {"pairs": 12, "n_items": GRADED_ITEMS, "difference": 0.03, "interval": [0.01, 0.05], "level": LEVEL, "p": 0.01}
    names = {"baseline": "baseline", "arm": "lst_static", "task": GRADED, "direction": "T->T"}
    compared = [names | {"curve": accuracy_multiplier().to_json(), "items": items, "warnings": []}]
    compared.append(
        names
        | {
            "arm": "lst_curriculum",
            "curve": None,
            "items": None,
            "warnings": [
                "no compute multiplier in accuracy: arm 'lst_curriculum' has one amount of FLOPs; it needs two or more."
            ],
        }
    )
    return {"accuracy_laws": laws, "accuracy_comparisons": compared}


BAND_OF_LOSS = {
    "at": [3.6, 4.3, 5.0], "low": [0.85, 0.4, 0.255], "high": [0.9, 0.45, 0.275],
}  # fmt: skip


def form_fit(form: str, law: ChanceSigmoid, ranges: dict[str, tuple[float, float]]) -> dict[str, Any]:
    intervals = {"midpoint": around(law.midpoint, 0.01), "slope": (law.slope - 0.2, law.slope + 0.2)}
    told = BASIS | {"loss": "binomial", "delta": None}
    return FormFit(**told, form=form, law=law, intervals=intervals, ranges=ranges, extra={"dispersion": 1.1}).to_json()


def accuracy_multiplier() -> AccuracyMultiplier:
    """1.3 with a band that is open at its upper end for the highest accuracy."""
    return AccuracyMultiplier(
        accuracies=(0.4, 0.5, 0.6), multiplier=(1.3, 1.3, 1.3), low=(1.1, 1.1, 1e-30), high=(1.5, 1.6, 1e30), mean=1.3,
        mean_interval=(1.12, 1e30), by_scale={"sigmoid": 1.3, "linear": 1.28}, slope_interval=(-0.2, 0.3), overlap=(0.4, 0.6),
        level=LEVEL, draws=200, undetermined=0.08, warnings=("seed_sd=0: the band knows no scatter between seeds",),
    )  # fmt: skip
