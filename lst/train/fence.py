"""A runner that has lost its run writes no more: the launcher's lease, as the trainer sees it.

The launcher names the owner of the run in RUN_DIR/lease.json, and tells the trainer by LST_LEASE whose it is. Whoever takes the
run over writes another owner there first. Without LST_LEASE (a run started by hand) there is nothing to compare. Not here: how
a lease is taken and kept (the launcher).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from lst.errors import RunFailed
from lst.records import LEASE, read_json

VARIABLE = "LST_LEASE"
LOOKS = 5  # a file that is just being rewritten may be read torn
LOOK_SECONDS = 0.02


class Fenced(RunFailed):
    """Another runner has this run now."""

    exit_code = 76


def lease_lost(run_dir: Path) -> bool:
    """Whether the run belongs to another runner than the one that started this process."""
    mine = os.environ.get(VARIABLE)
    if not mine:
        return False
    for _ in range(LOOKS):
        content = read_json(run_dir / LEASE)
        if content is not None:
            return content.get("owner") != mine
        time.sleep(LOOK_SECONDS)
    return True


def require_lease(run_dir: Path) -> None:
    """Raises Fenced if another runner has the run: called just before anything of the run is written."""
    if lease_lost(run_dir):
        raise Fenced(f"run '{run_dir}' was taken over by another runner; this one writes nothing more and leaves.")
