"""The one tree of errors that a user can meet, each a single sentence: what, the value it had, the remedy.

A command prints the sentence and exits with `exit_code` (0 done, 1 the work failed, 2 the input was wrong); a traceback is
for defects of the program only. `assert` stands for invariants, never for a user's mistake.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LstError(Exception):
    """Base of every error that is reported to the user as one sentence. `exit_code` is the process's exit status."""

    exit_code = 2


class ConfigError(LstError):
    """A configuration key, name or value is wrong."""


class DataError(LstError):
    """An input record, a data set or a corpus package is malformed or missing."""


class CheckpointError(LstError):
    """A checkpoint is missing, damaged, or belongs to another configuration."""


class PlanError(LstError):
    """A study cannot be planned as asked, or a folder holds another plan."""


class LaunchError(LstError):
    """A study cannot be submitted as asked."""


class FitError(LstError):
    """The data cannot support the fit that was asked for."""


class RunFailed(LstError):
    """The input was right, yet the work failed (a diverged loss, a full disk, a lost worker)."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the closest known one if any is close, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}."
