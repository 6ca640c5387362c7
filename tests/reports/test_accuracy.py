"""Laws of accuracy on the page: what was fitted is drawn, of what was refused the reason alone stands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reports import accuracy, answer, figures, sections
from reports.laws import Profile, as_estimate
from reports.stories import story_scores
from reports.study import Study, read_study
from tests.reports.known_truth import GRADED, OF_LOSS, OFFSETS
from tests.reports.test_page import body_text

MakeStudy = Callable[..., Path]


@pytest.fixture(scope="module")
def study(study_folder: Path) -> Study:
    return read_study(study_folder)


def test_both_laws_are_drawn_with_the_runs_they_were_fitted_to(study: Study) -> None:
    scores, laws = story_scores(study), study.fits.accuracy_laws
    (of_loss,), (of_flops,) = (accuracy.law_panels(study, laws, scores, x) for x in ("loss", "flops"))
    assert [of_loss.name, of_flops.name] == [f"accuracy-of-{x}-{GRADED}-t-to-t" for x in ("loss", "flops")]
    line = next(line for line in of_loss.figure.axes[0].lines if len(line.get_xdata()) == 60)  # type: ignore[arg-type]
    np.testing.assert_allclose(line.get_ydata(), 100 * OF_LOSS.predict(line.get_xdata()))  # type: ignore[arg-type]
    points = accuracy.points_of(study, laws[0], scores, "loss")
    assert len(points) == 11  # 12 cells, one failed
    losses = study.final("text").set_index("run_id")["loss"]
    assert all(x == losses[score.run_id] for x, score in points)
    assert "midpoint 4.000 nats" in of_loss.description


def test_of_a_refused_law_stands_its_reason_and_no_point(study: Study, page_text: str) -> None:
    (panel,) = accuracy.law_panels(study, study.fits.accuracy_laws, story_scores(study), "flops")
    shown = [text.get_text() for text in panel.figure.legends[0].get_texts()]
    assert shown == ["baseline", "chance 25%"]  # lst_static's was refused
    seen = body_text(page_text)
    assert "1 law of 4 refused" in seen
    assert (
        "Accuracy does not rise as FLOPs grow: no such law holds here. So it is for lst_static, story_graded T→T (in FLOPs)."
        in seen
    )


def test_the_multiplier_in_accuracy_says_where_its_band_is_open(study: Study, page_text: str) -> None:
    (panel,) = accuracy.multiplier_panels(study.fits.accuracy_comparisons)
    low, high = panel.figure.axes[0].get_ylim()
    assert 0.05 < low < 1 < high < 20  # an open band leaves the panel, it does not stretch it
    (row,) = accuracy.multipliers_table(study.fits.accuracy_comparisons).rows  # lst_curriculum's was refused
    assert (row["multiplier"], row["interval"], row["pairs"]) == (1.3, "[1.12, ∞]", 12)
    assert "[1.12, ∞]" in page_text
    assert "has one amount of FLOPs" in body_text(page_text)


def test_a_reason_is_said_once_whatever_its_numbers() -> None:
    warnings = [
        f"no law of accuracy in {x}: no accuracy can be told from chance (0.5; the largest is {p}): a law means nothing here."
        for x, p in (("loss", 0.52), ("flops", 0.52))
    ]
    said = accuracy.refusals([("one, a S→S", tuple(warnings)), ("two, a S→S", (warnings[0].replace("0.52", "0.49"),))])
    assert said == [
        "No accuracy can be told from chance (0.5): a law means nothing here. "
        "So it is for one, a S→S (in the loss and in FLOPs); two, a S→S (in the loss)."
    ]


def test_without_laws_the_section_says_why(make_study: MakeStudy) -> None:
    folder = make_study(stories=False)
    scores = story_scores(read_study(folder))
    (block,) = accuracy.section(read_study(folder), scores).blocks
    assert (block.kind, block.text) == ("gap", "No law of accuracy: no choice task has a recorded chance level.")
    (folder / "fits.json").unlink()
    (block,) = accuracy.section(read_study(folder), scores).blocks
    assert block.text == "No law of accuracy: fits.json is missing."


def test_interleaved_stands_beside_mixture_speech_and_text(study: Study) -> None:
    panels = figures.loss_panels(study)
    assert [p.name for p in panels] == [f"loss-{target}" for target in OFFSETS]
    (block, *_) = sections.loss_section(study).blocks
    assert not block.lead  # four panels, two beside each other
    assert {(f.arm, f.target) for f in study.fits.arms} >= {("baseline", "interleaved"), ("lst_static", "interleaved")}
    table = next(b.table for b in sections.loss_section(study).blocks if b.table is not None and b.table.name == "losses")
    assert [c.key for c in table.columns][-4:] == list(OFFSETS)


def test_interleaved_can_lead_the_page(study: Study) -> None:
    assert "held-out interleaved loss" in answer.question(study, "interleaved")
    (block, *_) = sections.isoflop_section(study, "interleaved").blocks
    assert [p.name for p in block.panels] == ["isoflop-interleaved-baseline", "isoflop-interleaved-lst_static"]


def test_a_cubic_profile_is_drawn_with_its_skew() -> None:
    profile = Profile(
        budget=1e13, flops=1e13, optimum=as_estimate(1e6), minimum=as_estimate(3.0), floor=3.0, curvature=0.5, skew=0.25,
        log_optimum=math.log(1e6), status="interior",
    )  # fmt: skip
    assert profile.loss(1e6 * math.e) == pytest.approx(3.75)
    assert profile.loss(1e6 / math.e) == pytest.approx(3.25)


def test_flops_are_those_of_the_fits(make_study: MakeStudy) -> None:
    """Under c=six_nd points and axis are 6 N D, as the curves are; D in seconds is of speech tokens."""
    folder = make_study(arms=("baseline",), stories=False)
    exact = read_study(folder).final("mixture").set_index("run_id")
    content = json.loads((folder / "fits.json").read_text())
    for entry in content["fits"]:
        entry["flops_convention"] = "six_nd"
    (folder / "fits.json").write_text(json.dumps(content))
    study = read_study(folder)
    found = study.final("mixture").set_index("run_id")
    np.testing.assert_allclose(found["flops"], 6 * exact["num_params"] * exact["tokens"])
    np.testing.assert_allclose(found["speech_seconds"], exact["speech_tokens"] / 25)
    assert "6 N D" in figures.flops_label(study)
