"""`scaling-report DIR [key=value ...]`: write DIR/report/index.html from the files of earlier stages and print its path.

Keys: `title` (the page's title), `target` (mixture, speech, text or interleaved: the loss that leads the
page). Heavy imports happen after the arguments are read. Exit codes: 0 done, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lst.command import ended
from lst.errors import ConfigError, did_you_mean

KEYS = ("title", "target")


def parse_overrides(words: Sequence[str]) -> dict[str, str]:
    """key=value words as a dict. Raises ConfigError on an unknown key or a word without '='."""
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"'{word}' is no override; write key=value with a key of {', '.join(KEYS)}.")
        if key not in KEYS:
            raise ConfigError(f"key '{key}' is unknown; {did_you_mean(key, KEYS)}")
        values[key] = value
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned."""
    return ended("scaling-report", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="scaling-report",
        description="Write a study's report: one self-contained page, figures as SVG, tables as CSV and LaTeX.",
        epilog="keys: title=TEXT (the page's title), target=mixture|speech|text|interleaved (the loss that leads the page)",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder (with plan.csv)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the page")
    options = parser.parse_args(arguments)
    print(_render(options.folder, parse_overrides(options.overrides)))
    return 0


def _render(folder: Path, overrides: dict[str, str]) -> Path:
    """Render with a progress bar on a terminal."""
    from tqdm import tqdm

    from reports.page import render

    with tqdm(desc="rendering", unit="", disable=None, leave=False, delay=1, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return render(folder, **overrides, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
