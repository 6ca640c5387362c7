"""`python -m lst.evals asr CHECKPOINT`: speech to text on held-out utterances: word errors and hallucinations (PAPER: Table 5).

    python -m lst.evals asr studies/mine/runs/0123456789ab utterances=200 beams=4

The model should have been trained on the format `asr` (docs/stream.md); without that it is a base model's guess. A transcript
ends at EOS or at the marker <s>; after `tokens_per_second` text tokens a second of audio, and `extra_tokens`, it is cut and
counted as unfinished. Results and their folder are as for choices; docs/evaluation.md defines each metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.config import RunConfig
from lst.errors import ConfigError
from lst.plain import from_dict

if TYPE_CHECKING:
    from lst.evals.checkpoints import Checkpoint
    from lst.evals.utterances import Utterance

MOST_BEAMS = 100
PART = 32  # utterances decoded between two writes
REPEATS, NGRAM, TOO_LONG = 3, 4, 1.5
APART = 3  # BOS and the two markers: tokens of a context that are no speech, and as many units


@dataclass(frozen=True, kw_only=True)
class AsrConfig:
    """Options of `python -m lst.evals asr`, given as key=value."""

    test: str = ""  # folder of another prepared data set, of the same speech tokens, whose held-out documents are heard
    utterances: int = 200  # drawn by `seed`
    words: int = 0  # most words of an utterance; 0 = as in training (data.pair_words)
    beams: int = 1  # 1: greedy
    length_penalty: float = 0.0  # alpha of lst.evals.beam: scores are ln P / length^alpha
    tokens_per_second: float = 8.0  # text tokens a second of audio after which a transcript is cut ..
    extra_tokens: int = 10  # .. and so many more
    normaliser: str = "plain-english-1"  # lst.evals.edit_errors
    seed: int = 0
    shard: str = "1/1"  # i/N: this process makes every N-th part of the utterances; who finishes last joins them
    out: str = ""
    data: str = ""
    device: str = "auto"
    dtype: str = "float32"

    def validate(self) -> None:
        from lst.checks import require_choice, require_positive, require_seed
        from lst.evals.checkpoints import require_place
        from lst.evals.edit_errors import NORMALISERS

        for key in ("utterances", "beams", "tokens_per_second"):
            require_positive(key, getattr(self, key))
        for key in ("words", "extra_tokens", "length_penalty"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key}={getattr(self, key)} must not be negative.")
        if self.beams > MOST_BEAMS:
            raise ConfigError(f"beams={self.beams} is more than {MOST_BEAMS}; each takes a cache of its own, so give fewer.")
        if self.beams == 1 and self.length_penalty:
            raise ConfigError(f"length_penalty={self.length_penalty} has no effect on one beam; give beams=2 or more.")
        require_seed("seed", self.seed)
        require_place(self.device, self.dtype)
        require_choice("normaliser", self.normaliser, tuple(NORMALISERS))

    def check_arm(self, run: RunConfig) -> None:
        """Every arm can be heard to: an aligned one knows the words of what it hears."""

    def check_data(self, path: str, data_id: str) -> None:
        """Raises DataError where `path`, or `data`, is no data set `data_id`, or `test` none of its tokens."""
        from lst.evals.checkpoints import trained_dataset, utterance_dataset

        utterance_dataset(trained_dataset(path, data_id, given=self.data), self.test)


def run_asr(source: Path, values: dict[str, Any]) -> str:
    """Evaluate; the text to print. Raises LstError, OSError on a full disk."""
    from lst.evals.utterances import heldout_utterances, in_parts, open_evaluation
    from lst.train.folder import versions

    config = from_dict(AsrConfig, values)
    config.validate()
    checkpoint, dataset, folder, words = open_evaluation("asr", source, asdict(config))
    if folder.is_done:
        return f"{folder.out}: this evaluation is there already."
    options = checkpoint.config.patching
    chosen = heldout_utterances(
        dataset, count=config.utterances, words=words, seed=config.seed,
        aligned_unit=options.aligned_unit, boundary_noise_ms=options.boundary_noise_ms,
    )  # fmt: skip
    sizes, make = in_parts(chosen, PART, lambda part, _: transcribe(checkpoint, part, config))
    with folder.records(sizes, make) as records:
        if records is None:
            return folder.left
        about = {"evaluation_id": folder.id, "normaliser": config.normaliser, "beams": config.beams}
        kind = checkpoint.config.patching.evaluation_kind
        about |= {"patching": str(kind), "conditional": str(kind) == "aligned"}
        metrics = [{**checkpoint.spent, **row, **about} for row in asr_metrics(records)]
        folder.finish(checkpoint.about | {"versions": versions(), "test": str(dataset.path)}, records, metrics)
    found = {row["metric"]: row["value"] for row in metrics}
    how = "greedy" if config.beams == 1 else f"{config.beams} beams"
    return f"WER {found['wer']:.3f} of {len(records)} utterances ({config.normaliser}, {how})\nwritten: {folder.out}"


def transcribe(checkpoint: Checkpoint, utterances: Sequence[Utterance], config: AsrConfig) -> list[dict[str, Any]]:
    """A record of each utterance: what was said, what was heard, errors by kind, and what it took."""
    from lst.evals.edit_errors import NORMALISERS, word_errors

    normalise = NORMALISERS[config.normaliser]
    decoded = _beams(checkpoint, utterances, config) if config.beams > 1 else _greedy(checkpoint, utterances, config)
    records = []
    for utterance, (ids, finished, units) in zip(utterances, decoded, strict=True):
        heard = checkpoint.dataset.tokenizer.decode(ids)
        said, got = normalise(utterance.text), normalise(heard)
        errors = word_errors(said, got)
        counts = {name: getattr(errors, name) for name in ("substitutions", "deletions", "insertions")}
        records.append(
            {"task": "asr", "direction": "S->T", "item": utterance.id, "said": said, "heard": got, **counts}
            | {"said_words": errors.reference, "heard_words": len(got.split()), "finished": finished}
            | {"seconds": utterance.seconds, "context_tokens": len(utterance.speech.tokens) + APART, "context_units": units}
            | {"generated_tokens": len(ids), "repeats": repeats(got.split())}
        )
    return records


def asr_metrics(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates over all utterances together; shares of utterances."""
    total = {name: sum(r[name] for r in records) for name in ("substitutions", "deletions", "insertions", "said_words")}
    n, words = len(records), max(1, total["said_words"])
    wrong = total["substitutions"] + total["deletions"] + total["insertions"]
    values = {
        "wer": wrong / words,
        **{f"{name}_rate": total[name] / words for name in ("substitutions", "deletions", "insertions")},
        "unfinished_share": sum(not r["finished"] for r in records) / n,
        "empty_share": sum(not r["heard_words"] for r in records) / n,
        "repeating_share": sum(r["repeats"] for r in records) / n,
        "too_long_share": sum(r["heard_words"] > TOO_LONG * r["said_words"] for r in records) / n,
        "mean_context_units": sum(r["context_units"] for r in records) / n,
        "mean_context_tokens": sum(r["context_tokens"] for r in records) / n,
        "units_per_token": sum(r["context_units"] - APART for r in records) / sum(r["context_tokens"] - APART for r in records),
        "mean_generated_tokens": sum(r["generated_tokens"] for r in records) / n,
    }
    counts = {name: words if name == "wer" or name.endswith("_rate") else n for name in values}
    return [
        {"task": "asr", "direction": "S->T", "metric": name, "value": value, "n_items": counts[name]}
        for name, value in values.items()
    ]


def repeats(words: Sequence[str]) -> bool:
    """Whether some NGRAM words in a row come REPEATS times or more: the mark of a decoder that runs in circles."""
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return any(grams.count(gram) >= REPEATS for gram in set(grams))


Decoded = list[tuple[tuple[int, ...], bool, int]]  # text pieces, whether the transcript ended by itself, units of the context


def _limit(utterance: Utterance, config: AsrConfig) -> int:
    return math.ceil(config.tokens_per_second * utterance.seconds) + config.extra_tokens


def _prompt(utterance: Utterance) -> list[Any]:
    return [("speech", utterance.speech.tokens, utterance.speech.words)]


def _greedy(checkpoint: Checkpoint, utterances: Sequence[Utterance], config: AsrConfig) -> Decoded:
    from lst.model import generate

    limits = [_limit(u, config) for u in utterances]
    results = generate(
        checkpoint.model, checkpoint.config, [_prompt(u) for u in utterances], direction="S->T", max_tokens=max(limits)
    )
    decoded: Decoded = []
    for result, limit in zip(results, limits, strict=True):  # the longest audio's limit serves all; each is cut at its own
        ids = tuple(i for modality, tokens in result.segments for i in tokens if modality == "text")
        ended = result.stop != "max_tokens" and len(result.ids) <= limit
        decoded.append((ids[:limit], ended, result.prompt_units))
    return decoded


def _beams(checkpoint: Checkpoint, utterances: Sequence[Utterance], config: AsrConfig) -> Decoded:
    from lst.evals.beam import beam_search

    model: Any = checkpoint.model
    decoded: Decoded = []
    for utterance in utterances:
        best = beam_search(
            model, checkpoint.config, _prompt(utterance),
            beams=config.beams, max_tokens=_limit(utterance, config), alpha=config.length_penalty,
        )  # fmt: skip
        decoded.append((best.ids, best.finished, best.context_units))
    return decoded
