"""A study's folder, read: the tables of earlier stages as they are, and a stated gap for each one that is missing.

Not here: what the numbers say (`answer`), how they look (`figures`, `tables`). Only plan.csv is indispensable; a file
that is missing leaves an empty table and a sentence in `Study.gaps`, a damaged one is a DataError that names it.
The files and their columns are documented in docs/run_folder.md and docs/columns.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.basis import TOKENS_PER_SECOND
from analysis.columns import TEXT_COLUMNS
from lst.errors import DataError
from reports.laws import Fits, read_fits

ARMS = ("baseline", "bpe", "lst_static", "lst_aligned", "lst_mixed", "lst_curriculum")
BASELINE = "baseline"
CONDITIONAL_ARMS = ("lst_aligned",)
"""Arms whose patch boundaries are made from the future: their losses are conditional and never compared (DESIGN rule 2)."""

GROUPS = ("embedding", "encoder", "global", "decoder", "head")
TARGETS = {
    "mixture": ("heldout_mixture", "nats_per_token"),
    "speech": ("heldout_speech", "nats_per_token"),
    "text": ("heldout_text", "nats_per_token"),
    "interleaved": ("heldout_interleaved", "nats_per_token"),
}
"""Target -> task and metric of results.csv."""

STORY_PREFIX = "story_"
KEYS = ("run_id", "arm", "size")


def is_conditional(arm: str) -> bool:
    """Whether an arm, or a variant of it (ARM:NAME), is one of CONDITIONAL_ARMS."""
    return arm.partition(":")[0] in CONDITIONAL_ARMS


def _names(words: str) -> list[str]:
    return words.split()


PLAN_COLUMNS = _names(
    "run_id study kind arm size num_params num_non_embedding_params num_params_global matching match_group flops_budget "
    "planned_flops flops_convention steps seq_len_units context_match units tokens text_tokens text_only_tokens "
    "speech_tokens patch_size mean_patch_length tokens_per_param speech_epochs corpus_passes lr batch_units seed recipe "
    "data_id est_minutes status reason"
)
RUN_COLUMNS = _names(
    "run_id state reason step steps train_flops units tokens text_tokens speech_tokens seconds final_loss excluded"
)
RESULT_COLUMNS = _names(
    "run_id arm size step train_flops units text_tokens speech_tokens task direction metric value n_items evaluation "
    "items_id options score conditional"
)
ATTEMPT_COLUMNS = _names("run_id attempt job_id submitted started ended state cause")
CURVE_COLUMNS = _names("run_id step train_flops loss loss_text loss_speech lr grad_norm tokens")
PAIR_COLUMNS = _names(
    "arm size flops_budget task direction n_items accuracy baseline_accuracy difference low high level only_arm only_baseline "
    "p_value p_holm"
)
ITEM_COLUMNS = _names("run_id arm size step task direction item correct scores")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What earlier stages left, as tables. A column that a file lacks is there and empty."""

    folder: Path
    plan: pd.DataFrame  # a row a planned run, refused ones included
    runs: pd.DataFrame  # the plan's rows with what each run did: state, spent FLOPs and tokens, exclusion
    results: pd.DataFrame  # evaluations
    attempts: pd.DataFrame
    curves: pd.DataFrame  # training records
    items: pd.DataFrame  # story-completion items
    item_pairs: pd.DataFrame  # arms against the baseline on the same items
    fits: Fits
    references: dict[str, dict[str, float]]  # modality -> {unigram, trigram (nats), n_items}
    config: dict[str, Any]  # study.yaml
    versions: dict[str, list[str]]  # package -> the versions that runs were trained with
    gaps: tuple[str, ...]  # what is missing, in sentences

    @property
    def name(self) -> str:
        """The study's name as planned."""
        named = [n for n in self.plan["study"].dropna().astype(str) if n]
        return str(named[0] if named else self.config.get("study") or self.folder.name)

    @property
    def arms(self) -> list[str]:
        """The plan's arms, known ones in the order of ARMS; variants come after."""
        present = list(dict.fromkeys(self.plan["arm"].astype(str)))
        return [a for a in ARMS if a in present] + sorted(a for a in present if a not in ARMS)

    def usable(self) -> pd.DataFrame:
        """Runs that are complete and not excluded."""
        excluded = self.runs["excluded"].fillna("").astype(str).str.strip() != ""
        return self.runs[(self.runs["state"] == "done") & ~excluded]

    def final(self, target: str) -> pd.DataFrame:
        """The last evaluation of `target` of each usable run, joined to its row of `runs`: column `loss` (nats a token); `flops`
        and `speech_seconds` as the fits count them."""
        task, metric = TARGETS[target]
        rows = self.results[(self.results["task"] == task) & (self.results["metric"] == metric)]
        rows = rows.dropna(subset=["value", "step"]).sort_values(["run_id", "step"]).groupby("run_id", sort=False).tail(1)
        columns = {"value": "loss", "train_flops": "evaluated_flops"}
        joined = self.usable().merge(rows[["run_id", "value", "train_flops", "n_items"]].rename(columns=columns), on="run_id")
        joined["flops"] = joined["evaluated_flops"].fillna(joined["train_flops"]).fillna(joined["planned_flops"])
        joined["speech_seconds"] = joined["speech_tokens"] / TOKENS_PER_SECOND
        if self.fits.six_nd is not None:
            n, d = (joined[kind] for kind in self.fits.six_nd)
            joined["flops"] = 6 * n * d
        return joined.dropna(subset=["flops"]).reset_index(drop=True)


def read_study(folder: Path) -> Study:
    """Read `folder`. Raises DataError where there is no plan.csv or a file is damaged."""
    if not (folder / "plan.csv").is_file():
        raise DataError(f"'{folder}' holds no plan.csv, so it is no study; give the folder that plan-sweep wrote (out=DIR).")
    gaps: list[str] = []
    plan = _with_columns(_read_table(folder / "plan.csv", KEYS), PLAN_COLUMNS)
    if plan.empty:
        raise DataError(f"'{folder / 'plan.csv'}' has no rows; plan the study anew with plan-sweep.")
    optional = {
        "results.csv": (RESULT_COLUMNS, "held-out losses and story completion"),
        "runs.csv": (RUN_COLUMNS, "run states and spent FLOPs"),
        "attempts.csv": (ATTEMPT_COLUMNS, "attempts"),
        "curves.parquet": (CURVE_COLUMNS, "training curves"),
        "items.parquet": (ITEM_COLUMNS, "single story-completion items"),
    }
    tables = {}
    for name, (columns, what) in optional.items():
        path = folder / name
        tables[name] = _with_columns(_read_table(path, ("run_id",)) if path.is_file() else pd.DataFrame(), columns)
        if not path.is_file():
            gaps.append(f"{name} is missing, so {what} are not shown: run fit-scaling collect on this folder.")
    paired = folder / "item_pairs.csv"  # earlier versions wrote none, and a study without items has no rows
    pairs = _with_columns(_read_table(paired, ("run_id",)) if paired.is_file() else pd.DataFrame(), PAIR_COLUMNS)
    fits = read_fits(folder / "fits.json")
    if not (folder / "fits.json").is_file():
        gaps.append(
            "fits.json is missing, so no fitted law and no compute multiplier is shown: run fit-scaling fit on this folder."
        )
    if outdated := fits.outdated(folder):
        gaps.append(
            f"fits.json was fitted to another {' and '.join(outdated)}, so its laws are not of these points: "
            "run fit-scaling fit again."
        )
    references = _read_references(folder / "references.json")
    if not references:
        gaps.append(
            "references.json is missing, so no unigram and trigram references are shown: run plan-sweep again on this folder."
        )
    return Study(
        folder=folder,
        plan=plan,
        runs=_runs(plan, tables["runs.csv"]),
        results=tables["results.csv"],
        attempts=tables["attempts.csv"],
        curves=tables["curves.parquet"],
        items=tables["items.parquet"],
        item_pairs=pairs,
        fits=fits,
        references=references,
        config=_read_yaml(folder / "study.yaml", gaps),
        versions=_versions(folder, plan),
        gaps=tuple(gaps),
    )


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dicts by column."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def _read_table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    """A CSV or Parquet table; identifiers stay text ('12e4' is a run, not a number)."""
    if path.suffix == ".csv" and path.is_file() and not path.read_bytes().endswith(b"\n"):
        raise DataError(f"'{path}' is torn (its last line has no end); run the stage that writes it again.")
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), keep_default_na=False, na_values=["", "nan"])
    except (OSError, ValueError) as problem:  # pandas' and pyarrow's parser errors are ValueErrors
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise DataError(f"'{path}' cannot be read ({reason}); delete it and run the stage that writes it again.") from problem
    missing = [name for name in needed if name not in table.columns]
    if missing and len(table.columns):
        raise DataError(f"'{path}' has no column '{missing[0]}'; run the stage that writes it again.")
    return table


def _with_columns(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """`table` with the columns that it lacks added empty, numbers as numbers."""
    table = table.copy()
    for name in columns:
        if name not in table.columns:
            table[name] = pd.Series([None] * len(table), dtype="object" if name in TEXT_COLUMNS else "float64", index=table.index)
        elif name not in TEXT_COLUMNS and name not in ("correct", "conditional"):
            table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def _runs(plan: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Each planned run with what it did; planned totals stay as `planned_*`. A run without a record is 'refused' or 'planned'."""
    spent = [c for c in RUN_COLUMNS if c in plan.columns and c != "run_id"]
    joined = plan.rename(columns={c: f"planned_{c}" for c in spent})
    joined = joined.merge(runs[RUN_COLUMNS].drop_duplicates("run_id"), on="run_id", how="left")
    refused = joined["status"].fillna("").isin(("refused",))
    joined["state"] = joined["state"].fillna(refused.map({True: "refused", False: "planned"}))
    joined["reason"] = joined["reason"].fillna(joined["planned_reason"])
    return joined


def _read_references(path: Path) -> dict[str, dict[str, float]]:
    if not path.is_file():
        return {}
    content = read_json(path)
    return {
        str(k): {str(n): float(x) for n, x in v.items() if isinstance(x, int | float)}
        for k, v in content.items()
        if isinstance(v, dict)
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise DataError(
            f"'{path}' is no readable JSON ({problem}); delete it and run the stage that writes it again."
        ) from problem
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds no JSON object; delete it and run the stage that writes it again.")
    return content


def _read_yaml(path: Path, gaps: list[str]) -> dict[str, Any]:
    if not path.is_file():
        gaps.append("study.yaml is missing, so the study's settings and its data set's card are not shown.")
        return {}
    from omegaconf import OmegaConf  # the one YAML reader of the project: PyYAML reads 1e18 as a string

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as problem:  # omegaconf passes on whatever its YAML parser raises
        reason = str(problem).splitlines()[0]
        raise DataError(f"'{path}' is no readable YAML ({reason}); plan the study anew with plan-sweep.") from problem
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}


def _versions(folder: Path, plan: pd.DataFrame) -> dict[str, list[str]]:
    """Package -> versions, from the exit records of the planned runs; runs without one add nothing."""
    seen: dict[str, set[str]] = {}
    for run_id in plan["run_id"].astype(str):
        path = folder / "runs" / run_id / "exit.json"
        if "/" in run_id or not path.is_file():
            continue
        versions = read_json(path).get("versions")
        for package, version in (versions if isinstance(versions, dict) else {}).items():
            seen.setdefault(str(package), set()).add(str(version))
    return {package: sorted(seen[package]) for package in sorted(seen)}
