"""`python -m lst.evals`: evaluate a checkpoint, and write what the trainer writes (docs/evaluation.md).

    python -m lst.evals choices RUN_OR_CHECKPOINT items=DIR [score=loglik_per_token] [directions=S->S,T->T] [out=DIR]
    python -m lst.evals asr RUN_OR_CHECKPOINT [utterances=200] [beams=4] [test=DIR] [out=DIR]
    python -m lst.evals tts RUN_OR_CHECKPOINT [utterances=50] [recognisers=WHISPER] [test=DIR] [out=DIR]
    python -m lst.evals representations RUN_OR_CHECKPOINT [phones=espeak] [out=DIR]

Exit status: 0 done, 1 the work failed, 2 the input was wrong.
"""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lst.errors import ConfigError, LstError
from lst.evals.asr import AsrConfig, run_asr
from lst.evals.choice_run import ChoiceRunConfig, run_choices
from lst.evals.representations import RepresentationsConfig, run_representations
from lst.evals.tts import TtsConfig, run_tts

VERBS: dict[str, tuple[type, Callable[[Path, dict[str, Any]], str], str]] = {
    "choices": (ChoiceRunConfig, run_choices, "an item set: which ending is the most probable"),
    "asr": (AsrConfig, run_asr, "held-out speech to text: word errors, hallucinations"),
    "tts": (TtsConfig, run_tts, "held-out text to speech: units, sound, character errors"),
    "representations": (RepresentationsConfig, run_representations, "what patches know of words and phones, with a picture"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lst.evals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(title="verbs", dest="verb", required=True)
    for name, (_, _, what) in VERBS.items():
        verb = verbs.add_parser(name, help=what, description=what)
        verb.add_argument("source", metavar="RUN_OR_CHECKPOINT", type=Path, help="a finished run, a checkpoint, or an export")
        verb.add_argument("options", nargs="*", metavar="key=value", help="docs/evaluation.md lists them")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    kind, run, _ = VERBS[arguments.verb]
    try:
        print(run(arguments.source, read_options(arguments.options, kind)))
        return 0
    except LstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and give the command again" if full else "correct that and give the command again"
        print(f"error: {error.filename or 'writing'}: {error.strerror}; {remedy}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was.", file=sys.stderr)
        return 130


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
