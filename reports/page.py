"""From a study's folder to report/: one self-contained page, its figures as SVG, its tables as CSV and LaTeX.

    render(Path("results/demo"))        # what `scaling-report results/demo` calls

Assembly only: sections decide what is shown, this module numbers, draws to text, escapes (jinja2, autoescape on) and writes.
Each file is replaced whole; the page comes last, so that a page never points at files that are not there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from markupsafe import Markup

from lst.drawing import page_style, svg_file, svg_inline
from lst.errors import ConfigError, DataError, did_you_mean
from reports import answer, sections
from reports.blocks import Block, Section
from reports.stories import story_scores
from reports.study import TARGETS, Study, read_study
from reports.tables import Table

REPORT = "report"
PAGE = "index.html"
Progress = Callable[[int, int], None]
WIDE_CELL = 48
"""A cell with more characters than this may wrap."""


@dataclass(frozen=True)
class Cell:
    """A table cell of the page: its text and its CSS classes."""

    text: str
    style: str


@dataclass(frozen=True)
class DrawnPanel:
    """A panel as the template wants it."""

    name: str
    svg: Markup


def render(folder: Path, *, title: str = "", target: str = "mixture", progress: Progress | None = None) -> Path:
    """Write `folder`/report and return its page's path; `progress` is told the sections done and their number.

    Raises DataError (no study, a damaged file, no disk space) and ConfigError (an unknown target); then nothing is replaced.
    """
    if target not in TARGETS:
        raise ConfigError(f"target='{target}' is unknown; {did_you_mean(target, TARGETS)}")
    study = read_study(folder)
    files = build(study, title=title, target=target, progress=progress)
    out = folder / REPORT
    try:
        _write(out, files)
    except OSError as problem:
        raise DataError(
            f"the report cannot be written to '{out}' ({problem.strerror}); free some space or make the folder writable."
        ) from problem
    return out / PAGE


def build(study: Study, *, title: str = "", target: str = "mixture", progress: Progress | None = None) -> dict[str, str]:
    """Every file of the report by its path inside report/; the page is the last."""
    title = title or f"Scaling study {study.name}"
    content, files, drawn = [], {}, {}
    for done, section in enumerate(sections.all_sections(study, target, story_scores(study)), 1):
        content.append(section)
        for panel in (panel for block in section.blocks for panel in block.panels):
            svg = svg_file(panel.figure, panel.name)
            files[f"figures/{panel.name}.svg"] = svg
            drawn[panel.name] = DrawnPanel(panel.name, Markup(svg_inline(svg, panel.description)))
        if progress is not None:
            progress(done, sections.SECTIONS)
    kept = [block.table for section in content for block in section.blocks if block.table is not None]
    for table in kept:
        files[f"tables/{table.name}.csv"] = table.csv()
        files[f"tables/{table.name}.tex"] = table.latex()
    files[PAGE] = _page(study, title, target, _numbered(content), drawn, {table.name for table in kept})
    return files


def _numbered(content: Sequence[Section]) -> list[Section]:
    """Figures and tables numbered down the page."""
    counts = {"figure": 0, "table": 0}
    numbered = []
    for section in content:
        blocks = []
        for block in section.blocks:
            if block.kind in counts:
                counts[block.kind] += 1
                block = replace(block, number=counts[block.kind])
            blocks.append(block)
        numbered.append(replace(section, blocks=tuple(blocks)))
    return numbered


def _page(study: Study, title: str, target: str, content: list[Section], drawn: dict[str, DrawnPanel], tables: set[str]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "templates"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        version=_version(),
        css=Markup(page_style()),
        question=answer.question(study, target),
        answer=answer.answer(study, target),
        warnings=_warnings(study),
        sections=[
            {"anchor": s.anchor, "title": s.title, "blocks": [_block(b, drawn, tables) for b in s.blocks]} for s in content
        ],
    ) + "\n"  # fmt: skip


def _block(block: Block, drawn: dict[str, DrawnPanel], tables: set[str]) -> dict[str, object]:
    """A block as the template wants it: drawn panels, cells with classes, links only to tables that are written."""
    return {
        **{name: getattr(block, name) for name in ("kind", "lead", "text", "lines", "pairs", "caption", "number", "table")},
        "panels": [drawn[panel.name] for panel in block.panels],
        "tables": [name for name in block.tables if name in tables],
        "cells": _cells(block.table) if block.table else [],
    }


def _cells(table: Table) -> list[list[Cell]]:
    return [
        [
            Cell(shown, " ".join(name for name, on in (("num", column.numeric), ("wide", len(shown) > WIDE_CELL)) if on))
            for shown, column in zip(row, table.columns, strict=True)
        ]
        for row in table.cells()
    ]


def _warnings(study: Study) -> list[str]:
    """What a reader must know before the first figure."""
    said = list(study.gaps)
    if sections.is_embedded(study):
        said.insert(
            0,
            "This study ran on the embedded corpus: synthetic speech of few voices, in units of an English "
            "speech-recognition encoder. Its "
            "numbers are never to be compared with the paper's.",
        )
    return said


def _version() -> str:
    try:
        return metadata.version("lst-scaling")
    except metadata.PackageNotFoundError:
        return "from source"


def _write(out: Path, files: dict[str, str]) -> None:
    """Replace the report's files, each whole, and remove figures and tables that it no longer has."""
    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path, data = out / name, content.encode()
        if path.is_file() and path.read_bytes() == data:
            continue
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(aside).chmod(0o644)
            Path(aside).replace(path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
    for folder, endings in (("figures", {".svg"}), ("tables", {".csv", ".tex"})):
        for path in (out / folder).iterdir():
            if path.suffix in endings and f"{folder}/{path.name}" not in files:
                path.unlink()
