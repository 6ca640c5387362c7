"""A folder of weights: model.safetensors + config.json + manifest.json, written whole, verified when it is read.

Arm `bpe` adds speech_bpe.model, the pieces of its speech.

    model, config = load_checkpoint("study/runs/0123456789ab")
    export_checkpoint(model, config, "my-model")

Checkpoints of the trainer hold the same three files beside the optimiser's, so a run in progress can be read too. Nothing
in such a folder is executable: tensors are safetensors, the rest is JSON. Not here: when to save and which checkpoint to
resume from (lst.train.checkpoint).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lst.config import RunConfig
from lst.data.speech_bpe import MODEL_FILE as SPEECH_BPE
from lst.data.speech_bpe import SpeechBpe, remember, require_sizes, run_pieces
from lst.errors import CheckpointError, DataError, LstError
from lst.plain import to_dict
from lst.weight_files import MODEL as MODEL
from lst.weight_files import checkpoint_folder, no_checkpoint, parse_json, require_folder, stored_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG = "config.json"
MANIFEST = "manifest.json"

_DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


class Shaped(Protocol):
    """What a tensor file's header needs to know of a tensor."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...


def _dtype_name(tensor: Shaped) -> str:
    return _DTYPE_NAMES[str(tensor.dtype).removeprefix("torch.")]


def load_checkpoint(path: str | Path, *, device: str = "cpu") -> tuple[nn.Module, RunConfig]:
    """The model (in evaluation mode, on `device`) and the configuration of the checkpoint in folder `path`.

    `path` is a checkpoint's folder or the folder of a finished run. Raises CheckpointError if it is neither, or if a file is
    missing, was changed since it was written, or does not hold this model's tensors.
    """
    from lst.model import build_model

    folder = checkpoint_folder(path)
    verify_folder(folder)
    config = read_config(folder)
    require_count(folder, config)
    read_pieces(folder, config)
    model = build_model(config)
    load_weights(model, folder / MODEL)
    return model.to(device).eval(), config


def export_checkpoint(model: nn.Module, config: RunConfig, folder: str | Path) -> Path:
    """Write `model` (fp32, unsharded) and its configuration into `folder`, new or empty, whole or not at all; its path.

    `load_checkpoint(folder)` gives both back. Raises CheckpointError if the folder holds anything already or the model is not
    the configuration's, OSError on a full disk.
    """
    from lst.flops import parameter_counts
    from lst.model.build import count_parameters

    found, wanted = count_parameters(model), parameter_counts(config.model)
    if found != wanted:
        group = next(group for group in wanted if found[group] != wanted[group])
        raise CheckpointError(
            f"the model has {found[group]:,} parameters in its {group}, the configuration says {wanted[group]:,}; "
            "give the configuration that it was built from."
        )
    with new_folder(Path(folder)) as inside:
        seal_folder(inside, write_model(inside, model, config))
    return Path(folder)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` at the end, or goes if anything fails.

    It has a name of its own beside `target`, so nothing else there is touched. Raises CheckpointError if `target` holds
    anything (it is kept) or cannot be a folder.
    """
    from lst.train.layout import flush_to_disk

    require_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.lst-", dir=target.parent))
    try:
        folder = hidden / "folder"  # `hidden` itself is open to its owner alone
        folder.mkdir()
        yield folder
        flush_to_disk(folder)
        folder.rename(target)  # in place of an empty folder, and of no other
        flush_to_disk(target.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def require_new(target: Path) -> None:
    """CheckpointError if `target` is neither an empty folder nor a name for a new one."""
    advice = "give a new or an empty folder, nothing is written over."
    if target.is_symlink():
        raise CheckpointError(f"'{target}' is a symbolic link; {advice}")
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"'{target}' is a file; {advice}")
    if target.is_dir() and any(target.iterdir()):
        raise CheckpointError(f"'{target}' is not empty; {advice}")
    if target.name in ("", "..") or (target.is_dir() and target.samefile(Path.cwd())):
        raise CheckpointError(f"'{target}' is the current folder or one above it; give the name of a new folder.")
    require_folders_above(target)


def require_folders_above(target: Path) -> None:
    """CheckpointError if what `target` would lie in is a file, or a link to nothing."""
    for parent in target.parents:
        if parent.is_symlink() and not parent.exists():
            raise CheckpointError(f"'{target}' lies under '{parent}', a link to nothing; give another folder.")
        if parent.exists() and not parent.is_dir():
            raise CheckpointError(f"'{target}' lies under '{parent}', which is a file; give another folder.")


def read_config(folder: Path) -> RunConfig:
    """The configuration stored in a checkpoint. Raises CheckpointError if it cannot be read by this version."""
    try:
        return RunConfig.from_dict(parse_json((folder / CONFIG).read_text()))
    except (OSError, ValueError, LstError) as error:
        raise CheckpointError(f"'{folder / CONFIG}' holds no configuration of this program: {error}") from error


def require_count(folder: Path, config: RunConfig) -> None:
    """CheckpointError if the tensors of a checkpoint are not as many numbers as its configuration makes.

    Headers and a formula tell, so a configuration of absurd size is refused before its network is built.
    """
    from lst.flops import parameter_counts

    found = sum(math.prod(tensor.shape) for tensor in stored_tensors(folder).values())
    wanted = sum(parameter_counts(config.model).values())
    if found != wanted:
        raise CheckpointError(
            f"'{folder / MODEL}' holds {found:,} numbers, its {CONFIG} makes {wanted:,}; "
            "the checkpoint belongs to another configuration."
        )


def write_model(folder: Path, model: nn.Module, config: RunConfig) -> dict[str, str]:
    """Write weights, configuration and (arm `bpe`) speech pieces into `folder`; {file: SHA-256} for the manifest.

    Raises OSError on a full disk.
    """
    return {MODEL: write_tensors(folder / MODEL, model_tensors(model)), **write_config(folder, config)}


def write_config(folder: Path, config: RunConfig) -> dict[str, str]:
    """Write the configuration and (arm `bpe`) the speech pieces into `folder`: all of a model but its tensors."""
    pieces = run_pieces(config)
    files = {CONFIG: write_file(folder / CONFIG, (json.dumps(to_dict(config), indent=1, sort_keys=True) + "\n").encode())}
    if pieces:
        files[SPEECH_BPE] = write_file(folder / SPEECH_BPE, pieces.model)
    return files


def read_pieces(folder: Path, config: RunConfig) -> None:
    """Let `make_batch` find the speech pieces of arm `bpe`, without the data set that they were made of."""
    if not config.model.speech_bpe_vocab:
        return
    try:
        pieces = SpeechBpe((folder / SPEECH_BPE).read_bytes())
    except (OSError, DataError) as error:
        raise CheckpointError(f"'{folder / SPEECH_BPE}' holds no speech pieces: {error}") from error
    if pieces.id != config.data.speech_bpe_id:
        raise CheckpointError(f"'{folder / SPEECH_BPE}' holds pieces {pieces.id}, the weights want {config.data.speech_bpe_id}.")
    try:
        require_sizes(pieces, config)
    except DataError as error:
        raise CheckpointError(f"'{folder / SPEECH_BPE}' is not of its configuration: {error}") from error
    remember(pieces)


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name; a tensor that two names share stands once, under the first."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy the tensors of `file` into `model`. Raises CheckpointError on a missing, unknown or misshapen one."""
    load_tensors(file, model_tensors(model))


def load_tensors(
    file: Path, wanted: Mapping[str, torch.Tensor], *, own_rows: Callable[[int], tuple[int, int]] | None = None
) -> None:
    """Copy each tensor of `file` into the one of the same name in `wanted`, reading one at a time.

    Of a sharded tensor with n rows only its `own_rows(n)`, first and past-the-last, are read. Raises CheckpointError, before
    anything is copied, on a missing, unknown or misshapen one, and if the file cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
            _check_tensors(file, {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}, wanted)
            with torch.no_grad():
                for name, tensor in wanted.items():
                    part = getattr(tensor, "_local_tensor", None)
                    if part is None:
                        tensor.copy_(stored.get_tensor(name))
                    else:
                        assert own_rows is not None
                        start, stop = own_rows(len(tensor))
                        part.copy_(slices[name][start:stop])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{file}' cannot be read as safetensors: {error}") from error


def copy_tensors(file: Path, wanted: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    """Copy each tensor of `stored`, as read from `file`, into the one of the same name in `wanted`.

    Raises CheckpointError, before anything is copied, on a missing, unknown or misshapen one.
    """
    import torch

    _check_tensors(file, {name: (tuple(t.shape), _dtype_name(t)) for name, t in stored.items()}, wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def _check_tensors(file: Path, stored: Mapping[str, tuple[tuple[int, ...], str]], wanted: Mapping[str, torch.Tensor]) -> None:
    """Names, shapes and types of a file's tensors against the wanted ones. Raises CheckpointError."""
    for name in sorted(stored.keys() ^ wanted.keys()):
        place = "is in no place of the model" if name in stored else "is missing"
        raise CheckpointError(f"tensor '{name}' of '{file}' {place}; the checkpoint belongs to another configuration.")
    for name, tensor in wanted.items():
        shape, dtype = stored[name]
        if shape != tuple(tensor.shape) or dtype != _dtype_name(tensor):
            raise CheckpointError(
                f"tensor '{name}' of '{file}' is {dtype} {shape}, the model's is {_dtype_name(tensor)} {tuple(tensor.shape)}; "
                "the checkpoint belongs to another configuration."
            )


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises CheckpointError if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{file}' cannot be read as safetensors: {error}") from error


def write_tensors(
    file: Path,
    tensors: Mapping[str, Shaped],
    values: Iterator[torch.Tensor] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Stream `tensors` into a safetensors file (one tensor at a time is copied to the CPU); its SHA-256.

    With `values`, the contents come from there, in order, and `tensors` say shapes and types alone.
    The library's own writer hides a full disk in an error of its own and needs a second pass for the checksum. The format:
    8 bytes of header length, a JSON header, then the tensors' bytes, little-endian, in the header's order.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {"dtype": _dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned, as the format asks
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for data in (len(text).to_bytes(8, "little"), text):
            digest.update(data)
            out.write(data)
        contents: Iterable[Any] = tensors.values() if values is None else itertools.islice(values, len(tensors))
        for tensor in contents:
            view = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(view)
            out.write(view)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def write_file(file: Path, data: bytes) -> str:
    """Write `data` and flush it to the disk; its SHA-256."""
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return hashlib.sha256(data).hexdigest()


def seal_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write the manifest {file: SHA-256} of `folder`, last of its files: a folder without one was never finished."""
    write_file(folder / MANIFEST, (json.dumps({"sha256": dict(files)}, indent=1, sort_keys=True) + "\n").encode())


def verify_folder(folder: Path, *, also: Iterable[str] = ()) -> None:
    """Raises CheckpointError naming the first file of `folder` that is missing or was changed since it was sealed.

    The manifest must list weights and configuration, and the files `also`.
    """
    require_folder(folder, "the folder of a checkpoint or of a finished run")
    if not (folder / MANIFEST).exists() and not (folder / MODEL).exists():
        raise no_checkpoint(folder)
    try:
        files = dict(parse_json((folder / MANIFEST).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint '{folder}' has no readable {MANIFEST}; it was never finished, or is damaged."
        ) from error
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError(f"checkpoint '{folder}' has a {MANIFEST} that lists no checksums of files; it is damaged.")
    for name in sorted({MODEL, CONFIG, *also} - files.keys()):
        raise CheckpointError(f"checkpoint '{folder}' lists no {name} in its {MANIFEST}; it is damaged.")
    for name, expected in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CheckpointError(f"checkpoint file {str(folder / name)!r} cannot be read: {reason}.") from error
        if found != expected:
            raise CheckpointError(
                f"checkpoint file '{folder / name}' is damaged: its checksum is not the one it was written with."
            )
