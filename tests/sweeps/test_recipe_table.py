"""A user's table of hyperparameters: its own values at its points, named lines between them, warnings outside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from lst.errors import ConfigError
from sweeps.cli import compose_study, main
from sweeps.plan import Plan, plan
from sweeps.recipe_table import read_recipe_table

TABLE = """size,budget,lr,batch_units,warmup_steps,weight_decay,tuning_runs
420M,1e19,1.6e-3,262144,1000,0.1,9
420M,1e21,4e-4,1048576,2000,0.1,9
1.8B,1e21,1e-4,1048576,2000,0.3,9
"""


def planned(path: Path, **overrides: str) -> Plan:
    given = {"study": "isoflop", "budgets": "[1e19,1e20,1e21]", "spend.sizes_per_budget": "0", "sizes": "[200M,420M,1.8B]"}
    return plan(compose_study(given | {"recipe.name": "table", "recipe.table": str(path)} | overrides))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "own table.csv"
    path.write_text(TABLE)
    return path


def test_the_tables_values_hold_at_its_points_and_lines_between_them(table: Path) -> None:
    found = planned(table)
    rows = {(row.size, row.flops_budget): row for row in found.rows if row.arm == "baseline"}
    assert [rows["420M", c].lr for c in (1e19, 1e20, 1e21)] == [1.6e-3, pytest.approx(8e-4), 4e-4]
    assert [rows["420M", c].batch_units for c in (1e19, 1e20, 1e21)] == [262_144, 524_288, 1_048_576]
    assert [rows["420M", c].warmup_steps for c in (1e19, 1e20, 1e21)] == [1000, 1500, 2000]
    assert rows["1.8B", 1e21].lr == 1e-4
    assert rows["200M", 1e21].lr == 4e-4  # the nearest size
    configs = [found.run_configs[rows[size, 1e21].run_id] for size in ("420M", "1.8B")]
    assert [config.optim.weight_decay for config in configs] == [0.1, 0.3]


def test_a_size_between_two_lies_on_a_line_of_logarithms(table: Path) -> None:
    read = read_recipe_table(table)
    small, large = read.sizes
    middle = math.sqrt(small * large)
    assert read.value("lr", middle, 1e21) == pytest.approx(math.sqrt(4e-4 * 1e-4))
    assert read.value("weight_decay", middle, 1e21) == pytest.approx(0.2)
    assert read.value("lr", middle, 1e30) == read.value("lr", middle, 1e21)


def test_every_arm_gets_the_same_values_and_the_plan_says_so(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = planned(table).rows
    pairs: dict[str, set[Any]] = {}
    for row in rows:
        pairs.setdefault(row.match_group, set()).add((row.lr, row.batch_units, row.warmup_steps))
    assert {len(values) for values in pairs.values()} == {1}
    assert {row.recipe.rpartition(":")[0] for row in rows} == {"table:own table"}
    overrides = ["study=isoflop", "budgets=[1e19]", "sizes=[420M]", "spend.sizes_per_budget=0", "recipe.name=table"]
    assert main([*overrides, f"recipe.table={table}", "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 points, 4.25e+08 to 1.81e+09 parameters, 1e+19 to 1e+21 FLOPs; 27 tuning runs an arm" in text
    assert "so that none is tuned more than another" in text
    assert "between them: log-log lines" in text


def test_outside_the_table_the_plan_warns(table: Path) -> None:
    (warning,) = [w for w in planned(table).warnings if "outside its range" in w]
    assert warning.startswith("recipe 'table' is used outside its range in 3 cases")
    assert "2.02e+08 parameters lie outside 4.25e+08 to 1.81e+09" in warning
    assert not [w for w in planned(table, sizes="[420M,1.8B]").warnings if "outside its range" in w]


def test_values_by_hand_stand_over_the_tables(table: Path) -> None:
    found = planned(table, **{"recipe.lr": "1e-3", "recipe.weight_decay": "0", "sizes": "[420M]"})
    assert {row.lr for row in found.rows} == {1e-3}
    assert {config.optim.weight_decay for config in found.run_configs.values()} == {0.0}


def test_yaml_and_counts_of_parameters_without_budgets(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "rows:\n- {num_params: 4e8, lr: 1e-3, batch_units: 262144}\n- {num_params: 1.6e9, lr: 2.5e-4, batch_units: 262144}\n"
    )
    read = read_recipe_table(path)
    assert read.value("lr", read.place("1.8B", 8e8), 1e5) == pytest.approx(5e-4)
    assert read.value("warmup_steps", 8e8, 1e5) is None
    assert read.outside(8e8, 1e5) == ""
    found = planned(path, sizes="[420M]", budgets="[1e19]")
    assert {config.optim.weight_decay for config in found.run_configs.values()} == {0.1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("size,lr,batch\n420M,1,2\n", "has the unknown column 'batch'; did you mean 'batch_units'?"),
        ("size,lr\n420M,1\n", "has no column 'batch_units'"),
        ("lr,batch_units\n1,2\n", "needs one of the columns size and num_params"),
        ("size,lr,batch_units\n425M,1,2\n", "row 1: size '425M' is unknown; did you mean '420M'?"),
        ("size,lr,batch_units\n420M,-1,2\n", "row 1: lr='-1' must be a positive number"),
        ("size,lr,batch_units\n420M,nan,2\n", "row 1: lr='nan' must be a positive number"),
        ("size,lr,batch_units\n420M,,2\n", "row 1: lr='' must be a positive number"),
        ("size,lr,batch_units\n420M,1\n", "row 1 has 2 cells under 3 columns"),
        ("size,lr,lr,batch_units\n420M,1,1,2\n", "has a column twice"),
        ("size,lr,batch_units\n420M,1,2\n420M,2,2\n", "has two rows for 4.253e\\+08 parameters"),
        ("size,lr,batch_units,tuning_runs\n420M,1,2,1.5\n", "tuning_runs=1.5 counts runs"),
        ("size,lr,batch_units\n", "has no rows"),
    ],
)
def test_a_table_that_cannot_be_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_recipe_table(path)


def test_a_missing_table_and_one_without_its_recipe_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study=isoflop", "--dry-run", "recipe.name=table", f"recipe.table={tmp_path / 'none.csv'}"]) == 2
    assert "none.csv cannot be read" in capsys.readouterr().err
    assert main(["study=isoflop", "--dry-run", "recipe.name=table"]) == 2
    assert main(["study=isoflop", "--dry-run", f"recipe.table={tmp_path / 'none.csv'}"]) == 2
    assert capsys.readouterr().err.count("a table of your own needs both") == 2
    bad = tmp_path / "bad.yaml"
    bad.write_text("rows: [1, 2]\n")
    with pytest.raises(ConfigError, match="must hold the list `rows`"):
        read_recipe_table(bad)
