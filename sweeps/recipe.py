"""Named recipes: learning rate, batch and warm-up as functions of a run's size and length, the same for every arm.

A recipe sees the size (the baseline's parameters and width) and the length (tokens) of a match group, never the arm, so
that no arm is tuned more than another. Each has a source and the range it is meant for; outside it the plan warns. A
study may override single values. Not here: what a size is (`lst.ladder`), how long a run is (`sweeps.allocate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lst.config import OptimConfig
from lst.errors import ConfigError, did_you_mean
from lst.schedule import DECAY_SHAPES, SCHEDULES
from sweeps.recipe_table import RecipeTable, read_recipe_table

TABLE = "table"  # the recipe.name of a user's table
PAPER_DECAY = 0.1  # weight decay (PAPER: A.3)


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """Which recipe, and what of it is overridden (null = as the recipe says)."""

    name: str = "small"  # a key of RECIPES, or table
    table: str = ""  # name=table: a CSV, YAML or JSON file of hyperparameters by size and budget (sweeps.recipe_table)
    lr: float | None = None  # peak learning rate
    lr_scale: float = 1.0  # factor on the peak learning rate (for triplets of learning rates)
    batch_sequences: int | None = None  # sequences of a global batch
    batch_scale: float = 1.0  # factor on the recipe's batch
    warmup_steps: int | None = None  # linear warm-up, steps
    weight_decay: float | None = None  # of AdamW; null: the table's, else 0.1 (PAPER: A.3)
    final_lr_ratio: float = OptimConfig.final_lr_ratio  # the schedule ends at this share of the peak (PAPER: A.3)
    schedule: str = OptimConfig.schedule  # cosine | wsd
    decay_share: float = OptimConfig.decay_share  # wsd: share of the steps that decays
    decay_shape: str = OptimConfig.decay_shape  # wsd: sqrt | linear
    share_trunk: bool = False  # wsd: one run for all budgets of a size, arm and seed, at the longest one's hyperparameters

    def validate(self) -> None:
        if self.name not in (*RECIPES, TABLE):
            raise ConfigError(f"recipe.name='{self.name}' is unknown; {did_you_mean(self.name, (*RECIPES, TABLE))}")
        if (self.name == TABLE) != bool(self.table):
            raise ConfigError(
                f"recipe.name='{self.name}' and recipe.table='{self.table}' do not fit; a table of your own needs both: "
                f"recipe.name={TABLE} recipe.table=FILE.csv."
            )
        for key in ("lr", "lr_scale", "batch_sequences", "batch_scale"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"recipe.{key}={value} must be a positive number.")
        if self.weight_decay is not None and not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"recipe.weight_decay={self.weight_decay} must be a finite number, 0 or more.")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"recipe.warmup_steps={self.warmup_steps} is negative; give 0 for no warm-up.")
        for key, known in (("schedule", SCHEDULES), ("decay_shape", DECAY_SHAPES)):
            value = getattr(self, key)
            if value not in known:
                raise ConfigError(f"recipe.{key}='{value}' is unknown; {did_you_mean(value, known)}")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(f"recipe.decay_share={self.decay_share} must lie in (0, 1].")
        if self.share_trunk and self.schedule != "wsd":
            raise ConfigError(
                "recipe.share_trunk=true needs recipe.schedule=wsd: a cosine's learning rates depend on the run's length."
            )
        for key in ("decay_share", "decay_shape"):
            if self.schedule != "wsd" and getattr(self, key) != getattr(OptimConfig, key):
                raise ConfigError(f"recipe.{key}={getattr(self, key)} has no meaning for a cosine; set recipe.schedule=wsd.")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a recipe may look at."""

    size: str  # the rung's name
    num_params: int  # all parameters of the baseline of this size
    num_non_embedding_params: int  # of the same
    width: int  # width of the global transformer
    tokens: float  # tokens of the run, about (FLOPs budgets: budget / 6 N)
    seq_len_units: int  # units of a sequence


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe."""

    name: str
    source: str  # where it comes from
    num_params_range: tuple[float, float]  # parameters it is meant for
    tokens_range: tuple[float, float]  # run lengths it is meant for
    lr: Callable[[Situation], float]
    batch_units: Callable[[Situation], float]
    warmup_steps: Callable[[int], int]  # steps of the run -> steps of warm-up
    weight_decay: float = PAPER_DECAY  # of AdamW
    outside: str | None = None  # why the situation lies outside, where that is known already


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """A recipe's answer for one match group."""

    recipe: str
    lr: float
    batch_sequences: int
    warmup_steps: Callable[[int], int]
    weight_decay: float
    outside: str  # why the situation lies outside the recipe's range, or ""


PAPER_WARMUP = 2_000  # steps (PAPER: A.3)


def short_warmup(steps: int) -> int:
    """The paper's 2,000 steps, in a short run 5% of it."""
    return min(PAPER_WARMUP, max(1, round(0.05 * steps)))


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="paper",
            source="LST paper, A.3: peak LR 4e-4, 524,288 units a batch, 2,000 warm-up steps, given for its 1B model",
            num_params_range=(4e8, 2e9),
            tokens_range=(2e10, 1e12),
            lr=lambda _: 4e-4,
            batch_units=lambda _: 524_288,
            warmup_steps=lambda _: PAPER_WARMUP,
        ),
        Recipe(
            name="step_law",
            source=(
                "arXiv 2503.04715, fitted on language models of 60M to 1B non-embedding parameters, 2B to 100B tokens: peak LR "
                "1.79 N^-0.713 D^0.307, batch 0.58 D^0.571 tokens, N without embeddings; the warm-up is ours: 2,000 steps as in "
                "the LST paper, 5% of a short run"
            ),
            num_params_range=(6e7, 1.5e9),
            tokens_range=(2e9, 1e11),
            lr=lambda s: 1.79 * s.num_non_embedding_params**-0.713 * s.tokens**0.307,
            batch_units=lambda s: 0.58 * s.tokens**0.571,
            warmup_steps=short_warmup,
        ),
        Recipe(
            name="deepseek",
            source=(
                "arXiv 2401.02954, fitted on language models at 1e17 to 2e19 FLOPs: peak LR 0.3118 C^-0.125, batch 0.292 "
                "C^0.3271 tokens, C about 6 N D without embeddings; the warm-up is ours: 2,000 steps, 5% of a short run"
            ),
            num_params_range=(1e7, 1e9),
            tokens_range=(1e8, 3e10),
            lr=lambda s: 0.3118 * (6.0 * s.num_non_embedding_params * s.tokens) ** -0.125,
            batch_units=lambda s: 0.292 * (6.0 * s.num_non_embedding_params * s.tokens) ** 0.3271,
            warmup_steps=short_warmup,
        ),
        Recipe(
            name="small",
            source=(
                "chosen by hand from a few runs of both arms at 3e11 FLOPs on a CPU, not fitted: batch 1.2 sqrt(tokens) "
                "units (a critical batch that grows with the data's square root), LR 8e-3 sqrt(64 / width), warm-up over 5% of "
                "the steps"
            ),
            num_params_range=(3e4, 5e6),
            tokens_range=(5e3, 2e7),
            lr=lambda s: 8e-3 * math.sqrt(64 / s.width),
            batch_units=lambda s: 1.2 * math.sqrt(s.tokens),
            warmup_steps=lambda steps: max(1, round(0.05 * steps)),
        ),
    )
}


def choose_hyperparameters(choice: RecipeConfig, situation: Situation) -> Hyperparameters:
    """The values of `choice` in `situation`; learning rates are rounded to 6 digits so that they read well.

    Raises ConfigError where the choice names a table that cannot be read.
    """
    recipe = _of_table(_read(choice.table), situation) if choice.name == TABLE else RECIPES[choice.name]
    fixed_warmup = choice.warmup_steps
    decay = recipe.weight_decay if choice.weight_decay is None else choice.weight_decay
    batch = recipe.batch_units(situation) * choice.batch_scale / situation.seq_len_units
    return Hyperparameters(
        recipe=recipe.name,
        lr=float(f"{(choice.lr or recipe.lr(situation)) * choice.lr_scale:.6g}"),
        batch_sequences=choice.batch_sequences or max(1, round(batch)),
        warmup_steps=recipe.warmup_steps if fixed_warmup is None else lambda _: fixed_warmup,
        weight_decay=decay,
        outside=_outside(recipe, situation) if recipe.outside is None else recipe.outside,
    )


def recipe_text(choice: RecipeConfig, arms: int) -> str:
    """Where a study's hyperparameters come from, and that no arm is tuned more than another."""
    source = _read(choice.table).text if choice.name == TABLE else f"{choice.name} ({RECIPES[choice.name].source})"
    fixed = [f"{key}={value:g}" for key in FIXED if (value := getattr(choice, key)) is not None]
    scaled = [f"{key}={value:g}" for key in ("lr_scale", "batch_scale") if (value := getattr(choice, key)) != 1]
    by_hand = f"; by hand: {', '.join(fixed + scaled)}" if fixed or scaled else ""
    alike = "every arm" if arms > 1 else "the arm"
    return f"{source}{by_hand}. The same function of size and length for {alike}, so that none is tuned more than another"


FIXED = ("lr", "batch_sequences", "warmup_steps", "weight_decay")
"""Fields of RecipeConfig that stand in the place of what the recipe says."""


def _read(table: str) -> RecipeTable:
    path = Path(table)
    return _read_once(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=8)
def _read_once(path: Path, changed: int) -> RecipeTable:
    """As often as the file was changed, and not for each row."""
    return read_recipe_table(path)


def _of_table(table: RecipeTable, situation: Situation) -> Recipe:
    """The table's answer in one situation, as a recipe."""
    place, budget = table.place(situation.size, situation.num_params), 6.0 * situation.num_params * situation.tokens
    lr, batch, warmup, decay = (table.value(key, place, budget) for key in ("lr", "batch_units", "warmup_steps", "weight_decay"))
    assert lr is not None, "a table has it in every row"
    assert batch is not None, "a table has it in every row"
    return Recipe(
        name=table.recipe,
        source=table.text,
        num_params_range=(0.0, math.inf),
        tokens_range=(0.0, math.inf),
        lr=lambda _: lr,
        batch_units=lambda _: batch,
        warmup_steps=short_warmup if warmup is None else lambda _: round(warmup),
        weight_decay=PAPER_DECAY if decay is None else decay,
        outside=table.outside(place, budget),
    )


def _outside(recipe: Recipe, situation: Situation) -> str:
    checks = (
        ("parameters", situation.num_params, recipe.num_params_range),
        ("tokens", situation.tokens, recipe.tokens_range),
    )
    return "; ".join(
        f"{value:.3g} {name} lie outside {low:.3g} to {high:.3g}"
        for name, value, (low, high) in checks
        if not low <= value <= high
    )
