"""Weights in a folder as files: which safetensors files hold them, and a content hash that names them. No torch.

A folder holds `model.safetensors`, or the shards that `model.safetensors.index.json` lists. Pickled weights are refused:
reading them would execute them. `weights_hash` is the identity of a warm start (`train.init_from`): it hashes names, types,
shapes and values of the tensors, so neither the folder's place nor how the tensors are split into files changes it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lst.errors import CheckpointError
from lst.plain import RUN_ID_DIGITS
from lst.records import CHECKPOINTS, RUN_CONFIG

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth")
_HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # types that weights are taken of -> bytes
_CHUNK = 1 << 24  # bytes read at a time


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, not read yet."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    end: int


def parse_json(text: str | bytes) -> Any:
    """What `text` holds as JSON. Raises ValueError alone, whatever the text."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def checkpoint_folder(path: str | Path) -> Path:
    """The checkpoint that `path` means: itself, or the final one of a finished run."""
    folder = Path(path)
    final = folder / CHECKPOINTS / "final"
    return final if final.is_dir() else folder


def require_folder(folder: Path, wanted: str) -> None:
    """CheckpointError, asking for `wanted`, if `folder` is not there or is a file."""
    if folder.is_dir():
        return
    if folder.exists():
        raise CheckpointError(f"'{folder}' is a file; give {wanted}.")
    raise CheckpointError(f"folder '{folder}' does not exist; give {wanted}.")


def no_checkpoint(folder: Path) -> CheckpointError:
    """The error about a folder without weights; of an unfinished run it names the newest step checkpoint."""
    steps = sorted(path.name for path in (folder / CHECKPOINTS).glob("step-" + "[0-9]" * 8))
    if steps:
        newest = f"{CHECKPOINTS}/{steps[-1]}"
        return CheckpointError(f"'{folder}': the run is not finished; its newest checkpoint is {newest}: give that folder.")
    if (folder / RUN_CONFIG).is_file():
        return CheckpointError(f"'{folder}': the run is not finished and has no checkpoint yet; train it first.")
    return CheckpointError(f"'{folder}' is no checkpoint; give studies/X/runs/<run_id> or a folder made by export.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`. Raises CheckpointError if it is no folder, or has none."""
    require_folder(folder, f"a folder with {MODEL}")
    if (folder / MODEL).is_file():
        return [folder / MODEL]
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(parse_json(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"'{index}' is no index of weights ({error}); download or save the folder again.") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"'{index}' names '{name}', which is not in the folder; download or save it again.")
        return [folder / name for name in names]
    pickled = [name for name in _PICKLED if (folder / name).exists()]
    if pickled:
        raise CheckpointError(f"'{folder}' has its weights pickled in {pickled[0]}, which is not read; save them as safetensors.")
    if (folder / "config.json").is_file():  # of a checkpoint or of a Hugging Face model
        raise CheckpointError(f"'{folder}' has no {MODEL}; save or download the folder again.")
    raise no_checkpoint(folder)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder by name, from the files' headers. Raises CheckpointError on a truncated or foreign file."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in _header(file):
            if name in found:
                raise CheckpointError(f"tensor '{name}' is in '{found[name].file}' and in '{file}'; save the folder again.")
            found[name] = tensor
    return found


def weights_hash(folder: str | Path) -> str:
    """12 hex digits that name the tensors of a folder, for `train.init_from`. Raises CheckpointError."""
    digest = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(Path(folder)).items()):
        digest.update(json.dumps([name, tensor.dtype, list(tensor.shape)]).encode())
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left:
                data = file.read(min(left, _CHUNK))
                if not data:
                    raise CheckpointError(f"'{tensor.file}' ended while it was read; save the folder again.")
                digest.update(data)
                left -= len(data)
    return digest.hexdigest()[:RUN_ID_DIGITS]


def _header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors that a safetensors file announces, each inside the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("its header is cut off")
            if length > _HEADER_LIMIT:
                raise ValueError(f"its header is of {length:,} bytes, {_HEADER_LIMIT:,} are allowed")
            header: dict[str, Any] = parse_json(stream.read(length))
        tensors = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if not all(type(number) is int and number >= 0 for number in [*entry["data_offsets"], *entry["shape"]]):
                raise ValueError(f"tensor '{name}' has a place or a shape of no whole numbers")
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            if not 8 + length <= start <= end <= size:
                raise ValueError(f"tensor '{name}' is cut off")
            width = FLOATS.get(str(entry["dtype"]))
            if width and math.prod(entry["shape"]) * width != end - start:
                raise ValueError(f"tensor '{name}' has not the bytes of its shape")
            tensors.append((name, StoredTensor(file, str(entry["dtype"]), tuple(entry["shape"]), start, end)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{file}' cannot be read as safetensors ({error}); save or download it again.") from error
    yield from tensors
