"""Everything that is fitted to a study: tables of `fit-scaling collect` in, fits.json out (its shape: docs/fitting.md).

For each arm and target (held-out losses on the mixture, on speech, on text) a loss surface, isoFLOP profiles and L(C);
each arm against the baseline; story accuracies; references. What the data refuse is a sentence in `warnings`, and the
study goes on. Arms whose patches are made from the future (lst_aligned) have conditional losses: fitted, labelled, never
compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.accuracy_study import accuracy_parts
from analysis.arm_tests import exponent_test
from analysis.basis import TOKENS_PER_SECOND
from analysis.checks import held_out, influence, influence_warning, noise_parts
from analysis.collect import RESULTS, RUNS, made_anew, read_plan
from analysis.columns import TEXT_COLUMNS
from analysis.compare import ENVELOPE, LAW, LAW_ASYMPTOTE_BUDGETS, compute_multiplier
from analysis.diagnose import HUBER, check_options, chosen_delta
from analysis.exclude import LOSS_METRIC
from analysis.fit import fit_loss_surface, fit_power_law
from analysis.isoflop import CUBIC, CURVATURES, PARABOLA, fit_isoflop
from analysis.laws import LossSurface
from analysis.pairs import paired_differences
from analysis.shared import COMPUTE, SEPARATE, fit_shared_exponents
from analysis.table_files import require_whole
from lst import records
from lst.errors import FitError, did_you_mean

FITS, REFERENCES = "fits.json", "references.json"
TARGETS = {
    "mixture": "heldout_mixture",  # speech, text and interleaved jointly, in the mixture of training
    "speech": "heldout_speech",
    "text": "heldout_text",
    "interleaved": "heldout_interleaved",
}
CONDITIONAL_ARMS = ("lst_aligned",)
"""With their variants (`is_conditional`)."""
N_KINDS = {"total": "num_params", "non_embedding": "num_non_embedding_params", "global": "num_params_global"}
D_KINDS = {"tokens": "tokens", "units": "units", "seconds": "speech_seconds"}
C_KINDS = ("exact", "six_nd")
GROUPS = ("embedding", "encoder", "global", "decoder", "head")
NAMED, STRONG = 10, float(np.log(1.25))
"""Influential runs that are listed, and the change of ln N* from which one is a warning: a quarter."""
TEST_RESAMPLES = 400
"""Simulated studies of a test at most: its p-value needs no more digits."""
SPENT_TOLERANCE = 0.01
"""Spent FLOPs that differ from the plan by more than this share are told."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What the user may choose (key=value on the command line); printed with every result."""

    n: str = "total"  # which parameters N counts: total | non_embedding | global
    d: str = "tokens"  # which length D counts: tokens | units | seconds (of speech)
    c: str = "exact"  # which C: exact (FLOPs as spent) | six_nd (6 N D of the N and D chosen)
    baseline: str = "baseline"  # the arm that others are compared with
    loss: str = HUBER  # huber | squares | absolute | loss_squares
    delta: float = 1e-3  # Huber's threshold on log residuals
    curvature: str = "auto"  # isoFLOP parabolas: auto | shared | trend | per_budget
    shape: str = "parabola"  # isoFLOP profiles: parabola | cubic in log N
    method: str = "envelope"  # compute multiplier: envelope | law
    resamples: int = 1000  # bootstrap refits; 0 = no intervals
    level: float = 0.9  # nominal coverage of intervals
    seed: int = 0  # of the bootstrap's generator

    def validate(self) -> None:
        for name, known in (("n", N_KINDS), ("d", D_KINDS), ("c", C_KINDS)):
            if getattr(self, name) not in known:
                raise FitError(f"{name}={getattr(self, name)} is unknown; {did_you_mean(str(getattr(self, name)), known)}")
        shapes = {"curvature": CURVATURES, "shape": (PARABOLA, CUBIC), "method": (ENVELOPE, LAW)}
        for name, of in shapes.items():
            if getattr(self, name) not in of:
                raise FitError(f"{name}={getattr(self, name)} is unknown; {did_you_mean(str(getattr(self, name)), of)}")
        chosen_delta(self.loss, self.delta)
        check_options(self.resamples, self.level)
        if (self.c, self.d) == ("six_nd", "seconds"):
            raise FitError(
                "c=six_nd counts 6 FLOPs a parameter and token; it cannot go with d=seconds: choose d=tokens or c=exact."
            )
        if self.seed < 0:
            raise FitError(f"seed={self.seed} is negative; give 0 or more.")

    @property
    def columns(self) -> dict[str, Any]:
        """Names of the columns that N and D are."""
        return {"params": N_KINDS[self.n], "tokens": D_KINDS[self.d]}

    @property
    def kinds(self) -> dict[str, str]:
        """What N, D and C are, as every entry of fits.json says it."""
        return {"n_kind": N_KINDS[self.n], "d_kind": D_KINDS[self.d], "flops_convention": self.c}

    def prepared(self, table: pd.DataFrame) -> pd.DataFrame:
        """`table` with the seconds of speech, and with the C chosen in train_flops."""
        found = table.copy()
        if self.d == "seconds" and "speech_tokens" in table:
            found["speech_seconds"] = table["speech_tokens"] / TOKENS_PER_SECOND
        if self.c == "six_nd" and {N_KINDS[self.n], D_KINDS[self.d]} <= set(table):
            found["train_flops"] = 6.0 * table[N_KINDS[self.n]] * table[D_KINDS[self.d]]
        return found

    @property
    def robust(self) -> dict[str, Any]:
        return {"objective": self.loss, "delta": self.delta}

    @property
    def bootstrap(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "level": self.level}


NEEDED = {RESULTS: {"task", "metric", "branch", "run_id", "step", "value"}, RUNS: {"run_id", "state", "excluded", "spent_flops"}}


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table that `collect` wrote. Raises FitError where it is missing, damaged, or an earlier version's."""
    path, anew = folder / name, made_anew(folder)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        raise FitError(f"'{path}' is missing; {anew}") from error
    except ValueError as error:
        raise FitError(f"'{path}' is no readable table ({str(error).splitlines()[0]}); {anew}") from error
    require_whole(path, table, anew)
    for column in NEEDED.get(name, set()) - set(table.columns):
        raise FitError(f"'{path}' has no column '{column}', so an earlier version wrote it; {anew}")
    return table


def final_losses(runs: pd.DataFrame, results: pd.DataFrame, target: str) -> pd.DataFrame:
    """Runs that enter fits, with the target's loss at their final step in column `loss` and exact FLOPs in `train_flops`."""
    used = runs[(runs["state"] == "done") & runs["excluded"].isna()]
    branches = set(runs["run_id"][runs["kind"] == "branch"]) if "kind" in runs else set()
    own = results["branch"].isna() | results["run_id"].isin(branches)  # of the run's own path, or of a branch that has a row
    rows = results[(results["task"] == TARGETS[target]) & (results["metric"] == LOSS_METRIC) & own]
    joined = used.merge(rows[["run_id", "step", "value"]].rename(columns={"value": "loss"}), on=["run_id", "step"])
    return joined[joined["loss"].notna()].reset_index(drop=True)


def fit_study(folder: Path, options: FitOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """The content of fits.json. Raises FitError where nothing is collected or no run is complete; writes nothing."""
    options.validate()
    fitted = {name: records.file_sha256(folder / name) for name in (RUNS, RESULTS) if (folder / name).is_file()}
    plan, runs, results = pd.DataFrame(read_plan(folder)), read_table(folder, RUNS), read_table(folder, RESULTS)
    arms = list(dict.fromkeys(runs["arm"]))
    if not len(runs) or not ((runs["state"] == "done") & runs["excluded"].isna()).any():
        told = ", ".join(f"{count} {reason}" for reason, count in runs["state"].value_counts().items())
        raise FitError(
            f"no run in '{folder}' can enter a fit ({told or 'the plan is empty'}); see the column `excluded` of runs.csv."
        )
    if options.baseline not in [FitOptions.baseline, *arms]:
        raise FitError(f"baseline={options.baseline} is no arm of '{folder}'; {did_you_mean(options.baseline, arms)}")
    several = options.baseline in arms or len(arms) > 1  # an imported study of one arm has nothing to compare
    compared = [a for a in arms if several and a != options.baseline and not is_conditional(a)]
    tables = {target: options.prepared(final_losses(runs, results, target)) for target in TARGETS}
    jobs: list[tuple[str, Callable[[], Any]]] = []
    for target, table in tables.items():
        if len(table):
            jobs += [("fits", partial(arm_fit, table, arm, target, options)) for arm in arms if (table["arm"] == arm).any()]
            jobs.append(("comparisons", partial(comparisons, table, compared, target, options)))
    content: dict[str, Any] = {"format": 1, "options": asdict(options), "fits": [], "comparisons": []}
    for done, (kind, job) in enumerate(jobs):
        found = job()
        content[kind] += found if isinstance(found, list) else [found]
        if progress is not None:
            progress(done + 1, len(jobs))
    of_accuracy = accuracy_parts(folder, runs, results, tables, compared, options)
    warnings = [*spending_warnings(runs), *of_accuracy.pop("warnings")]
    return content | {
        "not_compared": [{"arm": a, "reason": "conditional"} for a in arms if is_conditional(a)],
        **of_accuracy,
        "references": references(folder, tables),
        "flop_shares": flop_shares(plan),
        "excluded": [{"run_id": r.run_id, "reason": r.excluded} for r in runs[runs["excluded"].notna()].itertuples()],
        "warnings": warnings,
        "tables": fitted,
    }


def attempted(warnings: list[str], what: str, fit: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any] | None:
    """The fit's JSON without samples, or None with its refusal among `warnings`."""
    found = tried(warnings, what, fit, *arguments, **options)
    return None if found is None else _light(found)


def tried(warnings: list[str], what: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `work` returns, or None with its refusal among `warnings`."""
    try:
        return work(*arguments, **options)
    except FitError as refusal:
        warnings.append(f"no {what}: {refusal}")
        return None


def _light(fit: Any) -> dict[str, Any]:
    content: dict[str, Any] = fit.to_json()
    content.pop("samples", None)
    return content


def _generator(options: FitOptions, *names: str) -> np.random.Generator:
    """A generator of its own for each fit, so that one more arm or target changes no other interval."""
    return np.random.default_rng([options.seed, *"/".join(names).encode()])


def is_conditional(arm: str) -> bool:
    """Whether the losses of an arm, or of a variant of it (ARM:NAME), are made from the future."""
    return arm.partition(":")[0] in CONDITIONAL_ARMS


def arm_fit(table: pd.DataFrame, arm: str, target: str, options: FitOptions) -> dict[str, Any]:
    """One entry of "fits": loss surface, isoFLOP profiles and L(C) of an arm and target."""
    rows = table[table["arm"] == arm]
    warnings: list[str] = []
    if is_conditional(arm):
        warnings.append(
            "conditional losses: the patches' boundaries are made from the future; never compare them with another arm's"
        )
    common = options.columns | options.bootstrap

    def rng(kind: str) -> np.random.Generator:
        return _generator(options, kind, arm, target)

    surface = attempted(warnings, "loss surface", fit_loss_surface, rows, **common, **options.robust, rng=rng("surface"))
    profile = common | {"curvature": options.curvature, "shape": options.shape}
    isoflop = attempted(warnings, "isoFLOP optimum", fit_isoflop, rows, **profile, rng=rng("isoflop"))
    best = best_per_budget(rows, isoflop)
    asymptote = len(best) >= LAW_ASYMPTOTE_BUDGETS
    settings = options.robust | options.bootstrap
    curve = attempted(warnings, "L(C)", fit_power_law, best, asymptote=asymptote, **settings, rng=rng("curve"))
    out = tried(warnings, "held-out budget", held_out, rows, **common, **options.robust, rng=rng("held out"))
    return {
        "arm": arm,
        "target": target,
        **options.kinds,
        "matching": sorted(set(rows["matching"].dropna())),
        "conditional": is_conditional(arm),
        "run_ids": rows["run_id"].tolist(),
        "loss_surface": surface,
        "isoflop": isoflop,
        "loss_curve": curve,
        "held_out": out,
        **checks(rows, surface, options, warnings),
        "warnings": warnings,
    }


def checks(rows: pd.DataFrame, surface: dict[str, Any] | None, options: FitOptions, warnings: list[str]) -> dict[str, Any]:
    """The most influential runs and the parts of the noise, of an arm that has a surface."""
    found: dict[str, Any] = {"influence": None, "noise": None}
    if surface is None:
        return found
    law = LossSurface.from_json(surface)
    residual = np.log(rows["loss"]) - np.log(law.predict(rows[options.columns["params"]], rows[options.columns["tokens"]]))
    found["noise"] = noise_parts(rows, residual.to_numpy(), len(law.names()), **options.columns)
    moved = tried(warnings, "influence of single runs", influence, rows, **options.columns, **options.robust)
    if moved is not None:
        found["influence"] = moved[:NAMED]
        warnings += influence_warning(moved, STRONG)
    return found


def best_per_budget(rows: pd.DataFrame, isoflop: dict[str, Any] | None) -> pd.DataFrame:
    """train_flops and loss of each budget's optimum: the parabola's minimum where it is interior, else the best run."""
    best = []
    minima = {p["flops_budget"]: p for p in (isoflop or {}).get("profiles", ()) if p["optimal_loss"] is not None}
    for budget, group in rows.groupby("flops_budget"):
        profile = minima.get(float(str(budget)))
        if profile is not None:
            best.append((profile["train_flops"], profile["optimal_loss"]))
        else:
            run = group.sort_values("loss", kind="stable").iloc[0]
            best.append((run["train_flops"], run["loss"]))
    return pd.DataFrame(best, columns=["train_flops", "loss"], dtype=float)


def comparisons(table: pd.DataFrame, arms: list[str], target: str, options: FitOptions) -> list[dict[str, Any]]:
    """The entries of "comparisons" of a target: each arm's multiplier curve, shared-exponent fits and paired differences."""
    known = [arm for arm in arms if (table["arm"] == arm).any()]
    together = table[table["arm"].isin([options.baseline, *known])]
    common = options.columns | options.bootstrap | {"baseline": options.baseline}
    trouble: list[str] = []
    shared: dict[str, dict[str, Any] | None] = {}
    for factors, rows in ((COMPUTE, together), (SEPARATE, several_sizes(together))):
        if known:
            rng, what = _generator(options, "shared", factors, target), f"shared-exponent fit ({factors})"
            chosen = common | options.robust | {"factors": factors, "rng": rng}
            shared[factors] = attempted(trouble, what, fit_shared_exponents, rows, **chosen)
    entries = []
    for arm in known:
        warnings = list(trouble)
        rng = _generator(options, "multiplier", arm, target)
        curve = attempted(
            warnings, "compute multiplier", compute_multiplier, table, arm, **common, method=options.method, rng=rng
        )
        matched = paired_differences(table, arm, baseline=options.baseline, level=options.level)
        tested = options.columns | {"baseline": options.baseline, "rng": _generator(options, "exponents", arm, target)}
        tested["resamples"] = min(options.resamples, TEST_RESAMPLES)
        exponents = (
            tried(warnings, "test of shared exponents", exponent_test, table, arm, **tested) if options.resamples else None
        )
        entries.append(
            {"baseline": options.baseline, "arm": arm, "target": target, **options.kinds}
            | {"curve": curve, "matched": matched, "warnings": warnings}
            | {"exponents": exponents, "shared": _of_arm(shared[COMPUTE], arm), "shared_separate": _of_arm(shared[SEPARATE], arm)}
        )
    return entries


def _of_arm(shared: dict[str, Any] | None, arm: str) -> dict[str, Any] | None:
    """A shared fit where it covers the arm."""
    return shared if shared is not None and arm in shared["efficiencies"] else None


def several_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of arms that have two sizes at some budget: others cannot tell parameter from data efficiency."""
    sizes = table.groupby(["arm", "flops_budget"])["num_params"].nunique().groupby("arm").max()
    return table[table["arm"].isin(sizes[sizes > 1].index)]


def references(folder: Path, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """references.json with, for each modality, the best run of each arm beside it; empty where the file is missing."""
    found = records.read_json(folder / REFERENCES) or {}
    for modality, of in found.items():
        table = tables.get(modality)
        if table is None or not isinstance(of, dict):
            continue
        rows = table.loc[table.groupby("arm", sort=False)["loss"].idxmin()] if len(table) else table
        of["best_runs"] = [
            {"arm": str(r.arm), "run_id": str(r.run_id), "loss": float(r.loss)}  # type: ignore[arg-type]
            | {f"beats_{name}": bool(r.loss < of[name]) for name in ("unigram", "trigram") if name in of}
            for r in rows.itertuples()
        ]
    return found


def flop_shares(plan: pd.DataFrame) -> list[dict[str, Any]]:
    """Each run's share of planned FLOPs by module group, where the plan has the columns flops_share_<group>."""
    columns = {group: f"flops_share_{group}" for group in GROUPS}
    if not set(columns.values()) <= set(plan.columns):
        return []
    shares = plan[list(columns.values())].apply(pd.to_numeric, errors="coerce")
    kept = plan[shares.notna().all(axis=1)]
    return [
        {"run_id": row.run_id, "arm": row.arm, "size": row.size_} | {g: float(getattr(row, c)) for g, c in columns.items()}
        for row in kept.rename(columns={"size": "size_"}).itertuples()
    ]


def spending_warnings(runs: pd.DataFrame) -> list[str]:
    """Runs whose spent FLOPs, those of branches included, differ from the plan's."""
    planned, spent = runs["planned_flops"], runs["spent_flops"].fillna(runs["train_flops"])
    if "planned_spent_flops" in runs:  # of a branch nothing: its run spends it, and the way to its weights is compared
        apart = runs["planned_spent_flops"] == 0
        planned = runs["planned_spent_flops"].where(~apart & runs["planned_spent_flops"].notna(), planned)
        spent = spent.where(~apart, runs["train_flops"])
    used = runs[(runs["state"] == "done") & planned.notna() & spent.notna()]
    off = spent[used.index] / planned[used.index] - 1
    return [
        f"run {run_id} spent {gap:+.1%} against its planned FLOPs"
        for run_id, gap in zip(used["run_id"], off, strict=True)
        if abs(gap) > SPENT_TOLERANCE
    ]


def write_fits(folder: Path, content: dict[str, Any]) -> None:
    """Replace fits.json; the same content gives the same bytes."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
    records.write_atomically(folder / FITS, text.encode())
