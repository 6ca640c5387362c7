"""From a study to its rows: each cell's configuration, its matched length, its price, and whether it may run.

A match group is one value of the length axis at one size and seed, across arms. Its reference arm meets the length axis;
what the other arms are solved for depends on the matching:

    flop   the reference's FLOPs (or the budget itself, where the axis is FLOPs)
    unit   nothing: they copy the reference's steps and batches
    data   the reference's tokens

Not here: how a length is solved (`sweeps.allocate`), files (`sweeps.folder`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lst.config import Arm, RunConfig
from lst.errors import PlanError
from lst.flops import num_params, parameter_counts, six_nd, training_flops
from lst.ladder import SIZES
from lst.plain import changed, with_number
from sweeps.admit import MatchGap, admit, gap_warnings, group_warnings, modality_warnings
from sweeps.allocate import Allocation, Quantity, Target, allocate, copy_length, flops_until, whole_batches
from sweeps.arms import arm_model
from sweeps.base import Group, Shared
from sweeps.columns import PlanRow, format_value, with_cells
from sweeps.estimate import price_run
from sweeps.folder import section_yaml
from sweeps.measure import Measure
from sweeps.price import AUTO
from sweeps.recipe import Hyperparameters
from sweeps.spending import Level, edges
from sweeps.study import Length, Matching, StudyConfig
from sweeps.trunk import LENGTH_DECIDES, share_trunks
from sweeps.variants import arm_of

_AXIS_QUANTITY = {
    Length.BUDGETS: Quantity.FLOPS,
    Length.TOKENS: Quantity.TOKENS,
    Length.UNITS: Quantity.UNITS,
    Length.TOKENS_PER_PARAM: Quantity.TOKENS,
}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A row with the configuration it stands for."""

    row: PlanRow
    config: RunConfig
    evaluation: Mapping[str, Any] | None = None  # of a row of kind eval, whose weights are those of a run of `config`


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """An arm's solved run inside its group."""

    name: str  # the arm's in the study
    config: RunConfig
    allocation: Allocation
    hyper: Hyperparameters


def build_runs(
    study: StudyConfig, measure: Measure, levels: Sequence[Level], progress: Callable[[int, int], None] | None = None
) -> tuple[list[PlannedRun], list[str]]:
    """All runs of a study in a stable order (length, size, arm, seed), and what a reader must be warned of.

    `levels` are its lengths, each with the sizes that it is crossed with.
    """
    runs: list[tuple[tuple[float, int, int, int], PlannedRun]] = []
    outside: dict[str, str] = {}
    sizes, arms = list(SIZES), study.ordered_arms
    groups, shared = list(_groups(study, levels)), Shared(study, measure, edges(study, measure, levels))
    before, of_group = groups[0], list[tuple[PlannedRun, Hyperparameters]]()
    for done, group in enumerate(groups, start=1):
        # stated statistics know no seed, so that seeds differ in nothing else (data read by another seed differ in counts)
        twins = of_group and measure.stated is not None and (group.length, group.size) == (before.length, before.size)
        of_group = [(_reseeded(run, group.seed), hyper) for run, hyper in of_group] if twins else list(_group_runs(shared, group))
        before = group
        for run, hyper in of_group:
            place = (group.length, sizes.index(run.row.size), arms.index(run.row.arm), run.row.seed)
            runs.append((place, run))
            if hyper.outside:
                outside.setdefault(f"{group.size} at {study.length.value}={group.length:g}", hyper.outside)
        if progress is not None:
            progress(done, len(groups))
    ordered = [run for _, run in sorted(runs, key=lambda item: item[0])]
    _require_distinct(ordered)
    told: list[str] = []
    if study.recipe.share_trunk:
        branched, told = share_trunks([(r.row, r.config) for r in ordered], study.price, flops_until(measure))
        ordered = [PlannedRun(row=row, config=config) for row, config in branched]
    rows = [run.row for run in ordered]
    return ordered, _warnings(study, measure, rows, outside, longest=max(level.length for level in levels)) + told


def _reseeded(run: PlannedRun, seed: int) -> PlannedRun:
    """The same run with another seed."""
    section_yaml(run.config.train)  # made once, for all seeds
    config = changed(run.config, train=with_number(run.config.train, "seed", seed))
    group = run.row.match_group.replace(f" seed={run.row.seed}", f" seed={seed}")
    return PlannedRun(row=with_cells(run.row, run_id=config.run_id, seed=seed, match_group=group), config=config)


def _groups(study: StudyConfig, levels: Sequence[Level]) -> Iterator[Group]:
    """Longest first, so that what is counted for the longest run serves the others."""
    for level in sorted(levels, key=lambda level: -level.length):
        for size in sorted(level.sizes, key=list(SIZES).index):
            for seed in study.seeds:
                yield Group(level.length, size, seed)


def _group_runs(shared: Shared, group: Group) -> Iterator[tuple[PlannedRun, Hyperparameters]]:
    """The runs of one group, reference arms first."""
    study, measure, hyper = shared.study, shared.measure, shared.hyperparameters(group)
    views = {arm: own for arm, own in shared.views.items() if group.size in study.sizes_of(arm)}
    cells: dict[str, _Cell] = {}
    for arm, own in sorted(views.items(), key=lambda item: item[0] != item[1].reference_arm):
        config = shared.config(arm, group)
        reference = cells.get(own.reference_arm)
        if reference is None:
            allocation = allocate(
                config, measure, batch_sequences=hyper.batch_sequences, target=_axis_target(own, measure, group)
            )
        else:
            allocation = _match(own, measure, group, config, reference)
        if own.recipe.share_trunk and group.length < study.lengths[-1] and arm_of(arm) not in LENGTH_DECIDES:
            allocation = whole_batches(config, measure, allocation)
        cell = cells[arm] = _Cell(
            name=arm, config=_finished(shared, config, allocation, hyper), allocation=allocation, hyper=hyper
        )
        yield _planned_run(own, measure, group, cell, reference or cell, shared.edges.get(group.length, "")), hyper


def _match(study: StudyConfig, measure: Measure, group: Group, config: RunConfig, reference: _Cell) -> Allocation:
    """The allocation of an arm that is not its group's reference."""
    if study.matching is Matching.UNIT:
        return copy_length(config, measure, reference.allocation)
    target = _match_target(study, measure, group, reference)
    return allocate(config, measure, batch_sequences=reference.hyper.batch_sequences, target=target)


def _match_target(study: StudyConfig, measure: Measure, group: Group, reference: _Cell) -> Target:
    """What an arm that is not its group's reference is matched on."""
    if study.matching is Matching.UNIT:
        return Target(quantity=Quantity.UNITS, value=reference.allocation.counts.units)
    if study.matching is Matching.DATA:
        return Target(quantity=Quantity.TOKENS, value=reference.allocation.counts.tokens)
    if study.length is Length.BUDGETS:
        return _axis_target(study, measure, group)
    return Target(quantity=Quantity.FLOPS, value=reference.allocation.flops)


def _axis_target(study: StudyConfig, measure: Measure, group: Group) -> Target:
    """What the length axis asks of the group's reference."""
    value = group.length
    if study.length is Length.TOKENS_PER_PARAM:
        value *= num_params(arm_model(study, measure, group.size, arm_of(study.reference_arm)))
    return Target(quantity=_AXIS_QUANTITY[study.length], value=value)


def _finished(shared: Shared, config: RunConfig, allocation: Allocation, hyper: Hyperparameters) -> RunConfig:
    """The configuration with its length and recipe."""
    finished = dataclasses.replace(
        config,
        optim=shared.optim(hyper, allocation.steps),
        train=dataclasses.replace(
            config.train,
            steps=allocation.steps,
            batch_sequences=allocation.batch_sequences,
            final_batch_sequences=allocation.final_batch_sequences,
        ),
    )
    finished.validate()
    return finished


def _planned_run(study: StudyConfig, measure: Measure, group: Group, cell: _Cell, reference: _Cell, edge: str) -> PlannedRun:
    config, allocation = cell.config, cell.allocation
    price = price_run(config, study.price, train_flops=allocation.flops, tokens=allocation.counts.tokens)
    if study.price.gpus == AUTO:
        config = with_micro_batch(config, price.placement.micro_batch_tokens)
    budget = group.length if study.length is Length.BUDGETS else reference.allocation.flops
    row = PlanRow(
        run_id=config.run_id,
        study=study.name,
        kind="pretrain",
        parent_run_id="",
        arm=cell.name,
        size=group.size,
        matching=study.matching.value,
        match_group=_group_name(study, group, reference),
        context_match=study.context_match.value,
        branch=0,
        flops_budget=float(budget),
        planned_spent_flops=float(allocation.flops),
        planned_spent_steps=allocation.steps,
        seed=group.seed,
        recipe=cell.hyper.recipe,
        status="",
        reason="",
        **run_columns(study, measure, config, allocation),
        **price.columns(),
    )
    gap = _match_gap(study, measure, group, cell, reference)
    warned = [f"recipe '{study.recipe.name}' is outside its range ({cell.hyper.outside})"] if cell.hyper.outside else []
    warned += [edge] if edge else []
    admitted = admit(row, study.admission, gap=gap, misfit=price.placement.refusal, warned=warned)
    return PlannedRun(row=admitted, config=config)


def _group_name(study: StudyConfig, group: Group, reference: _Cell) -> str:
    """Rows with the same name are matched with each other."""
    name = f"{study.length.value}={format_value(group.length)} {group.size} seed={group.seed}"
    return name if ":" not in reference.name else f"{name} with {reference.name}"


def run_columns(study: StudyConfig, measure: Measure, config: RunConfig, allocation: Allocation) -> dict[str, Any]:
    """The columns that follow from a run's configuration and length, its price apart."""
    return {
        **_parameter_columns(config),
        **_schedule_columns(config, allocation),
        **_content_columns(study, measure, config, allocation),
    }


def with_micro_batch(config: RunConfig, tokens: int) -> RunConfig:
    """The same run in other micro-batches."""
    return dataclasses.replace(config, execution=dataclasses.replace(config.execution, micro_batch_tokens=tokens))


def _parameter_columns(config: RunConfig) -> dict[str, Any]:
    params = parameter_counts(config.model)
    return {
        "num_params": sum(params.values()),
        "num_non_embedding_params": params["encoder"] + params["global"] + params["decoder"],
        **{f"num_params_{name}": count for name, count in params.items()},
    }


def _schedule_columns(config: RunConfig, allocation: Allocation) -> dict[str, Any]:
    units = allocation.batch_sequences * config.data.seq_len_units
    flops = training_flops(config, allocation.counts)
    return {
        "planned_flops": float(allocation.flops),
        **{f"flops_share_{name}": float(part / flops.total) for name, part in flops.by_group.items()},
        "flops_per_step": float(allocation.flops / allocation.sequences * allocation.batch_sequences),
        "flops_convention": "exact",
        "six_nd": six_nd(config.model, allocation.counts.tokens),
        "steps": allocation.steps,
        "seq_len_units": config.data.seq_len_units,
        "batch_sequences": allocation.batch_sequences,
        "final_batch_sequences": allocation.final_batch_sequences,
        "units_per_step": units,
        "batch_units": units,
        "lr": config.optim.lr,
        "warmup_steps": config.optim.warmup_steps,
    }


def _content_columns(study: StudyConfig, measure: Measure, config: RunConfig, allocation: Allocation) -> dict[str, Any]:
    """What the run reads. A pass over the corpus keeps the share of words that stays speech (in expectation)."""
    counts = allocation.counts
    epochs = counts.speech_tokens / measure.unique_speech_tokens
    spoken_share = study.mixture.speech_per_text_words / (1 + study.mixture.speech_per_text_words)
    return {
        "units": float(counts.units),
        "tokens": float(counts.tokens),
        "text_tokens": float(counts.text_tokens),
        "text_only_tokens": float(counts.text_only_tokens),
        "interleaved_tokens": float(counts.interleaved_tokens),
        "speech_tokens": float(counts.speech_tokens),
        "patch_size": 1 if config.model.arm.plain else config.patching.patch_size,
        "mean_patch_length": float(counts.mean_patch_length),
        "tokens_per_param": float(counts.tokens / num_params(config.model)),
        "speech_epochs": float(epochs),
        "corpus_passes": float(epochs / spoken_share),
        "data_id": config.data.data_id,
    }


def _match_gap(study: StudyConfig, measure: Measure, group: Group, cell: _Cell, reference: _Cell) -> MatchGap:
    """The reference is matched to the axis, another row to its reference or the budget."""
    axis = cell is reference
    target = _axis_target(study, measure, group) if axis else _match_target(study, measure, group, reference)
    amount = cell.allocation.amount(target.quantity)
    return MatchGap(
        quantity=target.quantity.value,
        target=amount / target.value - 1,
        reference=amount / reference.allocation.amount(target.quantity) - 1,
        sequences=cell.allocation.sequences,
    )


def _require_distinct(runs: list[PlannedRun]) -> None:
    """Two rows with one id would be one run: two lengths so close that they round to the same steps."""
    seen: dict[str, PlanRow] = {}
    for run in runs:
        twin = seen.setdefault(run.row.run_id, run.row)
        if twin is not run.row:
            raise PlanError(
                f"'{twin.match_group}' and '{run.row.match_group}' of arm '{run.row.arm}' round to the same run; "
                "put the lengths further apart."
            )


def _warnings(study: StudyConfig, measure: Measure, rows: list[PlanRow], outside: dict[str, str], longest: float) -> list[str]:
    warnings = group_warnings(rows) + gap_warnings(rows, study.admission)
    if study.matching is Matching.DATA:
        warnings += modality_warnings(rows, study.admission.warn_match_gap)
    refused = [row for row in rows if not row.admitted]
    if refused:
        warnings.insert(0, f"{len(refused)} of {len(rows)} rows are refused and will not run; the column reason says why.")
    if outside:
        where, detail = next(iter(outside.items()))
        recipe = study.recipe.name
        warnings.append(f"recipe '{recipe}' is used outside its range in {len(outside)} cases, the first is {where}: {detail}.")
    for arm in study.arms:
        if not study.sizes_of(arm):
            warnings.append(
                f"arm '{arm}' has no rows: none of its arm_sizes={list(study.arm_sizes[arm])} is among the sizes; "
                f"give arm_sizes.{arm}=[SIZE,...], or arm_sizes={{}} to plan every arm at every size."
            )
    if Arm.LST_ALIGNED in map(arm_of, study.arms):
        warnings.append(
            "aligned boundaries are made from the future: losses of lst_aligned are conditional and enter no fit with other arms."
        )
    if study.evaluation.story_items and not measure.has_stories:
        warnings.append(
            f"evaluation.story_items={study.evaluation.story_items}, but the data set has no stories: none will be scored."
        )
    if study.evaluation.story_items and study.stories_from > longest:
        warnings.append(f"stories_from={study.stories_from:g} lies above every run's length: no run scores stories.")
    repeated = [row for row in rows if row.speech_epochs > study.admission.warn_speech_epochs]
    if repeated:
        most = max(row.speech_epochs for row in repeated)
        warnings.append(
            f"{len(repeated)} rows repeat the speech more than {study.admission.warn_speech_epochs:g} times, at most {most:.1f}."
        )
    return warnings
