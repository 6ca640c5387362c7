"""Where the five commands start: each imports its own module, and Ctrl-C while it does ends it at once with status 130.

Importing takes a while, and a traceback from the middle of it tells nobody anything; nothing has been begun by then. Once it is
done `lst.command.ended` sees to Ctrl-C. Not here: what the commands do. Other packages are named here, and imported for a command
that is theirs alone.
"""

from __future__ import annotations

import importlib
import os
import signal


def prepare_data() -> int:
    return _run("lst.data.prepare")


def plan_sweep() -> int:
    return _run("sweeps.cli")


def submit_sweep() -> int:
    return _run("launch.cli")


def fit_scaling() -> int:
    return _run("analysis.cli")


def scaling_report() -> int:
    return _run("reports.cli")


def _run(module: str) -> int:
    """The exit status of the module's `main`."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _leave)
    main = importlib.import_module(module).main
    signal.signal(signal.SIGINT, before)
    status: int = main()
    return status


def _leave(*_: object) -> None:
    os._exit(130)
