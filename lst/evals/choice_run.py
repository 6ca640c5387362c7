"""`python -m lst.evals choices CHECKPOINT items=DIR`: an item set on a checkpoint, in every direction that it allows.

    python -m lst.evals choices studies/mine/runs/0123456789ab items=items/hellaswag
    python -m lst.evals choices my-model items=items/swuggy score=loglik_sum out=results/swuggy

Results are those of docs/evaluation.md, in RUN/evals/TASK-<evaluation_id> or out=. A command that was interrupted goes on where
it was; one that is done says so. Items are scored in parts of PART, cut by their number alone, so neither an interruption nor the
number of processes that share them (shard=i/N) changes a bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lst.config import Patching, RunConfig
from lst.config_patching import require_noise
from lst.errors import ConfigError
from lst.plain import from_dict

if TYPE_CHECKING:
    from lst.data.boundary_noise import NoiseRange
    from lst.data.shards import Dataset
    from lst.evals.checkpoints import Checkpoint
    from lst.evals.choices import ChoiceOptions
    from lst.evals.heldout import Metric
    from lst.evals.item_set import ItemSet

PART = 256  # items of a part


@dataclass(frozen=True, kw_only=True)
class ChoiceRunConfig:
    """Options of `python -m lst.evals choices`, given as key=value."""

    items: str  # folder of an item set; or hellaswag_spoken_smoke, the small one that ships
    out: str = ""  # new folder; default: RUN/evals/TASK-<evaluation_id>
    shard: str = "1/1"  # i/N: this process makes every N-th part, from the i-th on; who finishes last joins them
    directions: str = ""  # as in S->S,T->T; default: all that the items allow
    score: str = "loglik_per_token"  # which score decides (docs/evaluation.md)
    join: str = "straddle"  # straddle | closed: may a patch reach over the join of prompt and ending
    context_tokens: int = 0  # ids of the longest sequence; 0 = no limit
    patching: str = "auto"  # of speech: auto (as the arm is evaluated), static or aligned
    boundary_noise_ms: str = "auto"  # LEAST,MOST: aligned borders of words are moved by so much (A.11); auto: as in the run
    limit: int = 0  # only the first so many items; 0 = all
    data: str = ""  # folder of the checkpoint's data set, if it was moved
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "float32"  # float32 | float64 | bfloat16
    batch_tokens: int = 0  # padded tokens of a forward pass; 0 = the run's

    def validate(self) -> ChoiceOptions:
        """The options of scoring. Raises ConfigError."""
        from lst.checks import require_choice
        from lst.evals.checkpoints import require_place
        from lst.evals.choices import DIRECTIONS, ChoiceOptions

        asked = [direction for direction in self.directions.split(",") if direction]
        for direction in asked:
            if direction.endswith("-"):
                raise ConfigError(
                    f"directions={self.directions} ends where a shell takes '>' for a file to write; put it in quotes, as in "
                    "'directions=T->T'."
                )
            require_choice("directions", direction, DIRECTIONS)
        if len(set(asked)) < len(asked):
            raise ConfigError(f"directions={self.directions} has a direction twice; give each once.")
        require_choice("patching", self.patching, ("auto", "static", "aligned"))
        if self.limit < 0:
            raise ConfigError(f"limit={self.limit} must not be negative.")
        _ = self.noise
        require_place(self.device, self.dtype, self.batch_tokens)
        options = ChoiceOptions(score=self.score, join=self.join, context_tokens=self.context_tokens)
        options.validate()
        return options

    @property
    def noise(self) -> NoiseRange | None:
        """By how much aligned borders are moved; None: as in the run. Raises ConfigError where that is no range."""
        if self.boundary_noise_ms == "auto":
            return None
        found = re.fullmatch(r"([0-9]{1,4}),([0-9]{1,4})", self.boundary_noise_ms)
        if not found:
            raise ConfigError(
                f"boundary_noise_ms={self.boundary_noise_ms} is no LEAST,MOST of milliseconds; give patching=aligned and e.g. "
                "20,40, or leave it out."
            )
        noise = (int(found[1]), int(found[2]))
        require_noise("boundary_noise_ms", noise)
        return noise

    def check_arm(self, run: RunConfig, items: ItemSet) -> None:
        """Raises ConfigError where no run of this configuration's arm can be evaluated so on `items`."""
        _noise(self, run, _patching(self, run, items, self.asked(items)))

    def check_data(self, path: str, data_id: str, items: ItemSet) -> None:
        """Raises DataError where `path`, or `data`, is no data set `data_id`, or not of the items' speech tokens; as
        `check_choices` on an item that cannot be scored."""
        from lst.evals.checkpoints import trained_dataset

        dataset, directions = trained_dataset(path, data_id, given=self.data), self.asked(items)
        if any("S" in d for d in directions):
            items.require_tokens_of(dataset)
        self.check_items(items, directions, dataset)

    def check_items(self, items: ItemSet, directions: Sequence[str], dataset: Dataset) -> None:
        """Raises as `check_choices`, before anything is scored."""
        from lst.evals.choices import check_choices

        for part in self.parts(items, directions):
            check_choices(items.choices(part.direction, dataset.tokenizer, first=part.first, count=part.size), self.validate())

    def asked(self, items: ItemSet) -> list[str]:
        """The directions asked for, or all that the items allow, in the order of all. Raises ConfigError where they have not what
        a direction needs."""
        from lst.evals.choices import DIRECTIONS

        asked = [d for d in DIRECTIONS if d in self.directions.split(",")] or items.directions
        for direction in asked:
            items.require_direction(direction)
        return asked

    def parts(self, items: ItemSet, directions: Sequence[str]) -> list[_Part]:
        count = min(self.limit or len(items), len(items))
        return [_Part(d, first, min(PART, count - first)) for d in directions for first in range(0, count, PART)]


def run_choices(source: Path, values: dict[str, Any]) -> str:
    """Evaluate; the text to print. Raises LstError, OSError on a full disk."""
    config = from_dict(ChoiceRunConfig, {"items": "", **values})
    options = config.validate()
    from lst.evals.checkpoints import default_out, open_checkpoint
    from lst.evals.choices import score_choices
    from lst.evals.evaluation_folder import EvaluationFolder, evaluation_id
    from lst.evals.item_set import open_item_set
    from lst.evals.scoring import Scorer

    items = open_item_set(config.items)
    checkpoint = open_checkpoint(
        source, data=config.data, device=config.device, dtype=config.dtype, batch_tokens=config.batch_tokens
    )
    directions = config.asked(items)
    kind = _patching(config, checkpoint.config, items, directions)
    if any("S" in d for d in directions):
        items.require_tokens_of(checkpoint.dataset)
    noise = _noise(config, checkpoint.config, kind)
    count = min(config.limit or len(items), len(items))
    decisive = checkpoint.decisive | {
        "items_id": items.items_id, "task": items.task, "items": count, "directions": directions, "score": options.score,
        "join": options.join, "context_tokens": options.context_tokens, "patching": str(kind), "dtype": config.dtype,
        **({"boundary_noise_ms": list(noise)} if noise[1] else {}),
    }  # fmt: skip
    out = Path(config.out) if config.out else default_out(source, f"{items.task}-{evaluation_id(decisive)}")
    folder = EvaluationFolder(out, decisive, shard=config.shard)
    if folder.is_done:
        return f"{out}: this evaluation is there already."
    parts = config.parts(items, directions)
    scorer = Scorer(checkpoint.model, checkpoint.config, device=checkpoint.device, kind=kind, dtype=config.dtype)  # type: ignore[arg-type]

    config.check_items(items, directions, checkpoint.dataset)  # refused at once, and nothing is left behind

    def make(number: int) -> list[dict[str, Any]]:
        direction, first, size = parts[number]
        chosen = items.choices(direction, checkpoint.dataset.tokenizer, first=first, count=size, noise=noise)
        return score_choices(scorer, chosen, options)

    with folder.records([part.size for part in parts], make) as records:
        if records is None:
            return folder.left
        about: dict[str, Any] = {"evaluation_id": folder.id, "items_id": items.items_id}
        metrics = _metrics(records, checkpoint, about | ({"boundary_noise_ms": list(noise)} if noise[1] else {}))
        folder.finish(_card(checkpoint, items, folder.id), records, metrics)
    return _table(out, items, metrics)


class _Part(NamedTuple):
    direction: str
    first: int
    size: int


def _noise(config: ChoiceRunConfig, run: RunConfig, kind: Patching) -> NoiseRange:
    """By how much aligned borders are moved. Raises ConfigError where there are none."""
    noise = config.noise
    if noise is None:
        return run.patching.boundary_noise_ms if kind is Patching.ALIGNED else (0, 0)
    if kind is not Patching.ALIGNED:
        raise ConfigError(
            f"boundary_noise_ms={config.boundary_noise_ms} moves the borders of aligned patches, and these are {kind}; give "
            "patching=aligned and e.g. 20,40, or leave it out."
        )
    return noise


def _patching(config: ChoiceRunConfig, run: RunConfig, items: ItemSet, directions: Sequence[str]) -> Patching:
    """How speech is cut. Raises ConfigError where the arm has no patches, or the items not the word spans that patches need."""
    from lst.evals.checkpoints import own_patching

    kind = own_patching(run, config.patching)
    spoken = [d for d in directions if "S" in d]
    if kind is Patching.ALIGNED and spoken and not items.manifest["aligned"]:
        raise ConfigError(
            f"directions={','.join(spoken)}: aligned patches need the words' frames, which item set '{items.path}' has not; "
            "prepare it with words, or give patching=static or 'directions=T->T'."
        )
    return kind


def _metrics(records: Sequence[dict[str, Any]], checkpoint: Checkpoint, about: dict[str, Any]) -> list[dict[str, Any]]:
    from lst.evals.choice_metrics import choice_metrics

    return [{**checkpoint.spent, **_plain(metric), **about} for metric in choice_metrics(records)]


def _plain(metric: Metric) -> dict[str, Any]:
    names = ("task", "direction", "metric", "value", "n_items")
    return {name: getattr(metric, name) for name in names} | dict(metric.about)


def _card(checkpoint: Checkpoint, items: ItemSet, evaluation_id: str) -> dict[str, Any]:
    from lst.train.folder import versions

    names = ("speech_tokenizer", "voice", "licence", "source", "refused_share", "note")
    of_items = {name: items.manifest[name] for name in names if name in items.manifest}
    return checkpoint.about | {"items": of_items, "versions": versions(), "evaluation_id": evaluation_id}


def _table(out: Path, items: ItemSet, metrics: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in (m for m in metrics if m["metric"] == "accuracy"):
        chance = next((m["value"] for m in metrics if m["metric"] == "chance" and m["task"] == row["task"]), None)
        beside = "" if chance is None else f", chance {100 * chance:.1f}%"
        label = " (conditional: aligned patches)" if row["conditional"] else ""
        share = f"{100 * row['value']:5.1f}% of {row['n_items']:,} items by {row['score']}"
        lines.append(f"{row['task']:32} {row['direction']}  {share}{beside}{label}")
    if items.manifest.get("note"):
        lines.append(f"note: {items.manifest['note']}")
    return "\n".join([*lines, f"written: {out}"])
