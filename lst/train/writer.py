"""When a checkpoint is written: at once, or in a thread while training goes on.

A snapshot in the CPU's memory is what the thread writes, so the checkpoint is of one moment. At most one is being written; the
next waits for it. A failure in the thread is kept until the ranks meet at a step boundary. Not here: files
(lst.train.checkpoint).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from lst.train.checkpoint import Snapshot, save_checkpoint
from lst.train.distributed import Ranks


class CheckpointWriter:
    """Writes the checkpoints of one run."""

    def __init__(self, run_dir: Path, ranks: Ranks, *, asynchronous: bool) -> None:
        self.run_dir, self.ranks, self.asynchronous = run_dir, ranks, asynchronous
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether the write in the background has failed on this rank; `wait` raises what it was."""
        return self._error is not None

    def save(self, take: Callable[[bool], Snapshot]) -> None:
        """Write the snapshot that `take(whether to copy)` makes. Called by all ranks; raises what writing raises."""
        self.wait()
        snapshot = take(self.asynchronous)
        if not self.asynchronous:
            self.ranks.together(lambda: save_checkpoint(self.run_dir, snapshot, self.ranks))
            return
        # No daemon: a program that ends in good order finishes its checkpoint. A kill leaves a hidden folder, as ever.
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Called by all ranks; raises what failed meanwhile."""
        if self.asynchronous:
            self.finish_quietly()
            self.ranks.together(self._raise)

    def finish_quietly(self) -> None:
        """Until this rank writes nothing, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot) -> None:
        try:
            save_checkpoint(self.run_dir, snapshot, self.ranks)
        except Exception as error:
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
