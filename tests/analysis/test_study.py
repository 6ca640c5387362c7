"""fits.json of a synthetic study whose law and efficiency are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.accuracy import wilson_interval
from analysis.collect import collect_into
from analysis.pairs import mean_interval
from analysis.results import IsoflopFit, MultiplierCurve, PowerLawFit, SharedFit, SurfaceFit
from analysis.study import FitOptions, fit_study
from lst import records
from lst.errors import FitError
from tests.analysis.study_folder import TRUTH, Synthetic, rows, write_study

ARMS = {"baseline": 1.0, "lst_static": 1.3, "lst_curriculum": 1.2, "lst_aligned": 2.0}
STUDY = Synthetic(arms=ARMS, one_size=("lst_curriculum",), noise=0.0005)
OPTIONS = FitOptions(resamples=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_study(tmp_path_factory.mktemp("study"), STUDY)
    collect_into(made)
    return made


@pytest.fixture(scope="module")
def fits(folder: Path) -> dict[str, Any]:
    return fit_study(folder, OPTIONS)


def entry(content: dict[str, Any], arm: str, target: str, kind: str = "fits") -> dict[str, Any]:
    found = [e for e in content[kind] if (e["arm"], e["target"]) == (arm, target)]
    assert len(found) == 1
    return found[0]


def test_every_arm_and_target_has_an_entry_of_the_agreed_shape(fits: dict[str, Any]) -> None:
    assert {(f["arm"], f["target"]) for f in fits["fits"]} == {(a, t) for a in ARMS for t in ("mixture", "speech", "text")}
    surface = entry(fits, "baseline", "mixture")
    assert {"arm", "target", "n_kind", "d_kind", "flops_convention", "loss_surface"} <= set(surface)
    agreed = {"E", "A", "B", "alpha", "beta", "objective", "loss", "delta", "n", "intervals", "warnings"}
    assert agreed <= set(surface["loss_surface"])
    assert (surface["n_kind"], surface["d_kind"], surface["flops_convention"], surface["matching"]) == (
        "num_params",
        "tokens",
        "exact",
        ["flop"],
    )


def test_fits_are_near_the_truth(fits: dict[str, Any]) -> None:
    found = entry(fits, "baseline", "mixture")
    law = SurfaceFit.from_json(found["loss_surface"])
    assert law.law.alpha == pytest.approx(TRUTH.alpha, abs=0.02)
    assert law.predict(3e8, 1e10) == pytest.approx(TRUTH.predict(3e8, 1e10), rel=2e-3)
    speech = SurfaceFit.from_json(entry(fits, "baseline", "speech")["loss_surface"])
    assert speech.predict(3e8, 1e10) == pytest.approx(TRUTH.predict(3e8, 1e10) + 0.4, rel=2e-3)
    isoflop = IsoflopFit.from_json(found["isoflop"])
    assert [p.status for p in isoflop.profiles] == ["interior"] * 3
    assert PowerLawFit.from_json(found["loss_curve"]).law.asymptote == 0  # three budgets: no asymptote


def test_multipliers_are_near_the_efficiencies(fits: dict[str, Any]) -> None:
    static = entry(fits, "lst_static", "mixture", "comparisons")
    assert MultiplierCurve.from_json(static["curve"]).mean == pytest.approx(1.3, rel=0.05)
    shared = SharedFit.from_json(static["shared"])
    assert shared.efficiencies["lst_static"]["compute"] == pytest.approx(1.3, rel=0.03)
    assert shared.efficiencies["lst_curriculum"]["compute"] == pytest.approx(1.2, rel=0.03)
    assert set(SharedFit.from_json(static["shared_separate"]).efficiencies) == {"lst_static"}
    assert entry(fits, "lst_curriculum", "mixture", "comparisons")["shared_separate"] is None


def test_matched_pairs_are_by_budget_and_size(fits: dict[str, Any]) -> None:
    matched = entry(fits, "lst_static", "mixture", "comparisons")["matched"]
    assert matched["n"] == 12
    assert [b["n"] for b in matched["budgets"]] == [4, 4, 4]
    assert all(p["difference"] == pytest.approx(p["loss"] - p["baseline_loss"]) for p in matched["pairs"])
    assert matched["interval"][0] < matched["mean"] < matched["interval"][1] < 0
    assert entry(fits, "lst_curriculum", "mixture", "comparisons")["matched"]["n"] == 3


def test_conditional_losses_are_labelled_and_never_compared(fits: dict[str, Any]) -> None:
    assert fits["not_compared"] == [{"arm": "lst_aligned", "reason": "conditional"}]
    assert "lst_aligned" not in {c["arm"] for c in fits["comparisons"]}
    assert all("lst_aligned" not in json.dumps(c["shared"]) for c in fits["comparisons"])
    aligned = entry(fits, "lst_aligned", "text")
    assert aligned["conditional"]
    assert aligned["warnings"][0].startswith("conditional losses")


def test_refusals_are_sentences_and_the_study_goes_on(fits: dict[str, Any]) -> None:
    thin = entry(fits, "lst_curriculum", "mixture")
    assert thin["loss_surface"] is None
    assert thin["isoflop"] is None
    assert any("no loss surface: 3 points cannot fix the 5 parameters" in w for w in thin["warnings"])


def test_accuracies_have_wilson_intervals_and_chance(fits: dict[str, Any]) -> None:
    one = fits["accuracies"][0]
    assert (one["accuracy"], one["n_items"], one["chance"], one["above_chance"]) == (0.75, 4, 0.5, False)
    assert one["interval"] == pytest.approx(list(wilson_interval(0.75, 4, 0.9)))
    assert len(fits["accuracies"]) == len(rows(STUDY))


def test_references_name_the_best_runs(fits: dict[str, Any]) -> None:
    best = {b["arm"]: b for b in fits["references"]["speech"]["best_runs"]}
    assert set(best) == set(ARMS)
    assert best["baseline"]["beats_unigram"]
    assert not best["baseline"]["beats_trigram"]


def test_other_kinds_of_n_and_d_are_used_and_named(folder: Path) -> None:
    content = fit_study(folder, FitOptions(resamples=0, n="global", d="units"))
    found = entry(content, "baseline", "mixture")
    assert (found["n_kind"], found["d_kind"]) == ("num_params_global", "units")
    assert found["loss_surface"]["ranges"]["num_params"][1] < 0.3 * max(r.num_params for r, _ in rows(STUDY))


def test_excluded_runs_do_not_enter(tmp_path: Path) -> None:
    study = Synthetic(arms={"baseline": 1.0}, stories=False)
    write_study(tmp_path, study)
    row = rows(study)[0][0]
    (tmp_path / "runs" / row.run_id / records.EXIT).unlink()
    collect_into(tmp_path)
    content = fit_study(tmp_path, FitOptions(resamples=0))
    assert row.run_id not in entry(content, "baseline", "mixture")["run_ids"]
    assert content["excluded"] == [{"run_id": row.run_id, "reason": "unfinished: step 40 of 40"}]


def test_runs_that_spent_otherwise_than_planned_are_told(tmp_path: Path) -> None:
    study = Synthetic(arms={"baseline": 1.0}, stories=False)
    write_study(tmp_path, study)
    row = rows(study)[0][0]
    path = tmp_path / "runs" / row.run_id / records.EXIT
    records.write_json(path, (records.read_json(path) or {}) | {"train_flops": 1.05e18})
    collect_into(tmp_path)
    assert fit_study(tmp_path, FitOptions(resamples=0))["warnings"] == [f"run {row.run_id} spent +5.0% against its planned FLOPs"]


def test_study_without_a_complete_run_is_refused(tmp_path: Path) -> None:
    study = Synthetic(arms={"baseline": 1.0}, budgets=(1e18,), sizes=2)
    write_study(tmp_path, study)
    for row, _ in rows(study):
        (tmp_path / "runs" / row.run_id / records.EXIT).unlink()
    collect_into(tmp_path)
    with pytest.raises(FitError, match=r"no run .* can enter a fit \(2 unfinished\)"):
        fit_study(tmp_path, OPTIONS)


def test_study_that_is_not_collected_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, Synthetic(budgets=(1e18,), sizes=1))
    with pytest.raises(FitError, match="fit-scaling collect"):
        fit_study(tmp_path, OPTIONS)


def test_results_of_an_earlier_version_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_study(tmp_path, Synthetic(budgets=(1e18,), sizes=1))
    collect_into(tmp_path)
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    (tmp_path / "results.csv").write_text("\n".join([header.replace("branch", "fork"), *lines, ""]))
    with pytest.raises(FitError, match="has no column 'branch', so an earlier version wrote it; run: fit-scaling collect"):
        fit_study(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("share", "n", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0), (0.0, 10, 0.0, 0.2775)]
)
def test_wilson_interval_of_known_cases(share: float, n: int, low: float, high: float) -> None:
    """95%, as in Wilson 1927 and standard tables (Newcombe 1998)."""
    assert wilson_interval(share, n, 0.95) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_refuses_what_is_no_proportion() -> None:
    with pytest.raises(FitError, match="no proportion"):
        wilson_interval(1.2, 10, 0.9)


def test_mean_interval_is_students() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t of 2 degrees of freedom at 90% is 2.920."""
    assert mean_interval([1.0, 2.0, 3.0], 0.9) == pytest.approx([2 - 2.91999 / 3**0.5, 2 + 2.91999 / 3**0.5], rel=1e-5)
    assert mean_interval([1.0], 0.9) is None
