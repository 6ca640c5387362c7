"""`prepare-data statistics DIR` and `prepare-data report DIR`: their arguments, and what is printed.

prepare-data statistics DIR [tokens=1e9 | steps=1000 batch=64] [seq_len_units=4096] [patch_size=4] [arms=a,b] [json=true]
prepare-data report DIR [out=FILE.html]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lst.errors import ConfigError, did_you_mean

STATISTICS_EXAMPLE = "prepare-data statistics data/mine tokens=1e9"
REPORT_EXAMPLE = "prepare-data report data/mine out=report.html"


def statistics(arguments: Sequence[str]) -> int:
    """The verb `statistics`; returns 0. Raises ConfigError and DataError."""
    from lst.config import Arm
    from lst.data.quality.show import summary_text
    from lst.data.quality.summary import DEFAULT_ARMS, Budget, at_budget, summary_of
    from lst.data.shards import open_dataset

    def arms(text: str) -> tuple[Arm, ...]:
        for name in text.split(","):
            if name not in list(Arm):
                raise ConfigError(f"arms={text} has the unknown arm '{name}'; {did_you_mean(name, list(Arm))}")
        return tuple(Arm(name) for name in text.split(","))

    def yes(text: str) -> bool:
        if text not in ("true", "false"):
            raise ConfigError(f"json={text} must be true or false.")
        return text == "true"

    kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("steps", "batch", "seq_len_units", "patch_size"), int)
    folder, options = _parse(arguments, {**kinds, "tokens": float, "arms": arms, "json": yes}, STATISTICS_EXAMPLE)
    as_json = options.pop("json", False)
    budget = Budget(**{"arms": DEFAULT_ARMS, **options})
    budget.validate()
    dataset = open_dataset(folder)
    summary = summary_of(dataset)
    rows = at_budget(dataset, summary, budget) if budget.given else []
    if as_json:
        print(json.dumps({**summary, "budget": rows}, indent=1, sort_keys=True))
    else:
        print(summary_text(dataset, summary, rows))
    return 0


def _parse(arguments: Sequence[str], kinds: dict[str, Callable[[str], Any]], example: str) -> tuple[str, dict[str, Any]]:
    """The folder, and the options as `kinds` read them. Raises ConfigError."""
    folders = [a for a in arguments if "=" not in a]
    if len(folders) != 1:
        raise ConfigError(f"{' '.join(folders) or 'nothing'} is given where one folder is wanted, as in: {example}")
    options: dict[str, Any] = {}
    for argument in (a for a in arguments if "=" in a):
        key, text = argument.split("=", 1)
        if key not in kinds:
            raise ConfigError(f"option '{key}' is unknown; {did_you_mean(key, list(kinds))}")
        if key in options:
            raise ConfigError(f"{key} is given twice; give it once.")
        try:
            options[key] = kinds[key](text)
        except ValueError as error:
            raise ConfigError(f"{argument} is no number; write for example: {example}") from error
    return folders[0], options


def report(arguments: Sequence[str]) -> int:
    """The verb `report`; returns 0. Raises ConfigError and DataError."""
    from lst.data.quality.page import write_report
    from lst.data.shards import open_dataset

    folder, options = _parse(arguments, {"out": Path, "vocoder": str}, REPORT_EXAMPLE)
    print(write_report(open_dataset(folder), options.get("out"), vocoder=options.get("vocoder", "")))
    return 0
