"""Every kind of bad input that a planner meets: one sentence, exit status 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.cli import main

LENGTHS = "exactly one length axis"
WRONG = [
    ("an impossible budget", ["budgets=[10]"], "are less than half of one sequence"),
    ("an impossible budget", ["budgets=[1e60]"], "give a smaller budget"),
    ("an impossible total", ["budgets=[]", "spend.total_flops=1e10"], "pays for no ladder"),
    ("contradictory overrides", ["tokens=[1e9]"], LENGTHS),
    ("contradictory overrides", ["matching=unit", "context_match=tokens"], "matching=unit wants equal units"),
    ("contradictory overrides", ["recipe.share_trunk=true"], "needs recipe.schedule=wsd"),
    ("contradictory overrides", ["spend.total_flops=1e20", "spend.total_money=5"], "one total decides"),
    ("contradictory overrides", ["recipe.name=table"], "a table of your own needs both"),
    ("duplicate keys", ["seeds=[0]", "seeds=[1]"], "'seeds' is given twice"),
    ("a duplicate value", ["sizes=[420M,420M]"], "sizes has '420M' twice"),
    ("an unknown key", ["buggets=[1e20]"], "did you mean 'budgets'?"),
    ("an unknown key of a section", ["price.divice=h100"], "did you mean 'device'?"),
    ("an unknown name", ["sizes=[42OM]"], "did you mean '420M'?"),
    ("an unknown name", ["price.device=h10"], "did you mean 'h100'?"),
    ("an unknown name", ["after.kind=finetune", "after.task=asrr"], "did you mean 'asr'?"),
    ("missing statistics", ["patching.patch_size=5"], "have no units.static_5"),
    ("missing statistics", ["data=paper.yaml"], "data='paper.yaml' is no file; did you mean 'paper'?"),
    ("a negative number", ["budgets=[-1e20]"], "must be a positive finite number"),
    ("a negative number", ["recipe.weight_decay=-1"], "recipe.weight_decay=-1.0 must be a finite number, 0 or more"),
    (
        "a negative number",
        ["after.kind=finetune", "after.task=asr", "after.steps=[-5]", "after.batch_sequences=4"],
        "after.steps",
    ),
    ("no finite number", ["recipe.lr=nan"], "recipe.lr=nan must be finite"),
    ("no finite number", ["price.mfu=inf"], "price.mfu=inf must be finite"),
    ("no finite number", ["spend.tokens_per_param=inf"], "spend.tokens_per_param=inf must be finite"),
]


@pytest.mark.parametrize(("kind", "overrides", "sentence"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input_is_one_sentence_and_nothing_is_written(
    kind: str, overrides: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert main(["study=isoflop", f"out={out}", *overrides]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("plan-sweep: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_of_another_plan_keeps_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    one = ["study=isoflop", f"out={out}", "budgets=[1e20]", "spend.sizes_per_budget=4"]
    assert main(one) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*one, "recipe.lr=1e-4"]) == 2
    assert "holds another plan" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
