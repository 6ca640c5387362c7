"""A preparation from its options to the finished folder: read the blocks of a part, join them, or say that it is done already.

What a data set was made from (options, names, sizes and times of the inputs, identities of the sources) stands in the work
folder while it is prepared (lst/data/preparing/work_folder.py), and in the manifest under "made_from" afterwards: the same
command given again finds a finished folder, and writes nothing. Not here: the command and its options (lst/data/prepare.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.data.preparing.building import read_part
from lst.data.preparing.joining import Join
from lst.data.preparing.work_folder import ONE_PART, WorkFolder, fingerprint, fingerprint_files, made_note, with_tokenizer
from lst.data.shards import MANIFEST
from lst.data.sources import open_sources, settle
from lst.data.text import TextTokenizer
from lst.errors import DataError
from lst.plain import to_dict
from lst.records import read_json

if TYPE_CHECKING:
    from lst.data.prepare import PrepareConfig
    from lst.data.sources.base import Source

JOINING = ("heldout_share", "split_by", "refuse", "max_refused", "vocab_size", "tokenizer", "ngram")
"""Options of the second stage: what is read does not depend on them, and `merge` may change them."""
INPUTS = ("input", "text", "labels", "transcripts", "alignments")
"""Options that name a file or a folder that is read: those are compared by name, size and time of change."""
ELSEWHERE = ("out", "part", "corpus", "limit_documents", "workers", "batch_seconds", "device")
"""Options that decide nothing about what is read. Every other one does, and must be the same for all parts."""


def prepare(config: PrepareConfig) -> bool:
    """Both stages in one part, or the reading of one of several; whether the data set is there.

    Raises LstError on a user's mistake or a folder in use, OSError on a full disk. The data set is there whole or not at all.
    """
    work, part = WorkFolder(Path(config.out)), config.part_of
    done = made_before(work)
    if done is not None:
        _require_inputs(work.out, done["inputs"], _named_inputs(config))  # before a model is loaded to read them
    config = settle(config)
    sources = open_sources(config)
    if config.tokenizer:
        TextTokenizer(Path(config.tokenizer))  # now, and not after hours of reading
    made_from = _made_from(config, sources)
    if done is not None:
        _require_same(work.out, done, made_from, joins=part == ONE_PART)
        return True
    with work.held(part):
        if work.out.exists():
            return _clear_rest(work)
        try:
            work.begin(made_from, joins=part == ONE_PART)
            read_part(work, sources, part, stop=config.refuse == "stop", max_refused=config.max_refused)
            _require_unchanged(work, made_from["inputs"], _named_inputs(config))
            if part == ONE_PART:
                Join(work, made_from["joining"]).run()
        except BaseException:
            if part == ONE_PART and not work.worth_keeping():
                work.remove()
            raise
    return part == ONE_PART


def merge(out: Path, given: Mapping[str, Any]) -> None:
    """Join the parts of `out`; `given` are options of the second stage, by JOINING. Raises as `prepare`."""
    work = WorkFolder(out)
    done = made_before(work)
    if done is not None:
        _require_options(out, done["joining"], with_tokenizer(given))
        print(_already(out))
        return
    if not work.path.exists():
        work.made_from()  # says what is missing
    with work.held(None):
        if out.exists():
            _clear_rest(work)
            return
        Join(work, work.made_from()["joining"] | dict(given)).run()


def made_before(work: WorkFolder) -> dict[str, Any] | None:
    """What the finished folder was made from; None where there is none yet, or its preparation has a step to go.

    Raises DataError where the folder is something else: it is left alone.
    """
    if not work.out.exists() or work.path.exists():
        return None
    made: dict[str, Any] | None = (read_json(work.out / MANIFEST) or {}).get("made_from")
    if made is None:
        raise there(work.out)
    return made


def there(out: Path, why: str = "") -> DataError:
    """The refusal to write over `out`."""
    return DataError(f"out={out} exists already{why}; choose another folder, or delete it to prepare anew.")


def _made_from(config: PrepareConfig, sources: Mapping[str, Source]) -> dict[str, Any]:
    options = to_dict(config)
    blocks = {table: source.blocks() for table, source in sources.items()}
    joining = {key: options[key] for key in JOINING} | {"tokenizer": config.tokenizer and str(Path(config.tokenizer).resolve())}
    return {
        "reading": {key: value for key, value in options.items() if key not in (*JOINING, *INPUTS, *ELSEWHERE)},
        "joining": joining,
        "inputs": _named_inputs(config)
        | {f"a file of {table}": fingerprint_files({block.file for block in found}) for table, found in blocks.items()},
        "blocks": {table: len(found) for table, found in blocks.items()},
        "identity": {table: source.identity() for table, source in sources.items()},
        "about": {"source": Path(config.input).name, "text": Path(config.text).name or "transcripts"},
    }


def _require_same(out: Path, done: Mapping[str, Any], made_from: Mapping[str, Any], *, joins: bool) -> None:
    """Say that `out` is done. Raises DataError where it was made otherwise; a part (not `joins`) has no say in the join."""
    now = made_note(made_from, made_from["joining"])
    _require_options(out, done["reading"], now["reading"])
    if joins:
        _require_options(out, done["joining"], now["joining"])
    _require_inputs(out, done["inputs"], now["inputs"])
    if done["inputs"].keys() != now["inputs"].keys():
        raise there(out, f", made from {', '.join(done['inputs'])}, and this command names {', '.join(now['inputs'])}")
    if (done["blocks"], done["identity"]) != (now["blocks"], now["identity"]):
        raise there(out, ", and was made by another version of a reader, or by another speech tokenizer or aligner")
    print(_already(out))


def _named_inputs(config: PrepareConfig) -> dict[str, Any]:
    """The fingerprint of each file or folder that an option names."""
    return {key: fingerprint(Path(getattr(config, key))) for key in INPUTS if getattr(config, key)}


def _require_unchanged(work: WorkFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises DataError where an input was written to while it was read: blocks may hold some of both."""
    changed = [key for key, value in now.items() if before[key] != value]
    if changed:
        raise DataError(f"{changed[0]} has changed while it was read; when it is finished, delete '{work.path}' and begin anew.")


def _require_inputs(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise there(out, f", and {key} is another now, or has changed since (its name, size or time of change)")


def _require_options(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise there(out, f", made with {key}={before.get(key)}, and this command has {key}={value}")


def _already(out: Path) -> str:
    return f"{out} is done already, from the same input with the same options; nothing was written."


def _clear_rest(work: WorkFolder) -> bool:
    """The work folder of a preparation that was stopped between its last two steps goes. Raises DataError if it is another's."""
    if work.has_unjoined():
        raise DataError(
            f"out={work.out} exists already, and '{work.path}' holds blocks for it; delete one of the two, or choose "
            "another folder."
        )
    work.remove()
    return True
