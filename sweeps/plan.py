"""`plan`: study configuration -> Plan; `read_plan`: study folder -> the plan as it was written.

    planned = plan("demo")                       # a name, a dict or a StudyConfig
    planned.table, planned.totals, planned.warnings
    planned.write(Path("out"))                   # new, unchanged or (widen=True) widened

Importing this module is cheap: the data side, numpy and pandas are imported when a plan is made. Not here: how rows come
about (`sweeps.build`), how a folder is kept whole (`sweeps.folder`), what is printed (`sweeps.show`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.errors import PlanError

Progress = Callable[[int, int], None]

if TYPE_CHECKING:
    import pandas as pd

    from lst.config import RunConfig
    from sweeps.build import PlannedRun
    from sweeps.columns import PlanRow
    from sweeps.folder import Written
    from sweeps.measure import Measure
    from sweeps.spend import Ladder
    from sweeps.spending import Level
    from sweeps.stated_file import StatedStatistics
    from sweeps.study import StudyConfig


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over the admitted rows."""

    rows: int  # all rows of the plan
    admitted: int
    refused: int
    planned_flops: float  # that are spent: what budgets share is counted once
    steps: int  # that are trained, likewise
    process_minutes: float  # one run after another
    gpu_hours: float
    dollars: float
    peak_gib: float  # of a process of the largest run
    disk_gib: float  # of a run's checkpoints while it trains, of the largest
    kept_gib: float  # of all checkpoints that stay

    @classmethod
    def of(cls, rows: tuple[PlanRow, ...]) -> Totals:
        runs = [row for row in rows if row.admitted]
        return cls(
            rows=len(rows),
            admitted=len(runs),
            refused=len(rows) - len(runs),
            planned_flops=sum(row.planned_spent_flops for row in runs),
            steps=sum(row.planned_spent_steps for row in runs),
            process_minutes=sum(row.est_minutes for row in runs),
            gpu_hours=sum(row.est_gpu_hours for row in runs),
            dollars=sum(row.est_dollars for row in runs),
            peak_gib=max((row.est_peak_gib for row in runs), default=0.0),
            disk_gib=max((row.est_disk_gib for row in runs), default=0.0),
            kept_gib=sum(row.est_kept_gib for row in runs),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned study: rows in plan.csv's order, refused ones included, and a configuration for each admitted one."""

    study: StudyConfig
    rows: tuple[PlanRow, ...]
    run_configs: Mapping[str, RunConfig]  # run_id -> configuration, admitted rows that train
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # run_id -> eval.json, admitted rows of kind eval
    warnings: tuple[str, ...]
    levels: tuple[Level, ...]  # lengths with their sizes
    ladder: Ladder | None  # where a total has chosen them
    _measure: Measure = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a DataFrame with the columns of docs/columns.md."""
        return rows_to_frame(self.rows)

    @property
    def totals(self) -> Totals:
        return Totals.of(self.rows)

    @property
    def stated(self) -> StatedStatistics | None:
        """The statistics that the plan was made from, where no data set was measured."""
        return self._measure.stated

    def wall_minutes(self, cores: int) -> float:
        """Estimated wall clock of all admitted runs on `cores` processes, in plan order."""
        from sweeps.price import wall_minutes

        return wall_minutes((row.est_minutes for row in self.rows if row.admitted), cores)

    def files(self) -> dict[str, bytes]:
        """The plan's files by their path in the study's folder, references.json apart."""
        from lst.records import STUDY_FILE, rows_line
        from sweeps.columns import PLAN_TABLE, rows_to_csv
        from sweeps.evaluations import evaluation_text
        from sweeps.folder import evaluation_file, run_file, run_yaml, to_yaml
        from sweeps.study import study_to_dict

        study = to_yaml(study_to_dict(self.study)) + rows_line(len(self.rows))
        files = {STUDY_FILE: study, PLAN_TABLE: rows_to_csv(self.rows)}
        for run_id, config in self.run_configs.items():
            files[run_file(run_id)] = run_yaml(config)
        for run_id, content in self.evaluations.items():
            files[evaluation_file(run_id)] = evaluation_text(content)
        return {name: text.encode() for name, text in files.items()}

    def write(self, out: Path | str, *, widen: bool = False) -> Written:
        """Write the study's folder. Raises PlanError if `out` holds another plan, other files, or cannot be written."""
        from sweeps.folder import write_plan

        return write_plan(Path(out), self.files(), self._references if self.stated is None else None, widen=widen)

    def _references(self) -> bytes:
        """The unigram and trigram losses of the held-out tokens, as JSON."""
        config = next(iter(self.run_configs.values()), None)
        if config is None:
            raise PlanError("every row of the plan is refused, so there is nothing to run; --dry-run prints the reasons.")
        content = self._measure.references(self.study.evaluation, config.data)
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan as it stands in a study's folder."""

    folder: Path
    study: StudyConfig
    rows: tuple[PlanRow, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a DataFrame with the columns of docs/columns.md."""
        return rows_to_frame(self.rows)

    @property
    def totals(self) -> Totals:
        return Totals.of(self.rows)


def plan(study: StudyConfig | Mapping[str, Any] | str, *, progress: Progress | None = None) -> Plan:
    """Plan a study: a StudyConfig, a dict of its fields, or the name of one that comes with the package.

    `progress` is told (done, total) match groups.
    Raises ConfigError or PlanError on a study that cannot be, DataError on data that cannot be read.
    """
    from sweeps.measure import open_measure

    config = _as_study(study)
    return plan_with(config, open_measure(config.data), progress=progress)


def plan_with(study: StudyConfig, measure: Measure, *, progress: Progress | None = None) -> Plan:
    """`plan` on data that is open already: several studies of one data set share what is measured."""
    from sweeps.after import after_runs
    from sweeps.build import build_runs
    from sweeps.columns import BRANCH, EVAL
    from sweeps.evaluations import keep_steps, kept_warnings
    from sweeps.spending import choose_ladder, edge_warnings, ladder_levels, levels_of, require_within

    def runs_at(levels: Sequence[Level], progress: Progress | None = None) -> tuple[list[PlannedRun], list[str]]:
        runs, warnings = build_runs(study, measure, levels, progress)
        runs = [keep_steps(study, run) for run in runs] if study.after.evaluates else runs
        return [*runs, *after_runs(study, measure, runs)], warnings

    def rows_at(levels: Sequence[Level]) -> tuple[PlanRow, ...]:
        return tuple(run.row for run in runs_at(levels)[0])

    ladder = choose_ladder(study, measure, rows_at) if study.spend.total and not study.lengths else None
    levels = ladder_levels(ladder) if ladder else levels_of(study, measure)
    runs, warnings = runs_at(levels, progress)
    rows = tuple(run.row for run in runs)
    if study.spend.total:
        require_within(study, rows)
    return Plan(
        study=study,
        rows=rows,
        levels=levels,
        ladder=ladder,
        run_configs={run.row.run_id: run.config for run in runs if run.row.admitted and run.row.kind not in (BRANCH, EVAL)},
        evaluations={run.row.run_id: run.evaluation for run in runs if run.row.admitted and run.evaluation is not None},
        warnings=(*warnings, *edge_warnings(study, measure, levels), *kept_warnings(study, rows)),
        _measure=measure,
    )


def read_plan(folder: Path | str) -> StoredPlan:
    """The plan in a study's folder. Raises PlanError where there is none, or where it is damaged."""
    from lst.records import PUT_BACK, STUDY_FILE, is_whole_text
    from sweeps.columns import read_rows
    from sweeps.study import StudyConfig
    from sweeps.yaml_file import UnreadableError, read_mapping

    folder = Path(folder)
    rows = read_rows(folder)
    path = folder / STUDY_FILE
    try:
        if path.is_file() and not is_whole_text(path):
            raise PlanError(f"'{path}' is torn (its last line has no end); {PUT_BACK}")
        values = read_mapping(path)
    except UnreadableError as error:
        raise PlanError(f"'{path}' cannot be read ({error}); {PUT_BACK}") from error
    if values is None:
        raise PlanError(f"'{path}' is no mapping; {PUT_BACK}")
    return StoredPlan(folder=folder, study=StudyConfig.from_dict(values), rows=tuple(rows))


def rows_to_frame(rows: tuple[PlanRow, ...]) -> pd.DataFrame:
    """Plan rows as a DataFrame."""
    import pandas as pd

    from sweeps.columns import COLUMNS

    return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in COLUMNS})


def _as_study(study: StudyConfig | Mapping[str, Any] | str) -> StudyConfig:
    from sweeps.study import StudyConfig, load_study

    if isinstance(study, str):
        return load_study(study)
    if isinstance(study, StudyConfig):
        study.validate()
        return study
    return StudyConfig.from_dict(study)
