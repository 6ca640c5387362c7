"""`python -m lst.evals`: evaluate a checkpoint, and write what the trainer writes (docs/evaluation.md).

    python -m lst.evals choices RUN_OR_CHECKPOINT items=DIR [score=loglik_per_token] ['directions=S->S,T->T'] [out=DIR]
    python -m lst.evals asr RUN_OR_CHECKPOINT [utterances=200] [beams=4] [test=DIR] [out=DIR]
    python -m lst.evals tts RUN_OR_CHECKPOINT [utterances=50] [recognisers=WHISPER] [test=DIR] [out=DIR]
    python -m lst.evals representations RUN_OR_CHECKPOINT [phones=espeak] [out=DIR]

Exit status: 0 done, 1 the work failed, 2 the input was wrong or a file cannot be read or written.
"""

from __future__ import annotations

import argparse
import logging
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lst.command import ended
from lst.errors import ConfigError
from lst.evals.tasks import TASKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    return ended("error", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lst.evals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True)
    for name, task in TASKS.items():
        verb = verbs.add_parser(name, help=task.about, description=task.about)
        verb.add_argument("source", metavar="RUN_OR_CHECKPOINT", type=Path, help="a finished run, a checkpoint, or an export")
        verb.add_argument("options", nargs="*", metavar="key=value", help="docs/evaluation.md lists them")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options, run = TASKS[arguments.verb].open()
    print(run(arguments.source, read_options(arguments.options, options)))
    return 0


def read_options(arguments: Sequence[str], kind: type) -> dict[str, Any]:
    """key=value arguments as values of the options' types. Raises ConfigError."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"'{argument}' is no key=value.")
        if key in values:
            raise ConfigError(f"{key} is given twice; give it once.")
        of = hints.get(key, str)
        try:
            values[key] = {"true": True, "false": False}[text.lower()] if of is bool else of(text)
        except (ValueError, KeyError) as error:
            what = "true or false" if of is bool else f"of type {of.__name__}"
            raise ConfigError(f"{key}={text} must be {what}.") from error
    return values


if __name__ == "__main__":
    sys.exit(main())
