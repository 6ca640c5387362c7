"""`prepare-data`: from files that people have to a prepared data set (lst/data/shards.py).

    prepare-data input=speech.jsonl out=DIR [text=book.txt] [tokenizer=FILE.model] [refuse=skip max_refused=0.01]
    prepare-data corpus=embedded out=DIR          rebuild the embedded corpus (needs the extra `speech`)
    prepare-data verify DIR                       compare every file with the manifest's checksum

A line of the input is one spoken document, its frames counted at 25 Hz, `start` and `end` both inside the word:

    {"id": "b1-0001", "speech_tokens": [17, 17, 402], "text": "The cat", "words": [{"word": "The", "start": 0, "end": 1}, ...]}

docs/data.md explains the format and every option.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.data.sources.base import Record, Refused, Row, Source
from lst.errors import ConfigError, DataError, LstError
from lst.plain import from_dict

EXAMPLE = "prepare-data input=speech.jsonl out=data/mine"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Options of `prepare-data`, given as key=value."""

    out: str  # new folder for the prepared data set
    input: str = ""  # JSON lines of spoken documents
    corpus: str = ""  # 'embedded': rebuild the embedded corpus instead of reading an input
    text: str = ""  # .txt (paragraphs between blank lines) or .jsonl ({"id", "text"}); default: the transcripts
    tokenizer: str = ""  # SentencePiece .model; default: one is trained on the training text
    vocab_size: int = 4_000  # pieces of a tokenizer that is trained here
    speech_vocab: int = 501  # speech tokens are 0 .. speech_vocab - 1 (the paper's codebook has 501)
    heldout_share: float = 0.05  # share of books (else speakers, else documents) held out, where lines name no split
    refuse: str = "stop"  # stop at the first malformed line, or skip it and go on
    max_refused: float = 0.01  # with refuse=skip: largest share of malformed lines
    compress: bool = False  # Parquet (small) instead of memory-mapped Arrow
    limit_documents: int = 0  # corpus=embedded: build only so many spoken documents; 0 = all
    workers: int = 0  # corpus=embedded: processes; 0 = one a core

    def validate(self) -> None:
        if not self.out:
            raise ConfigError(f"out is empty; name a new folder, for example: {EXAMPLE}")
        if bool(self.input) == bool(self.corpus):
            raise ConfigError(f"give either input=FILE or corpus=embedded, for example: {EXAMPLE}")
        if self.corpus not in ("", "embedded"):
            raise ConfigError(f"corpus='{self.corpus}' is unknown; did you mean 'embedded'?")
        if self.refuse not in ("stop", "skip"):
            raise ConfigError(f"refuse='{self.refuse}' is unknown; use stop or skip.")
        for key in ("heldout_share", "max_refused"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must lie in 0..1, 1 excluded.")
        if not 1 <= self.speech_vocab <= 65_536:
            raise ConfigError(f"speech_vocab={self.speech_vocab} must lie in 1..65536.")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="prepare-data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="options, or: verify DIR")
    arguments = parser.parse_args(argv).arguments
    try:
        if not arguments:
            raise ConfigError(f"prepare-data needs its options as key=value, for example: {EXAMPLE}")
        if arguments[0] == "verify":
            return _verify(arguments[1:])
        return _prepare(_options(arguments))
    except LstError as error:
        print(f"prepare-data: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"prepare-data: {error.filename or 'the disk'}: {error.strerror}; nothing was written.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare-data: interrupted; nothing was written.", file=sys.stderr)
        return 130


def _options(arguments: Sequence[str]) -> PrepareConfig:
    wrong = [a for a in arguments if "=" not in a]
    if wrong:
        raise ConfigError(f"'{wrong[0]}' is no key=value; write for example: {EXAMPLE}")
    keys = Counter(a.split("=", 1)[0] for a in arguments)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given {keys[twice[0]]} times; give it once.")
    kinds = typing.get_type_hints(PrepareConfig)
    config = from_dict(PrepareConfig, {key: _value(key, text, kinds.get(key, str)) for key, text in map(_split, arguments)})
    config.validate()
    return config


def _split(argument: str) -> tuple[str, str]:
    key, _, text = argument.partition("=")
    return key, text


def _value(key: str, text: str, kind: type) -> object:
    """`text` as the option's type. A path is taken as it stands, whatever it looks like. Raises ConfigError."""
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return text if kind is bool else kind(text)  # a text for a bool is refused by name in from_dict
    except ValueError as error:
        raise ConfigError(f"{key}={text} must be of type {kind.__name__}.") from error


def _verify(arguments: Sequence[str]) -> int:
    from lst.data.shards import open_dataset

    if len(arguments) != 1:
        raise ConfigError("verify needs one folder, as in: prepare-data verify data/mine")
    dataset = open_dataset(arguments[0])
    dataset.verify()
    print(f"{arguments[0]}: all {len(dataset.manifest['files'])} files are whole (data_id {dataset.data_id}).")
    return 0


def _prepare(config: PrepareConfig) -> int:
    out = Path(config.out)
    if out.exists():
        raise DataError(f"out={out} exists already; choose another folder, or delete it to prepare anew.")
    if config.corpus:
        from lst.data.corpus import build_embedded

        build_embedded(out, limit_documents=config.limit_documents or None, workers=config.workers or os.cpu_count() or 1)
    else:
        prepare_jsonl(config, out)
    _describe(out)
    return 0


def prepare_jsonl(config: PrepareConfig, out: Path) -> str:
    """Prepare JSON lines into `out`; returns the data_id. Raises DataError on malformed input; writes all or nothing."""
    import pyarrow as pa

    from lst.data.shards import write_dataset
    from lst.data.sources.contract import SpokenContract
    from lst.data.sources.speech_jsonl import SpeechJsonl, own_contract

    source = Path(config.input)
    speech = SpeechJsonl([source], own_contract(SpokenContract(speech_vocab=config.speech_vocab)))
    rows, refused = _read(speech, stop=config.refuse == "stop")
    _check_refusals(config, len(rows), refused)
    in_heldout = _splitter(config.heldout_share, [_group(r) for r in rows])
    for row in rows:
        row["split"] = row["split"] or ("heldout" if in_heldout(_group(row)) else "train")
    texts = _texts(config, rows)
    for name, table in (("spoken", rows), ("text", texts)):
        if not any(r["split"] == "train" for r in table):
            raise DataError(f"input={source} leaves no {name} document for training; lower heldout_share={config.heldout_share}.")
    tables = {"speech": pa.Table.from_pylist(rows), "text": pa.Table.from_pylist(texts)}
    about = {"source": source.name, "refused": len(refused), "text": Path(config.text).name or "transcripts"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with _tokenizer(config, texts, out.parent) as tokenizer:
        return write_dataset(
            out, tables, tokenizer=tokenizer, speech_vocab=config.speech_vocab, about=about, compress=config.compress
        )


def _read(source: Source, *, stop: bool) -> tuple[list[Row], list[str]]:
    """The well-formed rows of `source` and a sentence for each refusal; with `stop`, DataError at the first."""
    rows: list[Row] = []
    refused: list[str] = []
    seen: set[str] = set()
    for block in source.blocks():
        for record in _with_progress(source.read(block), block.file.name):
            if isinstance(record, Record) and record.row["id"] in seen:
                reason = f"id '{record.row['id']}' stands on an earlier line too"
                record = Refused(block.file, reason, record.line, record.place)
            if isinstance(record, Record):
                seen.add(record.row["id"])
                rows.append(record.row)
                continue
            if stop:
                raise DataError(f"{record}; mend the line, or go on without such lines by refuse=skip.")
            refused.append(str(record))
    return rows, refused


def _check_refusals(config: PrepareConfig, kept: int, reasons: list[str]) -> None:
    total = kept + len(reasons)
    if total == 0:
        raise DataError(f"input={config.input} has no line; give a file of JSON lines.")
    if len(reasons) > config.max_refused * total:
        raise DataError(
            f"{len(reasons)} of {total} lines of {config.input} are malformed, more than max_refused={config.max_refused}; "
            f"the first: {reasons[0]}"
        )
    for reason in reasons:
        print(f"refused {reason}", file=sys.stderr)


def _group(row: dict[str, Any]) -> str:
    """What is kept on one side of the split: the book, else the speaker, else the document."""
    return str(row.get("book") or row.get("speaker") or row["id"])


def _splitter(share: float, groups: Sequence[str]) -> Callable[[str], bool]:
    """Holds out the groups whose hashes are lowest: at least one if there are two, and never all."""
    names = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = min(max(round(share * len(names)), 1 if share else 0), len(names) - 1)
    held = set(names[: max(count, 0)])
    return lambda name: name in held


def _texts(config: PrepareConfig, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the text table: paragraphs of `text`, or the transcripts with their documents' split."""
    if not config.text:
        return [{key: row[key] for key in ("id", "book", "split", "text")} for row in rows if row["text"].strip()]
    path = Path(config.text)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text={path} cannot be read as UTF-8 ({error}); give a .txt or .jsonl file.") from error
    if path.suffix == ".jsonl":
        texts = [_text_record(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    else:
        paragraphs = (" ".join(p.split()) for p in content.split("\n\n"))
        texts = [
            {"id": f"{path.stem}-{i:06}", "book": "", "split": "", "text": p} for i, p in enumerate(filter(None, paragraphs))
        ]
    spoken = {row["book"]: row["split"] for row in rows if row["book"]}  # a book stays on one side, spoken and written
    others = [t["book"] or t["id"] for t in texts if not t["split"] and t["book"] not in spoken]
    in_heldout = _splitter(config.heldout_share, others) if others else (lambda _: False)
    for text in texts:
        drawn = "heldout" if in_heldout(text["book"] or text["id"]) else "train"
        text["split"] = text["split"] or spoken.get(text["book"], drawn)
    return texts


def _text_record(path: Path, number: int, line: str) -> dict[str, Any]:
    from lst.data.shards import SPLITS
    from lst.data.sources.base import require_utf8

    try:
        record = json.loads(line)
        if not isinstance(record["text"], str) or not record["text"].strip():
            raise KeyError("text")
        fields = {"id": str(number), "book": "", "split": ""}
        row = {key: str(record.get(key, default)) for key, default in fields.items()} | {"text": record["text"]}
        for key, value in row.items():
            require_utf8(key, value)
        if row["split"] not in ("", *SPLITS):
            raise ValueError(f"split '{row['split']}'")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}:{number}: no text document ({error}); write {{"id": ..., "text": ...}}.') from error
    return row


@contextlib.contextmanager
def _tokenizer(config: PrepareConfig, texts: Sequence[dict[str, Any]], folder: Path) -> Iterator[Path]:
    """The given SentencePiece model, or one trained on the training text and kept only while it is copied."""
    if config.tokenizer:
        yield Path(config.tokenizer)
        return
    with tempfile.TemporaryDirectory(prefix=".tokenizer-", dir=folder) as aside:
        trained = Path(aside) / "tokenizer.model"
        trained.write_bytes(train_tokenizer([t["text"] for t in texts if t["split"] == "train"], config.vocab_size))
        yield trained


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model of `vocab_size` pieces (unk 0, bos 1, eos 2), serialised. Raises DataError."""
    import sentencepiece

    from lst.data.vocab import BOS, EOS

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            num_threads=1,
            unk_id=0,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # SentencePiece says which size would fit: "Please set it to a value <= 404."
        fitting = re.search(r"<= *(\d+)", str(error))
        remedy = f"give vocab_size={fitting[1]} or less" if fitting else "choose another size"
        raise DataError(
            f"the training text is too small for a tokenizer of vocab_size={vocab_size}; {remedy}, or tokenizer=FILE."
        ) from error
    return model.getvalue()


def _with_progress(rows: Any, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(rows, desc=f"reading {name}", unit=" documents", disable=None, delay=2)


def _describe(out: Path) -> None:
    from lst.data.shards import open_dataset
    from lst.data.statistics import corpus_statistics

    dataset = open_dataset(out)
    sizes = corpus_statistics(dataset)
    print(f"{out}: data_id {dataset.data_id}")
    print(f"  training: {sizes['spoken_documents']:,} spoken documents, {sizes['unique_speech_tokens']:,} speech tokens")
    print(f"            ({sizes['speech_seconds'] / 3600:,.2f} hours), {sizes['spoken_words']:,} words spoken,")
    print(f"            {sizes['text_documents']:,} text documents, {sizes['unique_text_tokens']:,} text tokens")
    spoken, written = (len(dataset.rows(name, "heldout")) for name in ("speech", "text"))
    print(f"  held out: {spoken:,} spoken documents, {written:,} text documents")


if __name__ == "__main__":
    sys.exit(main())
