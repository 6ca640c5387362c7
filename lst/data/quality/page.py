"""`prepare-data report DIR`: a data set's checks, statistics, plots and examples to hear, as one self-contained HTML page.

    write_report(open_dataset("data/mine"))     # data/mine/report.html; the same bytes each time

Nothing is loaded from anywhere (a content policy forbids it); all text of the data is escaped (jinja2, autoescape on) and cut
to a bounded length. The page is replaced whole, or not at all. Not here: counting, verdicts, plots.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lst.data.quality.checks import Check, Verdict, judge
from lst.data.quality.examples import Example, choose, rendered
from lst.data.quality.figures import tokenizer_card
from lst.data.quality.measure import Measures, measure
from lst.data.quality.plots import panels
from lst.data.quality.show import Grid, patching_grid, refused_grid, sizes_grid
from lst.data.quality.summary import summary_of
from lst.data.quality.tally import Stretch
from lst.data.shards import Dataset, embedded_path
from lst.data.vocab import FRAMES_PER_SECOND
from lst.drawing import page_style, svg_file, svg_inline
from lst.errors import DataError
from lst.records import write_atomically

PAGE = "report.html"
OVERLAP = "overlap.json"
LONGEST_TEXT = 1_000  # characters of a text of the data that the page shows
MOST_FACTS = 60
VERDICTS = {
    Verdict.BAD: "training on this is very probably a mistake",
    Verdict.LOOK: "a person should look; the data may be right",
    Verdict.UNKNOWN: "the data set does not say, or is too small to tell",
    Verdict.OK: "as expected",
}


@dataclass(frozen=True)
class Row:
    """A check as the page shows it."""

    verdict: str
    title: str
    shown: str
    limits: str
    detail: str
    reason: str


def write_report(dataset: Dataset, out: Path | None = None, *, vocoder: str = "") -> Path:
    """Write the page to `out` and return its path; the default is report.html in the data set's folder.

    `vocoder` is the folder of a unit vocoder for the examples; default: the embedded one, where it fits the tokens. Raises
    DataError on damaged data, a vocoder that does not fit, or a place that cannot be written.
    """
    path = out or (Path(f"embedded-{PAGE}") if dataset.path == embedded_path() else dataset.path / PAGE)
    if path.is_dir():
        raise DataError(f"out={path} is a folder; name a file, as in out={path / PAGE}")
    page = render(dataset, vocoder=vocoder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as problem:
        raise DataError(
            f"the report cannot be written to '{path}' ({problem.strerror}); give another out=FILE.html."
        ) from problem
    return path


def render(dataset: Dataset, *, vocoder: str = "") -> str:
    """The page's text."""
    import jinja2
    from markupsafe import Markup

    found = measure(dataset)
    summary = summary_of(dataset)
    checks = judge(found, dataset.manifest)
    examples = choose(dataset, found.documents)
    sounds, said = rendered(dataset, examples, vocoder)
    drawn = [(p.name, Markup(svg_inline(svg_file(p.figure, p.name), p.description))) for p in panels(found)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lst.data.quality", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["clipped"] = clipped
    return environment.get_template("page.html.j2").render(
        name=dataset.path.resolve().name,
        version=metadata.version("lst-scaling"),
        css=Markup(page_style()),
        data_id=dataset.data_id,
        counts=_counts(checks),
        meanings={verdict.value: meaning for verdict, meaning in VERDICTS.items()},
        rows=_rows(checks),
        answer=_answer(found, summary, checks),
        panels=drawn,
        grids=[sizes_grid(summary), patching_grid(summary)],
        refused=refused_grid(summary["refused"]),
        stretches=[("Longest silences", _stretches(found.words.longest_silences.sorted())),
                   ("Longest runs of one token", _stretches(found.tokens.runs.sorted()))],
        equal=[(title, found.groups.get(kind, [])) for kind, title in EQUAL.items()],
        overlap=_overlap(dataset),
        cards=_cards(dataset.manifest),
        examples=_heard(examples, sounds),
        examples_said=said,
    ) + "\n"  # fmt: skip


EQUAL = {"tokens": "The same tokens", "texts": "The same text", "ids": "Nearly the same id"}


def clipped(text: str, length: int = LONGEST_TEXT) -> str:
    """`text` of at most `length` characters; a longer one ends in an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _printable(value: object) -> object:
    """Text without control characters, and without those that turn the direction of what follows."""
    from markupsafe import Markup

    if isinstance(value, str) and not isinstance(value, Markup):
        return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", "\ufffd", value)
    return value


def _counts(checks: Sequence[Check]) -> list[tuple[str, int]]:
    counts = Counter(check.verdict for check in checks)
    return [(verdict.value, counts[verdict]) for verdict in VERDICTS]


def _rows(checks: Sequence[Check]) -> list[Row]:
    """The worst first."""
    order = list(VERDICTS)
    ranked = sorted(checks, key=lambda check: order.index(check.verdict))
    return [Row(c.verdict.value, c.rule.title, c.shown, c.rule.limits, c.found.detail, c.rule.reason) for c in ranked]


def _answer(found: Measures, summary: Mapping[str, Any], checks: Sequence[Check]) -> list[str]:
    """Two or three sentences that a reader takes along."""
    hours = {split: summary["speech"][split]["seconds"] / 3600 for split in ("train", "heldout")}
    sentences = [
        f"{found.documents:,} spoken documents of {hours['train'] + hours['heldout']:,.2f} hours at 25 Hz, "
        f"{hours['heldout']:,.2f} of them held out; {summary['text']['train']['text_tokens']:,} text tokens to train on."
    ]
    wrong = {v: [c.rule.title for c in checks if c.verdict is v] for v in (Verdict.BAD, Verdict.LOOK, Verdict.UNKNOWN)}
    said = {Verdict.BAD: "Very probably wrong", Verdict.LOOK: "To be looked at", Verdict.UNKNOWN: "Not known"}
    sentences += [f"{said[v]}: {'; '.join(titles)}." for v, titles in wrong.items() if titles]
    return sentences if len(sentences) > 1 else [*sentences, "Every check is as expected."]


def _stretches(stretches: Sequence[Stretch]) -> list[tuple[str, str, str]]:
    """(seconds, document, where it begins)."""
    return [
        (f"{s.frames / FRAMES_PER_SECOND:.2f} s", clipped(s.document, 80), f"{s.start / FRAMES_PER_SECOND:.2f} s")
        for s in stretches
    ]


def _overlap(dataset: Dataset) -> Grid | None:
    """The table of overlap.json; None where the data set has none that this version reads."""
    try:
        overlap = json.loads((dataset.path / OVERLAP).read_text(encoding="utf-8"))
        rows = [
            [kind, f"{f['train']:,}", f"{f['heldout']:,}", f"{f['shared']:,}", f"{f['documents_shared']:,}"]
            for kind, f in ((kind, overlap[kind]) for kind in ("speakers", "books"))
        ]
        for table, f in overlap["text"].items():
            hit, words = f"{f['documents_hit']:,} of {f['documents']:,}", f"{f['share_of_words_covered']:.2%} of words"
            rows.append([f"{table}: {overlap['ngram']} words in a row", "", "", words, hit])
        return Grid("Overlap of what is held out with training", ["", "training", "held out", "shared", "documents"], rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _cards(manifest: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles with facts: the tokenizers, and what else the manifest says about the data."""
    about = manifest.get("about", {})
    cards = [("Speech tokenizer", tokenizer_card(manifest)), ("Text tokenizer", about.get("text_tokenizer", {}))]
    cards.append(("Source", {k: v for k, v in about.items() if k not in ("speech_tokenizer", "text_tokenizer")}))
    return [(title, _facts(card)) for title, card in cards if card]


def _facts(card: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as names with dots."""
    if not isinstance(card, dict):
        return [(prefix, clipped(card if isinstance(card, str) else json.dumps(card), 200))]
    return [fact for key, value in card.items() for fact in _facts(value, f"{prefix}.{key}" if prefix else str(key))][:MOST_FACTS]


def _heard(examples: Sequence[Example], sounds: Sequence[str]) -> list[tuple[Example, str]]:
    return [(example, sounds[i] if sounds else "") for i, example in enumerate(examples)]
