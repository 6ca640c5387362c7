"""`fit-scaling` as a user meets it: output, JSON, options, sentences and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import cli
from tests.analysis.study_folder import Synthetic, write_study
from tests.analysis.tables import TRUTH, isoflop_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    isoflop_table()[["num_params", "tokens", "loss"]].to_csv(path, index=False)
    return path


def test_table_as_json_has_one_key(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--table", str(table), "--json", "resamples=20"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == ["loss_surface"]
    assert content["loss_surface"]["alpha"] == pytest.approx(TRUTH.alpha, rel=1e-6)
    assert content["loss_surface"]["resamples"] == 20


def test_table_as_text_shows_intervals_and_warnings(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--table", str(table), "resamples=20", "loss=squares"]) == 0
    out = capsys.readouterr().out
    assert "alpha" in out
    assert "least squares" in out
    assert "! 12 runs for 5 parameters" in out


def test_study_from_folders_to_fits_twice_with_equal_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, Synthetic(stories=False))
    assert cli.main(["collect", str(tmp_path)]) == 0
    assert "24 runs (24 done); 24 enter fits" in capsys.readouterr().out
    written = []
    for _ in range(2):
        assert cli.main(["fit", str(tmp_path), "resamples=10"]) == 0
        written.append((tmp_path / "fits.json").read_bytes())
    out = capsys.readouterr().out
    assert "lst_static against baseline, mixture" in out
    assert "compute multiplier 1." in out
    assert written[0] == written[1]


WRONG = {
    "unknown option": (["resample=5"], "did you mean 'resamples'"),
    "wrong type": (["resamples=many"], "resamples=many must be of type int"),
    "unknown choice": (["n=totl"], "did you mean 'total'"),
    "no folder": ([], "0 folders were given"),
    "no plan": (["{tmp}"], "holds no plan.csv"),
    "missing table": (["--table", "{tmp}/none.csv"], "none.csv' does not exist"),
    "both": (["{tmp}", "--table", "{tmp}/none.csv"], "not both"),
}


@pytest.mark.parametrize("case", WRONG, ids=lambda c: c.replace(" ", "-"))
def test_wrong_input_is_one_sentence_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = WRONG[case]
    assert cli.main(["fit", *(a.format(tmp=tmp_path) for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fit-scaling: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_two_arms_is_refused_and_the_import_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = pd.concat([isoflop_table().assign(arm=arm) for arm in ("baseline", "lst_static")])
    both.to_csv(tmp_path / "both.csv", index=False)
    assert cli.main(["fit", "--table", str(tmp_path / "both.csv"), "resamples=0"]) == 2
    told = capsys.readouterr().err
    assert "has 2 arms (baseline, lst_static)" in told
    assert f"fit-scaling import {tmp_path / 'both.csv'} out=DIR" in told


def test_table_that_is_no_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_bytes(b"")
    assert cli.main(["fit", "--table", str(tmp_path / "bad.csv")]) == 2
    assert "no readable CSV table" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [1, 30])
def test_a_comma_too_many_shifts_no_column(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int) -> None:
    isoflop_table().to_csv(tmp_path / "t.csv", index=False)
    head, *lines = (tmp_path / "t.csv").read_text().splitlines()
    lines = [line + "," if n < rows else line for n, line in enumerate(lines)]
    (tmp_path / "t.csv").write_text("\n".join([head, *lines]) + "\n")
    assert cli.main(["fit", "--table", str(tmp_path / "t.csv"), "resamples=0"]) == 2
    assert "rows with more cells than its first line has names" in capsys.readouterr().err


def test_arms_called_as_missing_words_are_two_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = pd.concat([isoflop_table().assign(arm=arm) for arm in ("NA", "null")])
    both.to_csv(tmp_path / "both.csv", index=False)
    assert cli.main(["fit", "--table", str(tmp_path / "both.csv"), "resamples=0"]) == 2
    assert "has 2 arms (NA, null)" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "said"), [("seed=[", "cannot be read"), ("delta=1e-300", "give loss=absolute")])
def test_an_option_that_no_fit_can_have_is_one_sentence(
    table: Path, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    assert cli.main(["fit", "--table", str(table), "resamples=0", option]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--no-such-flag"], ["collect"], ["guess", "x"]])
def test_command_line_that_cannot_be_is_exit_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2


def test_interruption_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_collect", interrupted)
    assert cli.main(["collect", str(tmp_path)]) == 130
    assert capsys.readouterr().err == ""
