"""`python -m lst.evals representations CHECKPOINT`: what patches know of words (PAPER: Figure 5) and, beyond it, of phones.

    python -m lst.evals representations studies/mine/runs/0123456789ab [phones=espeak]

Held-out speech is patched as the arm is evaluated. Words: the vectors of the commonest words' occurrences, their cosines,
silhouette and a t-SNE picture (words.svg). Probe: a linear classifier from one patch's vector to the word and to the phone that
most of its frames belong to, learnt on half of the documents and tested on the others, item by item, so that two arms can be
compared paired. docs/evaluation.md defines each metric.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import Patching, RunConfig
from lst.errors import ConfigError
from lst.plain import from_dict

if TYPE_CHECKING:
    from lst.evals.unit_probe import Metrics, Occurrence

MOST_POINTS = 5_000
WORDS, PICTURE = "words.jsonl", "words.svg"


@dataclass(frozen=True, kw_only=True)
class RepresentationsConfig:
    """Options of `python -m lst.evals representations`, given as key=value."""

    test: str = ""  # folder of another prepared data set, of the same speech tokens, whose held-out documents are read
    utterances: int = 2000  # drawn by `seed`
    words: int = 0  # most words of an utterance; 0 = as in training (data.pair_words)
    patching: str = "auto"  # of speech: auto (as the arm is evaluated), static or aligned
    shown_words: int = 20  # so many of the commonest words are compared and drawn ..
    letters: int = 4  # .. of those with so many letters at least
    occurrences: int = 30  # of each word, at most; drawn by `seed`
    perplexity: float = 15.0  # of the picture (lst.evals.tsne)
    probed_words: int = 50  # the probe tells so many of the commonest words apart
    phones: str = ""  # what says which phone is where: espeak, or a folder or file of alignments; "" = no probe of phones
    phone_tier: str = "phones"  # of TextGrids
    l2: float = 0.001  # of the probe's weights
    seed: int = 0
    out: str = ""
    data: str = ""
    device: str = "auto"
    dtype: str = "float32"

    def validate(self) -> None:
        from lst.checks import require_choice, require_positive, require_seed
        from lst.evals.checkpoints import require_place

        for key in ("utterances", "letters", "perplexity", "l2"):
            require_positive(key, getattr(self, key))
        for key in ("shown_words", "occurrences", "probed_words"):
            if getattr(self, key) < 2:
                raise ConfigError(f"{key}={getattr(self, key)} compares nothing; give 2 or more.")
        if self.shown_words * self.occurrences > MOST_POINTS:
            raise ConfigError(
                f"shown_words={self.shown_words} with occurrences={self.occurrences} are more than {MOST_POINTS:,} points, whose "
                "picture takes their square in memory; give fewer of either."
            )
        if self.words < 0:
            raise ConfigError(f"words={self.words} must not be negative.")
        require_choice("patching", self.patching, ("auto", "static", "aligned"))
        require_seed("seed", self.seed)
        require_place(self.device, self.dtype)

    def check_arm(self, run: RunConfig) -> None:
        """Raises ConfigError where the arm has not the patches that are asked for."""
        from lst.evals.checkpoints import own_patching

        own_patching(run, self.patching)

    def check_data(self, path: str, data_id: str) -> None:
        """Raises DataError where `path`, or `data`, is no data set `data_id`, `test` none of its tokens, or `phones` has no
        alignments."""
        from lst.evals.checkpoints import trained_dataset, utterance_dataset
        from lst.evals.phones import ESPEAK, open_phones

        utterance_dataset(trained_dataset(path, data_id, given=self.data), self.test)
        if self.phones not in ("", ESPEAK):
            open_phones(self.phones, self.phone_tier)


def run_representations(source: Path, values: dict[str, Any]) -> str:
    """Evaluate; the text to print. Raises LstError, OSError on a full disk."""
    from lst.evals.checkpoints import own_patching
    from lst.evals.patch_states import unit_states
    from lst.evals.phones import document_phones
    from lst.evals.tsne import lowered, require_scikit_learn
    from lst.evals.unit_probe import phone_labels, probe, shown_occurrences, word_labels, word_metrics
    from lst.evals.utterances import heldout_utterances, open_evaluation
    from lst.train.folder import versions

    config = from_dict(RepresentationsConfig, values)
    config.validate()
    require_scikit_learn()
    checkpoint, dataset, folder, words = open_evaluation("representations", source, asdict(config) | {"shard": "1/1"})
    kind, options = own_patching(checkpoint.config, config.patching), checkpoint.config.patching
    if folder.is_done:
        return folder.left
    utterances = heldout_utterances(
        dataset, count=config.utterances, words=words, seed=config.seed,
        aligned_unit=options.aligned_unit, boundary_noise_ms=options.boundary_noise_ms,
    )  # fmt: skip
    phones: dict[int, list[str]] = {}
    if config.phones:
        phones = document_phones(dataset, [u.document for u in utterances], config.phones, tier=config.phone_tier)
    states = unit_states(checkpoint, utterances, kind, config.dtype)
    shown = shown_occurrences(states, words=config.shown_words, letters=config.letters, most=config.occurrences, seed=config.seed)
    metrics, items = word_metrics(shown), list[dict[str, Any]]()
    labels = {"word": word_labels(states, config.probed_words)} | ({"phone": phone_labels(states, phones)} if phones else {})
    for name, of_units in labels.items():
        found, records = probe(states, name, of_units, l2=config.l2, seed=config.seed)
        metrics, items = metrics | found, items + records
    about = {"patching": str(kind), "conditional": kind is Patching.ALIGNED}
    with folder.records([], lambda _: []) as nothing:
        if nothing is None:
            return folder.left
        _write_words(folder.work, shown, config.perplexity, f"{checkpoint.config.model.arm}, {kind} patches")
        rows = [
            {**checkpoint.spent, "task": "representations", "direction": "S->S", "metric": name, "value": value, "n_items": n}
            | about | {"evaluation_id": folder.id}
            for name, (value, n) in metrics.items()
        ]  # fmt: skip
        used = lowered(config.perplexity, len(shown))
        card = checkpoint.about | {"versions": versions(), "test": str(dataset.path), "perplexity": used}
        folder.finish(card, [item | about for item in items], rows)
    table = _table(metrics, folder.out)
    if used == config.perplexity:
        return table
    return f"{table}\nnote: perplexity={config.perplexity:g} is too much for {len(shown)} points; the picture is of {used:g}"


def _write_words(folder: Path, shown: Sequence[Occurrence], perplexity: float, title: str) -> None:
    """words.jsonl, a record an occurrence with its place in the picture; words.svg."""
    import numpy as np

    from lst.evals.embedding_metrics import unit_vectors
    from lst.evals.tsne import tsne
    from lst.evals.word_picture import word_picture
    from lst.records import write_atomically

    places_N2 = tsne(unit_vectors(np.stack([o.states["patch"] for o in shown])), perplexity=perplexity)
    lines = [
        {"word": o.word, "item": o.item, "frames": o.frames, "x": x, "y": y}
        for o, (x, y) in zip(shown, places_N2.tolist(), strict=True)
    ]
    write_atomically(folder / WORDS, "".join(json.dumps(line) + "\n" for line in lines).encode())
    write_atomically(folder / PICTURE, word_picture(places_N2, [o.word for o in shown], title).encode())


def _table(metrics: Metrics, out: Path) -> str:
    names = [name for name in metrics if name.startswith("patch_")]
    lines = [f"{'':24}{'patch':>8}{'global':>8}"]
    for name in (name.removeprefix("patch_") for name in names):
        values = [metrics[f"{place}_{name}"][0] for place in ("patch", "global")]
        lines.append(f"{name:24}{values[0]:8.3f}{values[1]:8.3f}   of {metrics[f'patch_{name}'][1]:,}")
    lines += [f"{name:24}{value:8.3f}   of {n:,}" for name, (value, n) in metrics.items() if name.startswith("chance_")]
    return "\n".join([*lines, f"written: {out}"])
