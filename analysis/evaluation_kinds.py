"""Evaluations of one task in several kinds: which of them are compared, and which count where there are many.

A run may be evaluated on a task more than once: on other items, in another context, by another score. Two evaluations are of one
kind where they agree in KIND, and only those compare. An arm counts by a kind that saw no alignment (`conditional`) where it has
one, and of these by that of most of its runs; two arms by the kind that most runs have of the arm that has fewer. Where as many
have several, that comes first which most runs of all arms have, then the plan's own (the trainer's), then that of most items. Not
here: what is made of accuracies (`analysis.accuracy`, `analysis.accuracy_study`), single items (`analysis.item_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lst.errors import FitError

KIND = ["items_id", "options", "score", "conditional"]
TASK = ["task", "direction"]


def with_kinds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of results.csv (or items.parquet) with the columns of KIND whole: text, "" where there is none, and a flag.

    An evaluation of a table that does not say its options is of a kind of its own.
    """
    whole = rows.reindex(columns=list(dict.fromkeys([*rows.columns, *KIND, "evaluation"]))).copy()
    unsaid = whole["options"].isna() & whole["evaluation"].notna()
    whole["options"] = whole["options"].mask(unsaid, "unknown options of evaluation " + whole["evaluation"].astype(str))
    for name in KIND[:-1]:
        whole[name] = whole[name].astype(object).where(whole[name].notna(), "").astype(str)
    whole["conditional"] = whole["conditional"].astype(str).str.lower().isin(("true", "1", "1.0"))
    return whole


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of accuracies (`with_kinds`), each with the place of its kind in its task and direction, `rank`, from 0."""
    own = rows["evaluation"].isna() if "evaluation" in rows else pd.Series(True, rows.index)
    table = rows.assign(other=~own).groupby([*TASK, *KIND], as_index=False, sort=False)
    kinds = table.agg(runs=("run_id", "nunique"), other=("other", "all"), most=("n_items", "max"))
    kinds = kinds.assign(runs=-kinds["runs"], most=-kinds["most"])
    kinds = kinds.sort_values(["conditional", "runs", "other", "most", "options", "items_id", "score"], kind="stable")
    kinds["rank"] = kinds.groupby(TASK).cumcount()
    return rows.merge(kinds[[*TASK, *KIND, "rank"]], on=[*TASK, *KIND])


def of_own_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows (`ranked`) of each arm's one kind of each task and direction: a law of an arm mixes none."""
    arm = [*TASK, "arm"]
    kinds = rows.groupby([*arm, "conditional", "rank"], as_index=False, sort=False).agg(runs=("run_id", "nunique"))
    kinds = kinds.sort_values(["conditional", "runs", "rank"], ascending=[True, False, True]).drop_duplicates(arm)
    return rows.merge(kinds[[*arm, "rank"]], on=[*arm, "rank"])


def of_common_kind(rows: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """The rows (`ranked`, of one task and direction) of the one kind that counts for all `arms`, of those that saw no alignment.

    Raises FitError where they have none in common.
    """
    of = {arm: rows[(rows["arm"] == arm) & ~rows["conditional"]] for arm in arms}
    runs = pd.DataFrame({arm: found.groupby("rank")["run_id"].nunique() for arm, found in of.items()}).dropna().min(axis=1)
    if not len(runs):
        told = "; ".join(f"{arm}: {_listed(found)}" for arm, found in of.items())
        raise FitError(f"the arms were evaluated in no common way ({told}); evaluate both on one item set by the same options.")
    best = runs[runs == runs.max()].index.min()
    return pd.DataFrame(rows[(rows["rank"] == best) & rows["arm"].isin(arms)]).reset_index(drop=True)


def choices(rows: pd.DataFrame) -> list[str]:
    """A sentence for each task and direction that was evaluated in several ways (`ranked` rows): which of them counts."""
    told = []
    for (task, direction), found in rows.groupby(TASK, sort=False):
        kinds = found.drop_duplicates("rank").sort_values("rank")
        if len(kinds) == 1:
            continue
        taken = of_own_kind(found)
        parts = []
        for rank in np.unique(taken["rank"]):
            of = taken[taken["rank"] == rank]
            arms = ", ".join(dict.fromkeys(of["arm"]))
            parts.append(f"{described(of.iloc[0])} (of {arms}: {of['run_id'].nunique()} runs)")
        told.append(
            f"{task} {direction} was evaluated in {len(kinds)} ways; of each arm counts one that saw no alignment, then the one "
            f"that most of its runs have: {'; '.join(parts)}"
        )
    return told


def lacking(rows: pd.DataFrame, taken: pd.DataFrame) -> list[str]:
    """A sentence where runs of `rows` have not the kind that was `taken` of them."""
    absent = sorted(set(rows["run_id"]) - set(taken["run_id"]))
    return [f"{len(absent)} runs were evaluated otherwise only, and left out: {', '.join(absent)}"] if absent else []


def described(row: Any) -> str:
    """A kind in words."""
    parts = [f"items {row['items_id']}"] if row["items_id"] else []
    parts.append(row["options"] or "the plan's own")
    parts += [f"by {row['score']}"] if row["score"] and "score=" not in row["options"] else []
    return ", ".join(parts) + (", under aligned patches" if row["conditional"] else "")


def _listed(rows: pd.DataFrame) -> str:
    kinds = rows.drop_duplicates("rank").sort_values("rank")
    return " or ".join(described(row) for _, row in kinds.iterrows()) or "under aligned patches alone"
