"""What went wrong with a run: an exception as a failure class, one sentence and an exit code (docs/run_folder.md)."""

from __future__ import annotations

import errno
import traceback

from lst.errors import CheckpointError, ConfigError, DataError, LstError, RunFailed
from lst.train.distributed import RankFailed

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TRACEBACK_LINES = 40


class Diverged(RunFailed):
    """The loss or the gradient is no finite number."""


class OutOfMemory(RunFailed):
    """The run does not fit into the memory, with the smallest micro-batch too."""


def failure_class(error: BaseException) -> str:
    """nan | disk_full | oom | config | data | import | error."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "disk_full"
    if isinstance(error, RankFailed):
        return error.kind
    for kind, name in (
        (Diverged, "nan"),
        (ConfigError, "config"),
        (CheckpointError, "config"),
        (DataError, "data"),
        (ImportError, "import"),
        (OutOfMemory, "oom"),
    ):
        if isinstance(error, kind):
            return name
    return "oom" if is_out_of_memory(error) else "error"


def failure_cause(error: BaseException, run_dir: object) -> str:
    """One sentence for the user: what, and the remedy where there is a common one."""
    kind = failure_class(error)
    if isinstance(error, LstError):
        return str(error)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if kind == "disk_full":
        return (
            f"no space left to write to '{run_dir}' ({first}); free some and run it again, it resumes from its last checkpoint."
        )
    if kind == "oom":
        return f"out of memory ({first}); lower execution.micro_batch_tokens and run it again."
    if kind == "import":
        return f"a package is missing or broken ({first}); install the project's requirements again."
    return f"{type(error).__name__}: {first}"


def exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, LstError) else 1


def traceback_tail(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-TRACEBACK_LINES:])


def is_out_of_memory(error: BaseException) -> bool:
    """Python's and torch's own errors; on a CPU torch's allocator raises a plain RuntimeError with one of these texts."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("can't allocate memory", "not enough memory", "bad_alloc", "CUDA error: out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
