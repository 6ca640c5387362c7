"""`prepare-data eval=FILE out=DIR`: a benchmark's files to an item set, whole or not at all.

    prepare-data eval=hellaswag_val.jsonl out=items/hellaswag voice=espeak:en-us        text, and its speech
    prepare-data eval=gold.csv audio=lexical/dev out=items/swuggy quantizer=HUBERT kmeans=FILE layer=11
    prepare-data eval=items.jsonl card=card.json out=items/mine                          ready speech tokens

A bad item is refused by its line (a missing ending, a wrong label, empty audio); by default the first one stops, and with
refuse=skip a share above max_refused does. What is finished stays in a work file beside `out`, where the same command goes on.
Formats: lst/evals/item_formats.py; the folder: lst/evals/item_set.py; docs/evaluation.md explains every option.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lst.errors import ConfigError, DataError, LstError, RunFailed
from lst.plain import content_hash, from_dict, to_dict

if TYPE_CHECKING:
    from lst.data.audio.quantizers import AudioQuantizer
    from lst.data.sources.base import Refused
    from lst.evals.found_items import Found, Part
    from lst.evals.item_set import Item
    from lst.evals.voices import Voice

ON_REFUSAL = ("refuse", "max_refused")  # options that change no item: with others the same items go on
OF_AUDIO = ("quantizer", "kmeans", "layer", "reduce", "normalize", "max_seconds", "window_seconds", "batch_seconds")
EXAMPLE = "prepare-data eval=items.jsonl out=items/mine"
AUTO = "auto"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ItemsConfig:
    """Options of `prepare-data eval=`, given as key=value. Those of the quantizer are prepare-data's own."""

    eval: str  # the benchmark's file or folder
    out: str  # new folder of the item set
    task: str = ""  # its name in every record; default: the file's
    format: str = AUTO  # one of lst.evals.item_formats.FORMATS; or the file tells
    audio: str = ""  # format=zerospeech: folder of the recordings
    tokens: str = ""  # format=zerospeech: or their ready tokens
    card: str = ""  # JSON that tells what made ready speech tokens
    voice: str = ""  # speaks parts that have text alone: espeak:en-us, kokoro:jf_alpha, piper:FILE.onnx
    licence: str = ""  # of the items, kept in the manifest
    note: str = ""  # printed beside every result, kept in the manifest
    max_words: int = 0  # items with more words in prompt and longest ending are left out; 0 = none
    sample: int = 0  # so many items, drawn by `seed`; 0 = all
    seed: int = 0  # of the draw
    speech_vocab: int = 0  # speech tokens are 0 .. speech_vocab - 1; 0: the quantizer's or the card's centres, else 501
    quantizer: str = "embedded"  # of audio: or the folder of a HubertModel
    kmeans: str = ""
    layer: int = 0
    reduce: str = ""
    normalize: str = "auto"
    max_seconds: float = 7_200.0
    window_seconds: float = 30.0
    batch_seconds: float = 120.0
    device: str = "auto"
    dtype: str = "float32"
    refuse: str = "stop"  # stop at the first malformed item, or skip it and go on
    max_refused: float = 0.01  # with refuse=skip: largest share of malformed items

    def validate(self) -> None:
        """Raises ConfigError."""
        from lst.checks import require_choice, require_seed
        from lst.evals.item_formats import FORMATS

        if not self.eval or not self.out:
            raise ConfigError(f"give eval=FILE and out=DIR, for example: {EXAMPLE}")
        require_choice("format", self.format, (AUTO, *FORMATS))
        require_choice("refuse", self.refuse, ("stop", "skip"))
        require_seed("seed", self.seed)
        for key in ("max_words", "sample"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key}={getattr(self, key)} must not be negative.")
        if not 0 <= self.max_refused < 1:
            raise ConfigError(f"max_refused={self.max_refused} must lie in 0..1, 1 excluded.")
        if not 0 <= self.speech_vocab <= 65_536:
            raise ConfigError(f"speech_vocab={self.speech_vocab} must lie in 0..65536.")


def prepare_items(values: dict[str, Any]) -> str:
    """Make the item set; the line to print. Raises LstError, OSError on a full disk."""
    config = from_dict(ItemsConfig, values)
    config.validate()
    from lst.model.export import require_folders_above, require_new

    out = Path(config.out)
    require_folders_above(out)
    maker = _Maker(config)  # reads the input: nothing is made for one that is none
    found = maker.wanted()
    with _alone(out):
        if out.exists():
            require_new(out)
        return _prepare(config, maker, found)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of what is made in `out`; folders above it that are made for nothing go. Raises RunFailed where another
    process makes it."""
    from lst.file_lock import locked

    path = out.parent / f".{out.name}.items-lock"
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        with locked(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except BlockingIOError as error:
        raise RunFailed(f"out={out} is being made by another prepare-data; wait for it, or give another folder.") from error
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # one that holds something stays
                folder.rmdir()


def _prepare(config: ItemsConfig, maker: _Maker, found: list[Found | Refused]) -> str:
    from lst.model.export import new_folder

    out = Path(config.out)
    try:
        rows, refused = _of_one_kind(Path(config.eval), *maker.make(found))
        _judge(config, refused, len(rows) + len(refused))
    except (LstError, KeyboardInterrupt):
        maker.drop_empty_work()
        raise
    from lst.evals.item_set import write_item_set

    about = maker.about() | {"refused": [str(r) for r in refused], "refused_share": len(refused) / (len(rows) + len(refused))}
    with new_folder(out) as folder:
        manifest = write_item_set(folder, rows, about)
    maker.work.unlink(missing_ok=True)
    left = f", {len(refused)} refused" if refused else ""
    left += f", {maker.left_out} left out by max_words and sample" if maker.left_out else ""
    directions = ", ".join(manifest["directions"])
    made = f"{len(rows):,} item{'' if len(rows) == 1 else 's'} of '{manifest['task']}'"
    return f"{out}: {made} ({directions}){left} (items_id {manifest['items_id']})."


def work_file(out: Path) -> Path:
    """Where finished items of an item set that is made in `out` stand until it is whole."""
    return out.parent / f".{out.name}.items-work.jsonl"


class _Maker:
    """Items to rows: text is spoken, audio becomes tokens. Finished rows stand in a work file, in order."""

    def __init__(self, config: ItemsConfig) -> None:
        from lst.evals.item_formats import guess_format, read_items
        from lst.evals.item_set import is_task_name

        self.config, self.file = config, Path(config.eval)
        format_ = config.format if config.format != AUTO else guess_format(self.file) if self.file.exists() else "jsonl"
        audio, tokens = (Path(p) if p else None for p in (config.audio, config.tokens))
        self.read = list(read_items(format_, self.file, audio=audio, tokens=tokens))
        if not self.read:
            raise DataError(f"eval={config.eval} has no item; give a benchmark's file.")
        self.task = config.task or self.file.stem
        if not is_task_name(self.task):
            raise ConfigError(f"task='{self.task}' cannot be part of a folder's name; give task=NAME of letters and digits.")
        self.left_out = 0
        self._speech_vocab = 0
        self._voice: Voice | None = None
        self._quantizer: AudioQuantizer | None = None
        self.work = work_file(Path(config.out))

    def wanted(self) -> list[Found | Refused]:
        """The items, without those that are too long, and of these a sample in the file's order."""
        from lst.data.sources.base import Refused

        read, config = self.read, self.config
        short = [i for i in read if isinstance(i, Refused) or not config.max_words or _words(i) <= config.max_words]
        if config.sample and config.sample < len(short):
            generator = np.random.Generator(np.random.Philox(key=config.seed))
            short = [short[i] for i in sorted(generator.permutation(len(short))[: config.sample])]
        self.left_out = len(read) - len(short)
        if not short:
            raise DataError(f"max_words={config.max_words} leaves none of the {len(read)} items of {self.file}; give more, or 0.")
        return short

    def make(self, found: Sequence[Found | Refused]) -> tuple[list[dict[str, Any]], list[Refused]]:
        """Rows and refusals. What an interrupted attempt made is taken from its work file."""
        from lst.data.sources.base import Refused
        from lst.records import JsonLinesWriter, iter_jsonl

        self._open(found)
        options = {name: value for name, value in to_dict(self.config).items() if name not in ON_REFUSAL}
        header = {"made_by": content_hash([options, self._digest(found), self.about()])}
        done = list(iter_jsonl(self.work))
        if done[:1] != [header]:
            self.work.unlink(missing_ok=True)
            done = []
        rows: list[dict[str, Any]] = []
        refused: list[Refused] = []
        with JsonLinesWriter(self.work) as writer:
            if not done:
                writer.write(header)
            for record in self._records(found, done[1:], writer):
                if "refused" in record:
                    refused.append(Refused(Path(record["file"]), record["refused"], record["line"]))
                    if self.config.refuse == "stop":
                        _judge(self.config, refused, len(found))
                else:
                    rows.append(record)
        return rows, refused

    def _records(self, found: Sequence[Found | Refused], done: Sequence[dict[str, Any]], writer: Any) -> Iterator[dict[str, Any]]:
        from tqdm import tqdm

        yield from done
        for item in tqdm(found[len(done) :], desc="items", unit=" items", leave=False, disable=None, delay=2):
            record = self._record(item)
            if "refused" not in record or self.config.refuse == "skip":
                writer.write(record)
            yield record

    def drop_empty_work(self) -> None:
        """Take the work file away where it has no finished item to go on from."""
        from lst.records import iter_jsonl

        if all("refused" in record for record in list(iter_jsonl(self.work))[1:]):
            self.work.unlink(missing_ok=True)

    def about(self) -> dict[str, Any]:
        """What the manifest says beside the items."""
        card = self._quantizer.card.to_dict() if self._quantizer else self._card()
        about: dict[str, Any] = {"task": self.task, "source": self.file.name, "left_out": self.left_out}
        about |= {"speech_tokenizer": card} if card else {}
        about |= {"voice": self._voice.identity} if self._voice else {}
        return about | {key: text for key in ("licence", "note") if (text := getattr(self.config, key))}

    def _card(self) -> dict[str, Any] | None:
        from lst.data.audio.embedded_quantizer import SpeechTokenizerCard

        return SpeechTokenizerCard.read_file(Path(self.config.card)).to_dict() if self.config.card else None

    def _open(self, found: Sequence[Found | Refused]) -> None:
        """Load the engine and the quantizer if any item needs them."""
        from lst.evals.found_items import Found

        parts = [part for item in found if isinstance(item, Found) for part in item.parts]
        ready, heard = any(p.tokens is not None for p in parts), any(p.audio is not None and p.tokens is None for p in parts)
        silent = bool(self.config.voice) and any(p.tokens is None and p.audio is None for p in parts)
        if ready and (heard or silent):
            lacks = next(i for i in found if isinstance(i, Found) and any(p.tokens is None for p in i.parts))
            raise DataError(
                f"{self.file}:{lacks.line}: item '{lacks.id}' has parts that need a quantizer, and others have ready speech "
                "tokens; give all of one kind."
            )
        if self.config.card and not ready and not (heard or silent):
            raise ConfigError(f"card={self.config.card} is about ready speech tokens, and {self.file} has none; leave it out.")
        if self.config.card and (heard or silent):
            raise ConfigError(f"card={self.config.card} is about ready tokens; of audio the quantizer tells its own card.")
        for key in OF_AUDIO:
            if (given := getattr(self.config, key)) != getattr(ItemsConfig, key) and not (heard or silent):
                raise ConfigError(f"{key}={given} has no effect: {self.file} has no audio, and no voice= speaks; leave it out.")
        self._speech_vocab = self.config.speech_vocab or (self._card() or {}).get("k", 501)
        if silent:
            from lst.evals.voices import Voice

            self._voice = Voice(self.config.voice)
        if heard or silent:
            self._quantizer = _quantizer(self.config)

    def _digest(self, found: Sequence[Found | Refused]) -> str:
        digest = hashlib.sha256()
        for item in found:
            digest.update(repr(item).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def _record(self, item: Found | Refused) -> dict[str, Any]:
        from lst.data.sources.base import Refused
        from lst.evals.found_items import check_found

        if isinstance(item, Refused):
            return {"refused": item.reason, "file": str(item.file), "line": item.line}
        try:
            check_found(item)
            return self._item(item).row() | {"line": item.line}
        except (ValueError, DataError) as error:
            return {"refused": f"item '{item.id}': {str(error).rstrip('.')}", "file": str(self.file), "line": item.line}

    def _item(self, item: Found) -> Item:
        """Raises ValueError or DataError with the reason."""
        from lst.evals.item_set import Item

        texts = tuple(" ".join(part.text.split()) for part in item.parts)
        heard = [self._tokens(part, i - item.prompt) for i, part in enumerate(item.parts)]
        speech = [tokens for tokens, _ in heard if tokens is not None]
        words = [spans for _, spans in heard if spans is not None]
        if speech and len(speech) < len(heard):
            raise ValueError("some of its parts have speech and others have none")
        if any(texts) and not all(texts):
            raise ValueError("some of its parts have text and others have none")
        return Item(
            id=item.id, right=item.right, prompt=item.prompt, group=item.group, pair=item.pair,
            texts=texts if all(texts) else (), speech=tuple(speech),
            words=tuple(words) if words and len(words) == len(heard) else (),
        )  # fmt: skip

    def _tokens(self, part: Part, place: int) -> tuple[NDArray[np.integer] | None, NDArray[np.integer] | None]:
        """Speech tokens of a part and, where they are known, the frames of its words."""
        from lst.data.audio.waveform import read_waveform
        from lst.patching import aligned_patches

        name = "the prompt" if place < 0 else f"ending {place}"
        if part.tokens is not None:
            if part.tokens.max() >= self._speech_vocab:
                raise ValueError(f"{name} has speech token {part.tokens.max()}, outside 0..{self._speech_vocab - 1}")
            if part.words is not None:
                aligned_patches(len(part.tokens), part.words)
            return part.tokens, part.words
        if part.audio is None and self._voice is None:
            return None, None
        spans = None
        if part.audio is not None:
            try:
                audio = read_waveform(part.audio, max_seconds=self.config.max_seconds)
            except ValueError as error:
                raise ValueError(f"{name}, '{part.audio}': {error}") from error
        else:
            assert self._voice is not None
            audio, spans = self._voice.say(part.text)
        assert self._quantizer is not None
        (tokens,) = self._quantizer.tokens([audio])
        if not len(tokens):
            raise ValueError(f"{name} is too short for a speech token ({len(audio) / 16_000:.3f} s)")
        return tokens, None if spans is None else _frames(spans, len(tokens))


def _frames(spans: Sequence[tuple[float, float]], tokens: int) -> NDArray[np.int64]:
    from lst.data.audio.align import frame_spans

    starts, ends = frame_spans(spans, tokens)
    return np.stack([np.asarray(starts, np.int64), np.asarray(ends, np.int64)], 1)


def _words(item: Found) -> int:
    counts = [len(part.text.split()) for part in item.parts]
    return (counts[0] if item.prompt else 0) + max(counts[item.prompt :])


def _quantizer(config: ItemsConfig) -> AudioQuantizer:
    """Raises ConfigError or DataError where the options name none."""
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.audio_options import EMBEDDED, check_audio_options, quantizer_of

    if config.quantizer != EMBEDDED and not Path(config.quantizer).is_dir():
        raise ConfigError(
            f"quantizer={config.quantizer} is no folder; audio and voices need one: quantizer={EMBEDDED}, or the folder of a "
            "HubertModel with kmeans=FILE and layer=N."
        )
    given = {name: getattr(config, name) for name in (*OF_AUDIO, "device", "dtype")}
    options = PrepareConfig(out=config.out, input=config.eval, **given)
    check_audio_options(options)
    return quantizer_of(options)


def _of_one_kind(file: Path, rows: list[dict[str, Any]], refused: list[Refused]) -> tuple[list[dict[str, Any]], list[Refused]]:
    """Items that have speech (or text) among more that have none, or the other way round, are refused: a set is of one kind."""
    from lst.data.sources.base import Refused

    for name, what in (("speech", "speech"), ("texts", "text")):
        having, lacking = ([row for row in rows if bool(row[name]) is there] for there in (True, False))
        if not having or not lacking:
            continue
        rows, few = (having, lacking) if len(having) >= len(lacking) else (lacking, having)
        told = f"has no {what}, and most others have" if few is lacking else f"has {what}, and most others have none"
        refused = refused + [Refused(file, f"item '{row['id']}' {told}", row["line"]) for row in few]
    return rows, refused


def _judge(config: ItemsConfig, refused: Sequence[Refused], items: int) -> None:
    """Raises DataError where what is refused stops the preparation."""
    if not refused:
        return
    if config.refuse == "stop":
        raise DataError(f"{refused[0]}; correct it, or go on without such items: refuse=skip max_refused=0.01")
    for one in refused[:10]:
        log.warning("refused: %s", one)
    if len(refused) == items:
        raise DataError(f"all {items} items of {config.eval} are refused; the first: {refused[0]}.")
    if len(refused) > config.max_refused * items:
        raise DataError(
            f"{len(refused)} of {items} items are refused, more than max_refused={config.max_refused}; the first: {refused[0]}."
        )
