"""The page's sections: which figure, table and sentence stands where, and what is said where something is missing.

Each function takes what was read and gives one section; nothing is drawn or written to disk here. A caption states what is
shown, what was matched, and at which nominal level the intervals are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports import accuracy, answer, diagnostics, figures, fit_tables, item_pairs, tables
from reports.blocks import Block, Section, figure_block, gap, matched_words, paragraph, table_block
from reports.numbers import fixed, is_number, level_name, listed, percent, plural, scientific, text
from reports.stories import StoryScore
from reports.study import BASELINE, STORY_PREFIX, Study, is_conditional

EMBEDDED_LIMITS = (
    "The speech is synthetic: a few text-to-speech voices reading public-domain books.",
    "The speech tokens are k-means units of an English speech-recognition encoder, not HuBERT's.",
    "None of these numbers may be compared with the paper's: data, tokens, sizes and budgets are others, by orders of magnitude.",
    "Story completion is this corpus's own task, made from held-out books; it is no published benchmark.",
)
LATER_COMMANDS = (
    "submit-sweep submit DIR cluster=local",
    "fit-scaling collect DIR",
    "fit-scaling fit DIR",
    "scaling-report DIR",
)
STUDY_LIMITS = (
    "Laws are fitted inside the trained range; nothing here is extrapolated beyond it.",
    "Intervals come from resampling the runs; they do not hold what a wrong law or an untuned learning rate would add.",
)


def all_sections(study: Study, target: str, scores: Sequence[StoryScore]) -> Iterator[Section]:
    """The page from top to bottom, each section as it is made."""
    yield matched_section(study)
    yield isoflop_section(study, target)
    yield loss_section(study)
    yield stories_section(study, scores)
    yield multiplier_section(study, target)
    yield accuracy.section(study, scores)
    yield residuals_section(study, target)
    yield curves_section(study)
    yield shares_section(study)
    yield plan_section(study)
    yield fits_section(study)
    yield assumptions_section(study)
    yield reproduce_section(study)


SECTIONS = 13
"""How many `all_sections` gives."""


def is_embedded(study: Study) -> bool:
    """Whether the study was planned on the embedded corpus."""
    data = study.config.get("data")
    path = data.get("path") if isinstance(data, dict) else data
    return str(path) == "embedded"


def matched_section(study: Study) -> Section:
    table = tables.matching_table(study)
    gaps = [abs(row["widest_gap"]) for row in table.rows if is_number(row["widest_gap"])]
    conventions = [c for c in study.plan["flops_convention"].dropna().unique() if c]
    contexts = [c for c in study.plan["context_match"].dropna().unique() if c]
    matching, said = answer.matching_of(study), []
    if matching in answer.MATCHED:
        others = [words for kind, words in answer.MATCHED.items() if kind != matching]
        said.append(
            f"Runs of one match group have {answer.MATCHED[matching]}; {listed(others)} are not kept, and differ as "
            "the table shows."
        )
    if gaps:
        said.append(f"The widest FLOPs gap between a run and the {BASELINE} run of its match group is {percent(2)(max(gaps))}.")
    if conventions:
        said.append(
            f"FLOPs are counted by the convention '{listed([str(c) for c in conventions])}' (docs/flops.md), local "
            "modules and head included."
        )
    if contexts:
        said.append(
            f"Sequences are equal in {listed([str(c) for c in contexts])}"
            + "; a patched arm sees more tokens in one." * ("units" in contexts)
            + "." * ("units" not in contexts)
        )
    blocks = [paragraph(" ".join(said))] if said else []
    if matching not in answer.MATCHED:
        blocks.append(gap("The plan names no single matching, so what is equal between arms is not known."))
    blocks.append(table_block(table, "The plan has no run to compare."))
    return Section(anchor="matched", title="What was matched and what was not", blocks=tuple(blocks))


def isoflop_section(study: Study, target: str) -> Section:
    panels = figures.isoflop_panels(study, target)
    drawn = [a for a in study.arms if figures.sizes_per_budget(study.final(target), a) >= 2]
    single = [a for a in study.arms if a not in drawn and a in set(study.final(target)["arm"])]
    fitted = [f for f in study.fits.arms if f.target == target and f.isoflop is not None]
    levels = {level_name(f.isoflop.level) for f in fitted if f.isoflop}
    lines = "Points are runs at their last held-out evaluation."
    if fitted:
        curvature = {f.isoflop.curvature.replace("_", " ") for f in fitted if f.isoflop}
        shapes = sorted({f"{f.isoflop.shape}s" for f in fitted if f.isoflop})
        lines += (
            f" Curves are {listed(shapes)} in ln N ({listed(sorted(curvature))} curvature); stars are minima inside the "
            f"trained sizes with {listed(sorted(levels))} bootstrap intervals in both directions."
        )
    caption = (
        f"Held-out {target} loss against model size at each budget, a panel an arm, on one vertical scale. "
        f"{lines} {matched_words(study)}"
    )
    blocks = [
        figure_block(
            panels,
            caption,
            f"No arm has two complete sizes at one budget, so there is no isoFLOP curve of the {target} loss.",
            "losses",
        )
    ]
    for arm in drawn:
        if panels and arm not in {f.arm for f in fitted}:
            blocks.append(gap(f"{arm}: no parabola, so its points stand alone. {answer.why_no_parabola(study, target, arm)}"))
    outside = [
        f"{f.arm} at {scientific(p.budget)} FLOPs ({p.status.replace('_', ' ')})"
        for f in fitted
        for p in f.profiles()
        if not p.inside
    ]
    if outside:
        blocks.append(
            paragraph(
                f"No minimum inside the trained sizes: {listed(outside)}; the optimum there is not known, only on "
                "which side it lies."
            )
        )
    if single and panels:
        blocks.append(paragraph(f"{listed(single)}: one size a budget, so no isoFLOP curve; the runs stand in the next figure."))
    return Section(anchor="isoflop", title="IsoFLOP curves", blocks=tuple(blocks))


def loss_section(study: Study) -> Section:
    panels = figures.loss_panels(study)
    levels = sorted({level_name(f.isoflop.level) for f in study.fits.arms if f.isoflop})
    band = f" Bands and bars are {listed(levels)} bootstrap intervals of the minima." if levels else ""
    caption = (
        "Held-out loss against training FLOPs by arm, for the training mixture (joint) and by modality. Pale points are runs. "
        "Full points are isoFLOP minima or, where no minimum lies inside the trained sizes, the best run of each budget, as the "
        "legend says. "
        "Lines are the fitted L(C); where none could be fitted, full points are joined."
        f"{band} Grey lines: n-gram models counted on the training split and scored on the same held-out tokens. "
        f"{matched_words(study)}"
    )
    blocks = [
        figure_block(panels, caption, "No held-out loss has been collected.", "losses", "references", lead=len(panels) % 2 == 1)
    ]
    verdicts = answer.reference_verdicts(study)
    blocks.append(paragraph(answer.reference_sentence(study)))
    if verdicts:
        blocks.append(Block(kind="table", table=fit_tables.references_table(verdicts)))
    conditional = [a for a in study.arms if is_conditional(a)]
    if conditional:
        blocks.append(
            paragraph(
                f"The loss of {listed(conditional)} is conditional on alignments made from the future; it is shown "
                "but compared with nothing."
            )
        )
    blocks.append(table_block(tables.losses_table(study), "No complete run has a held-out loss."))
    return Section(anchor="loss", title="Loss against FLOPs", blocks=tuple(blocks))


def _stories_title(scores: Sequence[StoryScore]) -> str:
    return "Story completion" if all(s.task.startswith(STORY_PREFIX) for s in scores) else "Story completion and item sets"


def stories_section(study: Study, scores: Sequence[StoryScore]) -> Section:
    caption = (
        f"Accuracy of final checkpoints with {level_name(study.fits.level)} binomial intervals "
        "(Wilson); the dashed line is chance. Where "
        "arms share a place on the axis, points are moved apart sideways. Endings are ranked by log-likelihood per token."
    )
    blocks = [figure_block(figures.story_panels(scores), caption, "No story-completion item has been scored.", "stories")]
    if scores:
        above = [s for s in scores if s.low > s.chance]
        blocks.append(
            paragraph(
                f"{len(above)} of {plural(len(scores), 'score')} have an interval above chance. At this level about "
                "one interval in "
                f"{round(2 / (1 - study.fits.level))} lies above chance by luck alone."
            )
        )
        blocks.append(Block(kind="table", table=tables.stories_table(scores)))
    if (pairs := item_pairs.table(study)).rows:
        blocks += [paragraph(item_pairs.sentence(study)), Block(kind="table", table=pairs)]
    return Section(anchor="stories", title=_stories_title(scores), blocks=tuple(blocks))


def multiplier_section(study: Study, target: str) -> Section:
    found = study.fits.comparisons
    levels = listed(sorted({level_name(c.level) for c in found}))
    caption = (
        f"Compute multiplier: FLOPs that {BASELINE} needs for an arm's loss, over the arm's FLOPs, only inside the "
        "overlap of losses that both "
        f"reach; above 1 the arm needs fewer. Bands and bars are {levels} bootstrap intervals. {matched_words(study)}"
    )
    otherwise = "No compute multiplier: " + (
        "fits.json is missing." if not study.fits.present else "no two arms have fitted losses that overlap."
    )
    blocks = [
        figure_block(figures.multiplier_panels(found, target, figures.flops_label(study)), caption, otherwise, "multipliers")
    ]
    if any(c.method == "shared exponents" for c in found):
        blocks.append(
            paragraph(
                "Separate curves for each arm are free and noisy; shared exponents (one E, α and β, an efficiency an "
                "arm) are steadier and assume more. Both are shown."
            )
        )
    if found:
        blocks.append(Block(kind="table", table=fit_tables.comparisons_table(found)))
    return Section(anchor="multiplier", title="Compute multiplier", blocks=tuple(blocks))


def residuals_section(study: Study, target: str) -> Section:
    caption = (
        f"What the loss surfaces of the {target} loss leave over: ln(measured) − ln(fitted), in per cent. A "
        "trend is what the law does not hold."
    )
    otherwise = "No loss surface has been fitted, so there are no residuals."
    block = figure_block(diagnostics.residual_panels(study, target), caption, otherwise, "residuals")
    table = fit_tables.residuals_table(diagnostics.residual_table(study, target))
    blocks = [block, *([Block(kind="table", table=table)] if table.rows else [])]
    return Section(anchor="residuals", title="Residuals of the loss surfaces", blocks=tuple(blocks))


def curves_section(study: Study) -> Section:
    caption = (
        "Training loss against FLOPs spent, a panel an arm, a colour a size, every run with records, complete or not (pale: "
        "means over short stretches, strong: over longer ones); "
        f"the first {percent(0)(diagnostics.FIRST_SHARE)} of each run's FLOPs are left out."
    )
    blocks = [figure_block(diagnostics.curve_panels(study), caption, "No training records have been collected.")]
    if len(study.curves):
        blocks.append(paragraph(answer.curves_sentence(study)))
    return Section(anchor="curves", title="Training curves", blocks=tuple(blocks))


def shares_section(study: Study) -> Section:
    kind = "flops_share" if len(diagnostics.group_shares(study.plan, "flops_share")) else "num_params"
    what = "planned training FLOPs" if kind == "flops_share" else "parameters"
    panels = diagnostics.share_panels(study, kind)
    caption = (
        f"Share of {what} by module group, means over the budgets of each arm and size, sizes growing "
        "downwards. The embedding is a look-up and costs no FLOPs."
    )
    blocks = (
        []
        if kind == "flops_share"
        else [gap("The plan has no FLOP shares by module group; shares of parameters stand in their place.")]
    )
    blocks.append(figure_block(panels, caption, "The plan has no counts by module group.", "shares"))
    if panels:
        blocks.append(paragraph(answer.shares_sentence(diagnostics.group_shares(study.plan, kind), what)))
        blocks.append(Block(kind="table", table=tables.shares_table(study, kind)))
    title = "FLOPs by module group" if kind == "flops_share" else "Parameters by module group"
    return Section(anchor="shares", title=title, blocks=tuple(blocks))


def plan_section(study: Study) -> Section:
    states = study.runs["state"].value_counts(sort=False)
    counted = [f"{number} {str(state).replace('_', ' ')}" for state, number in sorted(states.items())]
    excluded = int((study.runs["state"] == "done").sum()) - len(study.usable())
    kept = f"{excluded} of the done runs excluded" if excluded else "no done run is excluded"
    said = f"{plural(len(study.plan), 'run')}: {listed(counted)}; {kept} from figures and fits."
    blocks = [paragraph(said), Block(kind="table", table=tables.plan_table(study))]
    left_out = tables.states_table(study)
    blocks.append(table_block(left_out, "")) if left_out.rows else blocks.append(paragraph("No run is left out."))
    return Section(anchor="plan", title="The plan and its runs", blocks=tuple(blocks))


def fits_section(study: Study) -> Section:
    table = fit_tables.fits_table(study.fits.arms)
    blocks = [table_block(table, "No loss surface has been fitted.")]
    warnings = _grouped_warnings(study)
    if warnings:
        blocks += [paragraph("Further warnings:"), Block(kind="list", lines=tuple(warnings))]
    minima = fit_tables.minima_table(study.fits.arms)
    if minima.rows:
        blocks.append(Block(kind="table", table=minima))
    return Section(anchor="fits", title="Fits", blocks=tuple(blocks))


def _grouped_warnings(study: Study) -> list[str]:
    """Warnings of the fits that have no row of their own, each said once with the arms and targets that it is about."""
    about: dict[str, dict[str, list[str]]] = {}
    for fit in study.fits.arms:
        found = list(fit.warnings if fit.surface is None else ())
        found += [f"isoFLOP: {w}" for w in (fit.isoflop.warnings if fit.isoflop else ())]
        found += [f"L(C): {w}" for w in (fit.curve.warnings if fit.curve else ())]
        for warning in found:
            about.setdefault(warning, {}).setdefault(fit.arm, []).append(fit.target)
    said = [f"{w.rstrip('.')}: {'; '.join(f'{arm} ({listed(t)})' for arm, t in of.items())}." for w, of in about.items()]
    return said + list(study.fits.warnings)


def assumptions_section(study: Study) -> Section:
    seeds = study.plan["seed"].dropna().nunique()
    limits = list(EMBEDDED_LIMITS if is_embedded(study) else ())
    notes = study.config.get("notes")
    limits += [str(note) for note in notes] if isinstance(notes, list) else []
    spread = answer.seed_spread(study, "mixture")
    if is_number(spread):
        limits.append(f"The largest difference between seeds of one cell is {fixed(3)(spread)} nats of mixture loss.")
    elif seeds <= 1:
        limits.append("One seed a run: how much of a difference is seed noise has not been measured.")
    blocks = [Block(kind="table", table=tables.assumptions_table()), Block(kind="list", lines=(*limits, *STUDY_LIMITS))]
    return Section(anchor="limits", title="Assumptions and honest limits", blocks=tuple(blocks))


def reproduce_section(study: Study) -> Section:
    def values(column: str) -> str:
        seen = sorted(study.plan[column].dropna().unique())
        return ", ".join(str(int(v)) if isinstance(v, float) else str(v) for v in seen) or text(None)

    data = study.config.get("data")
    pairs = [
        ("study", study.name),
        ("data set", text(data if not isinstance(data, dict) else data.get("path"))),
        ("data_id", values("data_id")),
    ]
    pairs += [("seeds", values("seed")), ("recipe", values("recipe"))]
    about = study.config.get("data_about")
    pairs += [(f"data: {key}", _card_value(value)) for key, value in about.items()] if isinstance(about, dict) else []
    pairs += [(f"{package} (training)", ", ".join(versions)) for package, versions in study.versions.items()]
    blocks = [Block(kind="facts", pairs=tuple(pairs))]
    if not study.versions:
        blocks.append(gap("No run has left an exit record, so the versions it was trained with are not known."))
    commands = (f"plan-sweep study={study.name} out=DIR", *LATER_COMMANDS)
    blocks.append(Block(kind="commands", text="\n".join(commands)))
    overridden = (
        "If the plan was made with overrides, they stand in study.yaml of the study's folder; each run's "
        "frozen configuration is in runs/RUN_ID/run.yaml."
    )
    blocks.append(paragraph(overridden))
    return Section(anchor="reproduce", title="Versions and how to reproduce", blocks=tuple(blocks))


def _card_value(value: object) -> str:
    """A value of the data set's card on one line."""
    if isinstance(value, dict):
        return "; ".join(f"{k}: {_card_value(v)}" for k, v in value.items())
    return ", ".join(_card_value(v) for v in value) if isinstance(value, list | tuple) else text(value)
