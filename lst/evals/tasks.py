"""The tasks of `python -m lst.evals`: their names, what each tells, and where its options and its program are.

The one list of them: the command, the planner's rows of kind `eval` and the launcher that starts these take it from here. A
task's modules are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Run = Callable[[Path, dict[str, Any]], str]  # a checkpoint and values of options -> the text to print


class EvaluationTask(NamedTuple):
    """One task. `open` gives the class of its options and what runs it."""

    about: str
    open: Callable[[], tuple[type[Any], Run]]

    @property
    def options(self) -> type[Any]:
        return self.open()[0]


def _choices() -> tuple[type[Any], Run]:
    from lst.evals.choice_run import ChoiceRunConfig, run_choices

    return ChoiceRunConfig, run_choices


def _asr() -> tuple[type[Any], Run]:
    from lst.evals.asr import AsrConfig, run_asr

    return AsrConfig, run_asr


def _tts() -> tuple[type[Any], Run]:
    from lst.evals.tts import TtsConfig, run_tts

    return TtsConfig, run_tts


def _representations() -> tuple[type[Any], Run]:
    from lst.evals.representations import RepresentationsConfig, run_representations

    return RepresentationsConfig, run_representations


TASKS = {
    "choices": EvaluationTask("an item set: which ending is the most probable", _choices),
    "asr": EvaluationTask("held-out speech to text: word errors, hallucinations", _asr),
    "tts": EvaluationTask("held-out text to speech: units, sound, character errors", _tts),
    "representations": EvaluationTask("what patches know of words and phones, with a picture", _representations),
}
