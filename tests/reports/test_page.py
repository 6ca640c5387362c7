"""The page as a whole: self-contained, escaped, the same bytes twice, honest about what is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import reports
from lst.errors import ConfigError, DataError
from reports import cli
from reports.page import build, render
from reports.study import read_study

MakeStudy = Callable[..., Path]


class Page(HTMLParser):
    """Elements, ids and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[k] or "" for k in ("href", "src", "xlink:href") if k in values]
        if tag == "svg":
            self.labels.append(values.get("aria-label") or "")


def body_text(page: str) -> str:
    """The text that a reader sees, on one line."""
    words = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", words)).split())


def keep_only_plan(folder: Path, *others: str) -> Path:
    """Take away every other input, so that few figures are drawn and a test is quick."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("plan.csv", *others):
            path.unlink()
    return folder


def test_page_needs_no_network(page_text: str) -> None:
    page = Page(page_text)
    assert [link for link in page.links if re.match(r"(https?:)?//", link)] == []
    assert not {"script", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in page_text
    assert re.findall(r"url\((?!#)", page_text) == []
    assert "default-src 'none'" in page_text


def test_links_lead_to_files_and_sections(study_folder: Path, page_text: str) -> None:
    page = Page(page_text)
    files = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert files
    assert [f for f in files if not (study_folder / "report" / f).is_file()] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_figure_is_described(page_text: str) -> None:
    labels = Page(page_text).labels
    assert len(labels) >= 14
    assert all(len(label) > 30 for label in labels)
    assert len(set(labels)) == len(labels)


def test_page_is_small(study_folder: Path) -> None:
    assert (study_folder / "report" / "index.html").stat().st_size < 3_000_000


def test_every_part_is_there(page_text: str) -> None:
    titles = re.findall(r"<h2><span[^>]*>\d+</span>([^<]+)</h2>", page_text)
    assert titles == [
        "What was matched and what was not",
        "IsoFLOP curves",
        "Loss against FLOPs",
        "Story completion",
        "Compute multiplier",
        "Laws of accuracy",
        "Residuals of the loss surfaces",
        "Training curves",
        "FLOPs by module group",
        "The plan and its runs",
        "Fits",
        "Assumptions and honest limits",
        "Versions and how to reproduce",
    ]
    numbers = [int(n) for n in re.findall(r"<figcaption><b>Figure (\d+)\.", page_text)]
    assert numbers == list(range(1, 11))


def test_failed_and_refused_runs_appear_with_their_reasons(page_text: str) -> None:
    seen = body_text(page_text)
    assert "loss became nan at step 200" in seen
    assert "needs 400 GiB" in seen
    assert "27 runs: 25 done, 1 failed and 1 refused" in seen


def test_embedded_corpus_is_labelled_and_others_are_not(page_text: str, make_study: MakeStudy) -> None:
    assert body_text(page_text).count("compared with the paper's") == 2  # before the first figure, and among the limits
    folder = make_study(data="/some/folder")
    keep_only_plan(folder, "study.yaml")
    assert "compared with the paper's" not in body_text(build(read_study(folder))["index.html"])


def test_versions_seeds_and_commands_are_named(page_text: str) -> None:
    seen = body_text(page_text)
    for words in (
        "torch (training) 2.13.0",
        "data_id abcdef012345",
        "plan-sweep study=known_truth out=DIR",
        "voices a, b",
        "seeds 0",
    ):
        assert words in seen


def test_rendering_twice_gives_the_same_bytes(study_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(study_folder, copy, ignore=shutil.ignore_patterns("report"))
    render(copy)
    first = {p.relative_to(study_folder): p.read_bytes() for p in (study_folder / "report").rglob("*") if p.is_file()}
    second = {p.relative_to(copy): p.read_bytes() for p in (copy / "report").rglob("*") if p.is_file()}
    assert first == second


def test_stale_figures_go_and_other_files_stay(make_study: MakeStudy) -> None:
    folder = keep_only_plan(make_study(arms=("baseline",)))
    stale = folder / "report" / "figures" / "old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    (folder / "report" / "notes.txt").write_text("mine")
    assert reports.render(folder) == folder / "report" / "index.html"
    assert not stale.exists()
    assert (folder / "report" / "notes.txt").read_text() == "mine"
    assert not list((folder / "report").rglob(".*"))


EVIL = '<script>alert("x")</script>&\\evil_{}%'


def test_malicious_names_are_escaped(make_study: MakeStudy) -> None:
    folder = make_study(stories=False)
    for name in ("plan.csv", "runs.csv", "results.csv"):
        table = pd.read_csv(folder / name, dtype={"run_id": str})
        table["size"] = table["size"].replace("w64", EVIL)
        table["arm"] = table["arm"].replace("lst_curriculum", EVIL)
        if "study" in table:
            table["study"] = EVIL
        table.to_csv(folder / name, index=False)
    files = build(read_study(folder), title=EVIL)
    page = files["index.html"]
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert all("<script" not in text for name, text in files.items() if name.endswith(".svg"))
    assert all(re.fullmatch(r"(figures|tables)/[a-z0-9_.-]+|index\.html", name) for name in files)
    assert r"\textless{}script\textgreater{}" in files["tables/plan.tex"]


OPTIONAL = (
    "results.csv",
    "runs.csv",
    "attempts.csv",
    "curves.parquet",
    "items.parquet",
    "fits.json",
    "references.json",
    "study.yaml",
)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_file_is_a_stated_gap(make_study: MakeStudy, name: str) -> None:
    folder = make_study(arms=("baseline", "lst_static"))
    (folder / name).unlink()
    assert [gap for gap in read_study(folder).gaps if gap.startswith(f"{name} is missing")]


def test_missing_fits_still_show_the_runs(make_study: MakeStudy) -> None:
    folder = make_study(arms=("baseline", "lst_static"), stories=False, flops_shares=False)
    (folder / "fits.json").unlink()
    (folder / "curves.parquet").unlink()
    seen = body_text(build(read_study(folder))["index.html"])
    assert "fits.json is missing" in seen
    assert "no parabola, so its points stand alone. No fits have been made." in seen
    assert "No compute multiplier: fits.json is missing." in seen
    assert "shares of parameters stand in their place" in seen


def test_plan_alone_still_gives_a_page(make_study: MakeStudy) -> None:
    folder = keep_only_plan(make_study())
    seen = body_text(build(read_study(folder))["index.html"])
    assert "0 of 27 planned runs can be used" in seen
    assert "No held-out loss has been collected" in seen
    assert "No training records have been collected" in seen


def test_two_runs_of_one_size_are_enough_for_a_page(make_study: MakeStudy) -> None:
    folder = make_study(stories=False)
    kept = ["000e45678901", "001e45678901"]
    for name in ("plan.csv", "runs.csv", "results.csv"):
        table = pd.read_csv(folder / name, dtype={"run_id": str})
        table[table["run_id"].isin(kept)].to_csv(folder / name, index=False)
    (folder / "fits.json").write_text(json.dumps({"fits": [], "comparisons": []}))
    seen = body_text(build(read_study(folder))["index.html"])
    assert "these runs cannot tell how many FLOPs lst_static needs" in seen
    assert "No story-completion item has been scored" in seen
    assert "1 of 1 pair" in seen


def test_identifiers_that_look_like_numbers_stay_text(study_folder: Path) -> None:
    study = read_study(study_folder)
    assert study.plan["run_id"].iloc[0] == "000e45678901"
    assert len(study.usable()) == 25


def test_no_plan_is_one_sentence_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"'{tmp_path}' holds no plan.csv" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fits.json", "{"),
        ("fits.json", '{"fits": [{"arm": "baseline"}]}'),
        ("fits.json", "[1]"),
        ("references.json", "nonsense"),
        ("runs.csv", "a,b\n1,2\n"),
        ("curves.parquet", "no parquet"),
        ("study.yaml", "a: [1"),
        ("plan.csv", ""),
    ],
)
def test_a_damaged_file_is_named(make_study: MakeStudy, name: str, content: str) -> None:
    folder = make_study()
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(name)):
        render(folder)
    assert not (folder / "report").exists()


def test_a_full_disk_leaves_the_old_page(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep_only_plan(make_study(arms=("baseline",)))
    page = render(folder)
    before = page.read_bytes()
    replace = Path.replace

    def full(self: Path, target: Any) -> Path:
        if str(target).endswith("index.html"):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DataError, match="No space left"):
        render(folder, title="another")
    assert page.read_bytes() == before
    assert not list((folder / "report").glob(".*"))


def test_unknown_key_and_target_are_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(tmp_path), "titel=x"]) == 2
    assert "did you mean 'title'?" in capsys.readouterr().err
    assert cli.main([str(tmp_path), "title"]) == 2
    with pytest.raises(ConfigError, match="target='sound' is unknown"):
        render(tmp_path, target="sound")


def test_command_writes_the_page_and_prints_its_path(make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    folder = keep_only_plan(make_study(arms=("baseline", "lst_static")))
    assert cli.main([str(folder), "title=My study", "target=speech"]) == 0
    page = folder / "report" / "index.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert "<title>My study</title>" in page.read_text()
    assert "held-out speech loss" in page.read_text()
