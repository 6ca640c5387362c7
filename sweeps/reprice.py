"""An existing plan's rows at another price, from its frozen configurations; the plan itself is not changed.

Not here: the formulas (`sweeps.price`).
"""

from __future__ import annotations

import dataclasses

from lst.config import RunConfig
from lst.errors import PlanError
from sweeps.columns import PlanRow
from sweeps.folder import run_file
from sweeps.plan import StoredPlan
from sweeps.price import PriceConfig, price_run


def reprice(stored: StoredPlan, price: PriceConfig) -> tuple[PlanRow, ...]:
    """The plan's rows with new price columns; refused rows, which have no configuration, as they stand."""
    return tuple(_repriced(row, load_run_config(stored, row.run_id), price) if row.admitted else row for row in stored.rows)


def load_run_config(stored: StoredPlan, run_id: str) -> RunConfig:
    """A run's frozen configuration. Raises PlanError where it is missing or is not the one that was planned."""
    from omegaconf import OmegaConf

    path = stored.folder / run_file(run_id)
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise PlanError(f"'{path}' is missing; plan the study again into the same folder to put it back.") from error
    config = RunConfig.from_dict(values["config"]) if isinstance(values, dict) and "config" in values else None
    if config is None or config.run_id != run_id:
        raise PlanError(f"'{path}' is not the configuration that was planned; plan the study again into the same folder.")
    return config


def _repriced(row: PlanRow, config: RunConfig, price: PriceConfig) -> PlanRow:
    estimate = price_run(config, price, train_flops=row.planned_flops, tokens=row.tokens)
    return dataclasses.replace(
        row,
        gpus=price.cards,
        est_gpu_hours=estimate.gpu_hours,
        est_minutes=estimate.minutes,
        est_peak_gib=float(f"{estimate.peak_gib:.4g}"),
    )
