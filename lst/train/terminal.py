"""What a run says on the terminal: its log on stdout, errors on stderr. Nobody needs to listen: the run goes on.

    python -m lst.train RUN_DIR | head -3

closes the pipe after three lines, which is no reason to lose hours of training, nor to tell of it at every later line. Not
here: what is said (lst.train.metrics), and the records, which are files.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from lst.command import discard

CLOSED = "warning: nobody reads this run's output any more; it goes on without, and train.jsonl tells how far it is"


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream until its reader leaves; that is told once on stderr, and the rest goes nowhere."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a line could not be written."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            discard(self.stream)
            complain(CLOSED)
        else:
            super().handleError(record)


def complain(sentence: str) -> None:
    """Print to stderr, if anybody reads it."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)
