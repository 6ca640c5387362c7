"""What a section of the page is made of: headings, sentences, gaps, tables and figures; and the words they share.

Not here: which of them stand where (`sections`, `accuracy`), how they look (`templates`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lst.drawing import Panel
from reports import answer
from reports.study import Study
from reports.tables import Table


@dataclass(frozen=True, kw_only=True)
class Block:
    """One thing on the page; `number` is given when the page is put together."""

    lead: bool = False  # the first panel of a figure is the main one, drawn larger
    kind: Literal["text", "gap", "list", "facts", "commands", "table", "figure"]
    text: str = ""
    lines: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    panels: tuple[Panel, ...] = ()
    caption: str = ""
    tables: tuple[str, ...] = ()  # names of tables that hold the figure's numbers
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its blocks."""

    anchor: str
    title: str
    blocks: tuple[Block, ...] = field(default=())


def paragraph(said: str) -> Block:
    return Block(kind="text", text=said)


def gap(said: str) -> Block:
    return Block(kind="gap", text=said)


def table_block(table: Table, otherwise: str) -> Block:
    return Block(kind="table", table=table) if table.rows else gap(otherwise)


def figure_block(panels: list[Panel], caption: str, otherwise: str, *names: str, lead: bool = False) -> Block:
    return Block(kind="figure", panels=tuple(panels), caption=caption, tables=names, lead=lead) if panels else gap(otherwise)


def matched_words(study: Study) -> str:
    matching = answer.matching_of(study)
    return (
        f"Runs of one match group have {answer.MATCHED[matching]} (matching: {matching})." if matching in answer.MATCHED else ""
    )
