"""`prepare-data`: from files that people have to a prepared data set (lst/data/shards.py).

    prepare-data input=speech.jsonl out=DIR [text=book.txt] [tokenizer=FILE.model] [refuse=skip max_refused=0.01]
    prepare-data input=... out=DIR part=3/64      read one of 64 parts, on any machine that shares the folder of DIR
    prepare-data merge DIR [heldout_share=0.02]   join the parts (a preparation in one part is joined by itself)
    prepare-data verify DIR                       compare every file with its checksum and every shard with its counts
    prepare-data overlap DIR [ngram=13]           what the held-out documents share with training
    prepare-data statistics DIR [tokens=1e9]      sizes, patch lengths, units; epochs at a budget (json=true: as JSON)
    prepare-data report DIR [out=FILE.html]       quality checks, plots and examples to hear, as an HTML page
    prepare-data speak DIR id=ID out=FILE.wav     a document's speech tokens back to audio
    prepare-data eval=FILE out=DIR [voice=NAME]   a benchmark's items, for evaluation (docs/evaluation.md)
    prepare-data corpus=embedded out=DIR          rebuild the embedded corpus (needs the extra `speech`)

A preparation that was interrupted goes on where it was when the same command is given again; one that is done writes nothing.
A line of the default input format is one spoken document, frames counted at 25 Hz, `start` and `end` both inside the word:

    {"id": "b1-0001", "speech_tokens": [17, 17, 402], "text": "The cat", "words": [{"word": "The", "start": 0, "end": 1}, ...]}

docs/data.md explains the formats and every option.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lst.command import ended
from lst.data.quality import cli as quality
from lst.data.vocoders.speak import speak
from lst.errors import ConfigError, LstError, did_you_mean
from lst.plain import from_dict

EXAMPLE = "prepare-data input=speech.jsonl out=data/mine"
SPLIT_BY = ("book_and_speaker", "book", "speaker", "document")
NEEDS = {"tier": "alignments", "text_columns": "text", "limit_documents": "corpus", "workers": "corpus"}
"""Options that mean nothing without another one; most need `input`."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Options of `prepare-data`, given as key=value."""

    out: str  # new folder for the prepared data set
    input: str = ""  # spoken documents: a file, a folder or a glob
    corpus: str = ""  # 'embedded': rebuild the embedded corpus instead of reading an input
    text: str = ""  # .txt (paragraphs between blank lines), .jsonl, .parquet, a folder or a glob; default: the transcripts
    tokenizer: str = ""  # SentencePiece .model or tokenizer.json; default: one is trained on the training text
    vocab_size: int = 4_000  # pieces of a tokenizer that is trained here
    speech_vocab: int = 0  # speech tokens are 0 .. speech_vocab - 1; 0: the quantizer's or the card's centres, else 501
    format: str = "auto"  # of the input; auto: by its name and first line
    columns: str = ""  # names of a record's keys in the input, as in columns=id:file_id,speech_tokens:units
    text_columns: str = ""  # the same for text=
    times: str = "frames"  # of words in the input: frames (25 Hz, both ends inside), or seconds
    rate: int = 25  # speech tokens (and frames of words) a second in the input
    deduplicated: bool = True  # format=slamkit, textless: repeats were joined, and durations must be there
    labels: str = ""  # format=fairseq: the .km file; default: beside the .tsv
    sample_rate: int = 16_000  # format=fairseq: of the audio samples that the .tsv counts
    layout: str = ""  # what paths of audio tell of speaker and book: librispeech or libri-light
    names: str = ""  # or a regular expression of the path with groups speaker, book, id
    transcripts: str = ""  # beside (the audio), a folder of ID.txt, or a .tsv or .csv of id and text
    alignments: str = ""  # folder of TextGrid, CTM or JSON files, or one .ctm or .jsonl: when each word is spoken
    tier: str = ""  # the alignments' tier of words, where its name does not tell
    align: str = ""  # format=audio: align the transcripts here, by ctc (with ctc_model) or embedded
    ctc_model: str = ""  # folder of a Wav2Vec2ForCTC with its vocab.json
    quantizer: str = "embedded"  # format=audio: or the folder of a HubertModel
    kmeans: str = ""  # the HuBERT's k-means centres: .npy, .npz or .safetensors
    layer: int = 0  # the HuBERT's block whose output is quantized, from 1
    reduce: str = ""  # how 50 Hz become 25: every-second, or of features (format=audio) mean
    normalize: str = "auto"  # waveforms to mean 0 and variance 1: yes, no, or as the model's folder says
    max_seconds: float = 7_200.0  # a longer audio file is refused
    window_seconds: float = 30.0  # longer speech is encoded in equal windows
    batch_seconds: float = 120.0  # audio that a HuBERT is given at a time
    device: str = "auto"  # of the quantizer and the aligner: cuda if there is one, or cpu, cuda
    dtype: str = "float32"  # of their arithmetic: or bfloat16, float16
    card: str = ""  # JSON that tells what made ready speech tokens
    heldout_share: float = 0.05  # share of the tokens held out, where records name no split
    split_by: str = "book_and_speaker"  # what is wholly in training or wholly held out: or book, speaker, document
    refuse: str = "stop"  # stop at the first malformed record, or skip it and go on
    max_refused: float = 0.01  # with refuse=skip: largest share of malformed records
    ngram: int = 13  # words in a row that count as overlap between held-out and training texts
    part: str = "1/1"  # i/N: read only part i of N (from 1); join the parts by: prepare-data merge DIR
    limit_documents: int = 0  # corpus=embedded: build only so many spoken documents; 0 = all
    workers: int = 0  # corpus=embedded: processes; 0 = one a core

    def validate(self) -> None:
        """Raises ConfigError."""
        if not self.out:
            raise ConfigError(f"out is empty; name a new folder, for example: {EXAMPLE}")
        if bool(self.input) == bool(self.corpus):
            raise ConfigError(f"give either input=FILE or corpus=embedded, for example: {EXAMPLE}")
        if self.corpus not in ("", "embedded"):
            raise ConfigError(f"corpus='{self.corpus}' is unknown; did you mean 'embedded'?")
        if self.corpus and self.part != "1/1":
            raise ConfigError(f"part={self.part} is for input=FILE; corpus=embedded takes workers=N instead.")
        for spec in fields(self):
            needed = NEEDS.get(spec.name, "" if spec.name in ("out", "corpus") else "input")
            if needed and getattr(self, spec.name) != spec.default and not getattr(self, needed):
                raise ConfigError(f"{spec.name}={getattr(self, spec.name)} means nothing without {needed}=; leave it out.")
        if self.refuse not in ("stop", "skip"):
            raise ConfigError(f"refuse='{self.refuse}' is unknown; use stop or skip.")
        if self.times not in ("frames", "seconds"):
            raise ConfigError(f"times='{self.times}' is unknown; use frames or seconds.")
        if self.split_by not in SPLIT_BY:
            raise ConfigError(f"split_by='{self.split_by}' is unknown; {did_you_mean(self.split_by, SPLIT_BY)}")
        for key in ("heldout_share", "max_refused"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must lie in 0..1, 1 excluded.")
        for key, lowest, highest in (("speech_vocab", 0, 65_536), ("vocab_size", 1, 65_536), ("ngram", 1, 1_000)):
            if not lowest <= getattr(self, key) <= highest:
                raise ConfigError(f"{key}={getattr(self, key)} must lie in {lowest}..{highest}.")
        for key in ("max_seconds", "window_seconds", "batch_seconds", "sample_rate"):
            if not getattr(self, key) >= 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be 1 or more.")
        _ = self.part_of

    @property
    def part_of(self) -> tuple[int, int]:
        """(i, N) of part=i/N. Raises ConfigError."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"part={self.part} must be i/N with i from 1 to N, for example part=3/64.")
        return int(found[1]), int(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status."""
    return ended("prepare-data", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="key=value", help=f"options, or a verb: {', '.join(VERBS)}")
    arguments = parser.parse_args(argv).arguments
    try:
        if not arguments:
            raise ConfigError(f"prepare-data needs its options as key=value, for example: {EXAMPLE}")
        if arguments[0] in VERBS:
            return _run_verb(*arguments)
        if any(a.startswith("eval=") for a in arguments):
            return _prepare_items(arguments)
        return _prepare(read_options(arguments))
    except BrokenPipeError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space; " if full else ""
        print(f"prepare-data: {error.filename or 'writing'}: {error.strerror}; {remedy}{_left(arguments)}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"prepare-data: interrupted; {_left(arguments)}.", file=sys.stderr)
        return 130


def _left(arguments: Sequence[str]) -> str:
    """What an end before the end has left behind."""
    from lst.data.preparing.work_folder import WorkFolder
    from lst.evals.make_items import work_file

    named = [a.removeprefix("out=") for a in arguments if a.startswith("out=")] or list(arguments[1:2])
    path = None
    if named:
        of_items = any(a.startswith("eval=") for a in arguments)
        path = work_file(Path(named[0])) if of_items else WorkFolder(Path(named[0])).path
    if path is None or not path.exists():
        return "nothing was written"
    return f"what is finished is kept in '{path}', and the same command goes on from there"


def read_options(arguments: Sequence[str]) -> PrepareConfig:
    """The options of a preparation from its key=value words; no file is looked at. Raises ConfigError on a wrong one."""
    config = from_dict(PrepareConfig, _values(arguments))
    config.validate()
    return config


def _values(arguments: Sequence[str], of: type = PrepareConfig) -> dict[str, Any]:
    """key=value arguments as values of the options' types. Raises ConfigError."""
    wrong = [a for a in arguments if "=" not in a]
    if wrong:
        close = difflib.get_close_matches(wrong[0], VERBS, n=1) if wrong[0] == arguments[0] else []
        what = f"no verb; did you mean '{close[0]}'?" if close else f"no key=value; write for example: {EXAMPLE}"
        raise ConfigError(f"'{wrong[0]}' is {what}")
    keys = Counter(a.split("=", 1)[0] for a in arguments)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given {keys[twice[0]]} times; give it once.")
    kinds = typing.get_type_hints(of)
    return {key: _value(key, text, kinds.get(key, str)) for key, text in map(_split, arguments)}


def _split(argument: str) -> tuple[str, str]:
    key, _, text = argument.partition("=")
    return key, text


def _value(key: str, text: str, kind: type) -> object:
    """`text` as the option's type. A path is taken as it stands, whatever it looks like. Raises ConfigError."""
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is bool:
        raise ConfigError(f"{key}={text} must be true or false.")
    try:
        return kind(text)
    except ValueError as error:
        raise ConfigError(f"{key}={text} must be of type {kind.__name__}.") from error


def _run_verb(name: str, *arguments: str) -> int:
    """A verb's exit status. What fails because a file of the data set is damaged is told as `verify` tells it."""
    try:
        return VERBS[name](arguments)
    except (LstError, OSError):
        raise
    except Exception:
        from lst.data.preparing.verify import verify_dataset
        from lst.data.shards import open_dataset

        verify_dataset(open_dataset(next(a for a in arguments if "=" not in a)).path)
        raise


def _verify(arguments: Sequence[str]) -> int:
    from lst.data.preparing.verify import verify_dataset
    from lst.data.shards import open_dataset

    folder = _folder("verify", arguments)
    manifest = verify_dataset(open_dataset(folder).path)
    print(f"{folder}: all {len(manifest['files'])} files are whole (data_id {manifest['data_id']}).")
    return 0


def _overlap(arguments: Sequence[str]) -> int:
    from lst.data.preparing.overlap import describe_overlap, measure_overlap
    from lst.data.shards import open_dataset

    given = [a for a in arguments if a.startswith("ngram=")]
    folder = _folder("overlap", [a for a in arguments if a not in given])
    ngram = _value("ngram", given[-1].removeprefix("ngram="), int) if given else PrepareConfig.ngram
    from_dict(PrepareConfig, {"out": folder, "input": folder, "ngram": ngram}).validate()
    dataset = open_dataset(folder)
    print(describe_overlap(measure_overlap(dataset.path, dataset.manifest, typing.cast(int, ngram))))
    return 0


def _merge(arguments: Sequence[str]) -> int:
    """Join the parts, with the options that they were read with, or others of the second stage."""
    options = [a for a in arguments if "=" in a]
    folder = _folder("merge", [a.removeprefix("out=") for a in arguments if "=" not in a or a.startswith("out=")])
    given = _values([a for a in options if not a.startswith("out=")])
    from lst.data.preparing.preparation import JOINING, merge

    for key in given:
        if key not in PrepareConfig.__dataclass_fields__:
            raise ConfigError(f"unknown key '{key}'; {did_you_mean(key, JOINING)}")
        if key not in JOINING:
            raise ConfigError(f"{key} was decided when the parts were read; merge takes only {', '.join(JOINING)}.")
    from_dict(PrepareConfig, {"out": folder, "input": "parts", **given}).validate()
    merge(Path(folder), given)
    _describe(Path(folder))
    return 0


def _prepare_items(arguments: Sequence[str]) -> int:
    """eval=FILE: an item set in place of a data set."""
    from lst.evals.make_items import ItemsConfig, prepare_items

    print(prepare_items(_values(arguments, ItemsConfig)))
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "merge": _merge,
    "verify": _verify,
    "overlap": _overlap,
    "statistics": quality.statistics,
    "report": quality.report,
    "speak": speak,
}


def _folder(verb: str, arguments: Sequence[str]) -> str:
    if len(arguments) != 1:
        raise ConfigError(f"{verb} needs one folder, as in: prepare-data {verb} data/mine")
    return arguments[0]


def _prepare(config: PrepareConfig) -> int:
    out = Path(config.out)
    if config.corpus:
        from lst.data.corpus.build import build_embedded

        build_embedded(out, limit_documents=config.limit_documents or None, workers=config.workers or os.cpu_count() or 1)
        _describe(out)
        return 0
    from lst.data.preparing.preparation import prepare

    if not prepare(config):
        i, n = config.part_of
        print(f"{out}: part {i} of {n} is read; when all are, join them with: prepare-data merge {out}")
        return 0
    _describe(out)
    return 0


def _describe(out: Path) -> None:
    """What the manifest counts."""
    from lst.data.shards import open_dataset
    from lst.data.vocab import FRAMES_PER_SECOND

    manifest = open_dataset(out).manifest
    print(f"{out}: data_id {manifest['data_id']}")
    for table, rows in manifest["rows"].items():
        print(f"  {table:<8} {rows:,} documents")
        for split in dict.fromkeys(shard["split"] for shard in manifest.get("shards", {}).get(table, [])):
            shards = [shard for shard in manifest["shards"][table] if shard["split"] == split]
            documents, tokens = (sum(shard[key] for shard in shards) for key in ("rows", "tokens"))
            hours = f" ({tokens / FRAMES_PER_SECOND / 3600:,.2f} hours)" if table == "speech" else ""
            print(f"    {split:<8} {documents:,} documents, {tokens:,} tokens{hours}")


if __name__ == "__main__":
    sys.exit(main())
