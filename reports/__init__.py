"""The last stage: a study's tables and fits as one self-contained page, its figures and its tables.

    from reports import render
    render("results/demo")        # -> results/demo/report/index.html

It reads files of earlier stages only (docs/report.md), trains and fits nothing, and imports neither torch nor scipy.
The command is `scaling-report DIR`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["render"]


def render(folder: str | Path, *, title: str = "", target: str = "mixture") -> Path:
    """Write the report of the study in `folder` and return the path of its page, `folder`/report/index.html.

    `title` replaces the page's title; `target` is the loss that leads the page (mixture, speech, text or interleaved). Rendering
    twice gives the same bytes. Raises DataError where `folder` holds no plan.csv or a file of it is damaged.
    """
    from reports.page import render as render_page

    return render_page(Path(folder), title=title, target=target)
