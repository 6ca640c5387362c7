"""The page in a real Chromium: no complaint, no request but itself, nothing wider than a phone, every figure visible.

LST_REQUIRE=browser python -m pytest tests/reports/test_browser.py     # a missing Chromium fails instead of skipping
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reports.chromium import Chromium, find_chromium

pytestmark = pytest.mark.browser

FIGURES = """[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')];
  return {width: box.width, height: box.height, left: box.left, right: box.right,
          smallest: Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize) * box.width / svg.viewBox.baseVal.width)),
          outside: texts.filter(t => {
            const b = t.getBoundingClientRect();
            return b.left < box.left - 2 || b.right > box.right + 2 || b.top < box.top - 2 || b.bottom > box.bottom + 2;
          }).map(t => t.textContent)};
})"""
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e =>
  !e.closest('.scroll') && !e.closest('svg') && !e.closest('pre') && e.getBoundingClientRect().right > innerWidth + 1
).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"""
COLOURS = """[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]
  .map(c => c.match(/\\d+/g).map(Number))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no Chromium is installed; install Debian's package chromium")
    with Chromium(binary, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(study_folder: Path) -> Path:
    return study_folder / "report" / "index.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits_its_window_and_shows_every_figure(browser: Chromium, page: Path, width: int) -> None:
    browser.show(page, width=width)
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(OVERFLOWING) == []
    figures = browser.ask(FIGURES)
    assert len(figures) >= 14
    for figure in figures:
        assert figure["width"] >= min(width - 40, 340)
        assert figure["height"] > 100
        assert figure["smallest"] >= 9.5  # CSS pixels, after scaling
        assert figure["outside"] == []


def test_wide_tables_scroll_on_a_phone(browser: Chromium, page: Path) -> None:
    browser.show(page, width=390)
    tables = browser.ask(
        "[...document.querySelectorAll('.scroll')].map(s => [s.clientWidth, s.scrollWidth, getComputedStyle(s).overflowX])"
    )
    assert max(inside for _, inside, _ in tables) > 1000
    assert all(shown <= 390 and overflow == "auto" for shown, _, overflow in tables)


def test_light_and_dark_have_contrast(browser: Chromium, page: Path) -> None:
    for dark in (False, True):
        browser.show(page, width=390, dark=dark)
        ink, paper = (sum(channels[:3]) for channels in browser.ask(COLOURS))
        assert (ink > paper) == dark
        assert abs(ink - paper) > 450
        fill = browser.ask("getComputedStyle(document.querySelector('figure svg text')).fill.match(/\\d+/g).map(Number)")
        assert abs(sum(fill) - paper) > 450


def test_print_shows_tables_whole_in_light_colours(browser: Chromium, page: Path) -> None:
    browser.show(page, width=720, dark=True, medium="print")
    assert browser.ask("[...document.querySelectorAll('.scroll')].every(s => getComputedStyle(s).overflowX === 'visible')")
    assert browser.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    ink, paper = (sum(channels[:3]) for channels in browser.ask(COLOURS))
    assert ink < paper


def test_chromium_has_nothing_to_complain_about_and_loads_nothing_else(browser: Chromium, page: Path, tmp_path: Path) -> None:
    before = len(browser.events)
    browser.show(page, width=1280)
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert len(browser.events) > before
    assert set(asked) == {page.absolute().as_uri()}
    assert browser.complaints() == []
    browser.photograph(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000
