"""An existing plan's rows at another price, from its frozen configurations; the plan itself is not changed.

Not here: the formulas (`sweeps.price`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from lst.config import RunConfig
from lst.errors import PlanError
from lst.plain import changed, field_types, from_dict, with_number
from sweeps.canary import Canary
from sweeps.columns import BRANCH, EVAL, FINETUNE, PlanRow, Status
from sweeps.estimate import Price, price_run
from sweeps.evaluations import priced
from sweeps.folder import from_yaml, run_file
from sweeps.plan import StoredPlan
from sweeps.price import PriceConfig, Work

_SEED = re.compile(r"^    seed: (0|[1-9]\d*)$", re.MULTILINE)  # of the section train
_SECTION = re.compile(r"^(?=  \w+:$)", re.MULTILINE)  # where a section of `config` begins


def reprice(stored: StoredPlan, price: PriceConfig, canary: Canary | None = None) -> tuple[PlanRow, ...]:
    """The plan's rows with new price columns; refused rows and branches, which have no run.yaml, as they stand."""
    known: dict[tuple[Any, ...], tuple[RunConfig, Price]] = {}  # runs that differ in their seed alone cost the same
    rows = []
    for row in stored.rows:
        if row.admitted and row.kind == EVAL:
            row = priced(row, price)
        elif row.admitted and row.kind != BRANCH:
            config = load_run_config(stored, row.run_id)
            key = (row.arm, row.size, row.kind, row.steps, row.planned_spent_flops, row.planned_spent_steps, row.tokens)
            twin, estimate = known.get(key, (None, None))
            if twin is None or estimate is None or canary is not None or not _cost_the_same(twin, config):
                estimate = _estimate(row, config, price, canary)
                known[key] = config, estimate
            row = dataclasses.replace(row, **estimate.columns())
            if misfit := estimate.placement.refusal:
                row = dataclasses.replace(row, status=Status.REFUSED, reason=misfit)
        rows.append(row)
    return tuple(rows)


def _cost_the_same(a: RunConfig, b: RunConfig) -> bool:
    """Whether two runs of equal counts differ in their seed alone; sections that were written alike are one object."""
    shared = all(getattr(a, name) is getattr(b, name) for name in ("model", "patching", "data", "evaluation", "execution"))
    return shared and changed(a.train, seed=b.train.seed) == b.train


def load_run_config(stored: StoredPlan, run_id: str) -> RunConfig:
    """A run's frozen configuration. Raises PlanError where it is missing or is not the one that was planned."""
    path = stored.folder / run_file(run_id)
    try:
        values = _read(path)
    except OSError as error:
        raise PlanError(f"'{path}' is missing; plan the study again into the same folder to put it back.") from error
    config = RunConfig.from_dict(values["config"]) if isinstance(values.get("config"), dict) else None
    if config is None or config.run_id != run_id:
        raise PlanError(f"'{path}' is not the configuration that was planned; plan the study again into the same folder.")
    return config


def _read(path: Path) -> dict[str, Any]:
    """The file as plain values: as this program writes it, or as any YAML reader takes it. Empty where it is damaged."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return _read_sections(text)
    except ValueError:
        return _read_any_yaml(text)


def _read_sections(text: str) -> dict[str, Any]:
    """As `from_yaml`, with the sections of `config` built: runs of a plan share most of them, and a text is read once."""
    head, *blocks = _SECTION.split(text)
    values = from_yaml(head)
    if list(values)[-1:] != ["config"] or values["config"] != {}:
        raise ValueError("it has sections of another mapping")
    sections = [_read_section(block) for block in blocks]
    values["config"] = dict(sections)
    if len(values["config"]) != len(sections):
        raise ValueError("it has a section twice")
    return values


def _read_section(block: str) -> tuple[str, Any]:
    """(name, section) of a section's lines, read once for all seeds. Raises ConfigError, and ValueError as `from_yaml`."""
    seed = _SEED.search(block) if block.startswith("  train:") else None
    if seed is None:
        return _read_once(block)
    name, section = _read_once(f"{block[: seed.start(1)]}0{block[seed.end(1) :]}")
    number = int(seed[1])
    return name, section | {"seed": number} if isinstance(section, dict) else with_number(section, "seed", number)


@functools.lru_cache(maxsize=4096)
def _read_once(block: str) -> tuple[str, Any]:
    ((name, values),) = from_yaml(f"config:\n{block}")["config"].items()
    cls = field_types(RunConfig).get(name)
    return name, values if cls is None else from_dict(cls, values, name)


def _read_any_yaml(text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (ValueError, OmegaConfBaseException, YAMLError):
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _estimate(row: PlanRow, config: RunConfig, price: PriceConfig, canary: Canary | None) -> Price:
    if row.kind == FINETUNE:
        price = price.on_at_most(row.batch_sequences)
    speed_of = None if canary is None else functools.partial(canary.speed, row, price)
    spent = Work(flops=row.planned_spent_flops, steps=row.planned_spent_steps, branches=len(config.train.branch_steps))
    return price_run(config, price, train_flops=row.planned_flops, tokens=row.tokens, spent=spent, speed_of=speed_of)
