"""What patching saves in true training FLOPs at each size, from the paper's stated statistics: `plan-sweep savings`.

Two figures for an LST arm against the baseline of its size: the saving at equal data (FLOPs a token) and the excess at
equal units (FLOPs a unit, the paper's compute-controlled comparison), each with and without the output head. The paper
counts units alone, by which static(4) saves 19.3% and exceeds nothing (its gap 3). No result is presupposed: every option
that the paper leaves open has its own line. Not here: the FLOPs (`lst.flops`), the statistics (`sweeps.stated`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lst.config import RunConfig, arm_config
from lst.flops import GROUPS, training_flops
from sweeps.stated import StatedMeasurements
from sweeps.stated_file import read_stated
from sweeps.text import aligned, wrapped

BY_OPTION = "table7_1b"  # the size of the table by group and option
SIZES = ("420M", "630M", "810M", "1.1B", "table7_1b", "1.8B", "7B")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One reading of what the paper leaves open."""

    name: str
    arm: str = "lst_static"
    model: dict[str, Any] = field(default_factory=dict)  # of the LST arm
    patching: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # of both arms
    baseline_match: str = "global_shape"


OPTIONS = (
    Option(name="as planned: static(4)"),
    Option(name="local modules on speech alone", model={"local_text": False}),
    Option(name="cross-attention to one unit", model={"cross_attention": "preceding"}),
    Option(name="both", model={"local_text": False, "cross_attention": "preceding"}),
    Option(name="one query a patch", model={"queries_per_patch": 1}),
    Option(name="head tied to the embedding", model={"tied_head": True}),
    Option(name="baseline of LST's parameters", baseline_match="lst_params"),
    Option(name="sequences of 2,048 units", data={"seq_len_units": 2048}),
    Option(name="static(6)", patching={"patch_size": 6}),
    Option(name="static(9)", patching={"patch_size": 9}),
    Option(name="aligned, silence apart", arm="lst_aligned"),
    Option(name="aligned, silence merged", arm="lst_aligned", patching={"silence": "merged"}),
    Option(name="mixed", arm="lst_mixed"),
    Option(name="curriculum", arm="lst_curriculum"),
)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """An LST arm against its baseline, under one option at one size. FLOPs are of training, by module group."""

    size: str
    option: str
    baseline: dict[str, float]  # FLOPs a token
    lst: dict[str, float]  # FLOPs a token
    tokens_per_unit: float  # of the LST arm, against the baseline's

    def equal_data(self, *, head: bool = True) -> float:
        """Share of the FLOPs that LST saves on the same tokens."""
        return 1 - _total(self.lst, head) / _total(self.baseline, head)

    def equal_units(self, *, head: bool = True) -> float:
        """Share of FLOPs that LST spends beyond the baseline on as many units."""
        return (1 - self.equal_data(head=head)) * self.tokens_per_unit - 1


def saving(size: str, option: Option, measure: StatedMeasurements) -> Saving:
    """The saving under stated statistics. Raises ConfigError on an unknown size or option's value."""
    tied = {"tied_head": option.model["tied_head"]} if "tied_head" in option.model else {}
    plain = arm_config("baseline", size=size, baseline_match=option.baseline_match, model=tied, data=option.data)
    patched = arm_config(option.arm, size=size, model=option.model, patching=option.patching, data=option.data)
    (base, base_density), (lst, lst_density) = (_per_token(config, measure) for config in (plain, patched))
    return Saving(size=size, option=option.name, baseline=base, lst=lst, tokens_per_unit=lst_density / base_density)


def savings() -> dict[tuple[str, str], Saving]:
    """By size and option, from the paper's statistics."""
    measure = StatedMeasurements(read_stated("paper"))
    return {(size, option.name): saving(size, option, measure) for size in SIZES for option in OPTIONS}


def savings_text() -> str:
    """By group at every size under the planned options, by group for every option; both figures for every option and size."""
    grid = savings()
    default = {size: grid[size, OPTIONS[0].name] for size in SIZES}
    groups = [[""] + ["baseline"] * 3 + ["LST"] * 6, ["size", "global", "head", "all", *GROUPS[1:], "all", "head apart"]]
    for size, found in default.items():
        whole, bare = _total(found.baseline, True), _total(found.baseline, False)
        base = [found.baseline["global"], found.baseline["head"], whole]
        lst = [*(found.lst[group] for group in GROUPS[1:]), _total(found.lst, True)]
        shares = [f"{100 * value / whole:.1f}" for value in (*base, *lst)]
        groups.append([size, *shares, f"{100 * _total(found.lst, False) / bare:.1f}"])
    tables = [
        ("FLOPs a token in % of the baseline's, static(4); head apart: both without their heads", aligned(groups, left={0})),
        (f"the same for each option at {BY_OPTION}, in % of its own baseline's", aligned(_by_option(grid), left={0})),
    ]
    for title, head, figure in (
        ("saved at equal data, %", True, "data"),
        ("saved at equal data, heads apart, %", False, "data"),
        ("spent beyond the baseline at equal units, %", True, "units"),
        ("spent beyond the baseline at equal units, heads apart, %", False, "units"),
    ):
        table = [["", *SIZES]]
        for option in OPTIONS:
            cells = [grid[size, option.name] for size in SIZES]
            values = [c.equal_data(head=head) if figure == "data" else c.equal_units(head=head) for c in cells]
            table.append([option.name, *(f"{100 * value:+.1f}" for value in values)])
        tables.append((title, aligned(table, left={0})))
    first = default["table7_1b"]
    counted = wrapped(
        "",
        f"from the stated statistics 'paper'; by units alone, as the paper counts, static(4) saves "
        f"{100 * (1 - 1 / first.tokens_per_unit):.1f}% at equal data and spends nothing more at equal units",
    )
    return "\n\n".join([*(f"{title}\n{table}" for title, table in tables), counted])


def _by_option(grid: Mapping[tuple[str, str], Saving]) -> list[list[str]]:
    """A line an option: LST's FLOPs a token by group."""
    table = [["", *GROUPS[1:], "all", "head apart"]]
    for option in OPTIONS:
        found = grid[BY_OPTION, option.name]
        whole, bare = _total(found.baseline, True), _total(found.baseline, False)
        shares = [100 * value / whole for value in (*(found.lst[group] for group in GROUPS[1:]), _total(found.lst, True))]
        table.append([option.name, *(f"{share:.1f}" for share in (*shares, 100 * _total(found.lst, False) / bare))])
    return table


def savings_json() -> list[dict[str, Any]]:
    """An object for every size and option."""
    return [
        dataclasses.asdict(found)
        | {f"equal_{kind}{'' if head else '_head_apart'}": value for kind, head, value in _figures(found)}
        for found in savings().values()
    ]


def _figures(found: Saving) -> list[tuple[str, bool, float]]:
    data = [("data", head, found.equal_data(head=head)) for head in (True, False)]
    return data + [("units", head, found.equal_units(head=head)) for head in (True, False)]


def _per_token(config: RunConfig, measure: StatedMeasurements) -> tuple[dict[str, float], float]:
    """Training FLOPs a token by group, and tokens a unit."""
    counts = measure.mean(config)
    flops = training_flops(config, counts).by_group
    return {group: value / counts.tokens for group, value in flops.items()}, counts.tokens / counts.units


def _total(groups: dict[str, float], head: bool) -> float:
    return sum(value for group, value in groups.items() if head or group != "head")
