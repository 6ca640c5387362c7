"""The question, the answer in three sentences, and the verdicts, made from the numbers; nothing here is written by hand.

A comparison is decided by its interval alone: above 1 the arm needs fewer FLOPs, below 1 more, and an interval that holds
1 means that these runs cannot tell. Where no multiplier exists, the reason stands instead of a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from reports.laws import Comparison, Estimate, MatchedPairs
from reports.numbers import count, fixed, interval, is_number, level_name, listed, percent, plural, scientific, short
from reports.study import BASELINE, GROUPS, Study, is_conditional

REFERENCES = ("unigram", "trigram")
FEW_PAIRS = 6
"""Below this many pairs even a unanimous sign test has p above 0.05."""
MATCHED = {"flop": "equal training FLOPs", "unit": "equal steps and units", "data": "equal tokens"}


@dataclass(frozen=True, kw_only=True)
class ReferenceVerdict:
    """The best run of an arm at the largest budget against one reference. `margin` > 0: the run's loss is lower (nats)."""

    arm: str
    modality: str
    reference: str
    run_id: str
    loss: float
    reference_loss: float

    @property
    def margin(self) -> float:
        return self.reference_loss - self.loss

    @property
    def beaten(self) -> bool:
        return self.margin > 0


def compared_arms(study: Study) -> list[str]:
    """Arms that are compared with the baseline: not itself, and not those whose loss is conditional on alignments."""
    return [a for a in study.arms if a != BASELINE and not is_conditional(a)]


def matching_of(study: Study) -> str:
    """flop, unit, data, or '' where the plan names none or several."""
    kinds = [k for k in study.plan["matching"].dropna().unique() if k]
    return str(kinds[0]) if len(kinds) == 1 else ""


def matched_name(study: Study) -> str:
    """What is equal inside a match group, in words."""
    return MATCHED.get(matching_of(study), "the plan's matching")


def question(study: Study, target: str) -> str:
    """What the study asks, and with how many runs."""
    arms, matched = compared_arms(study), matched_name(study)
    usable, sizes = study.usable(), study.plan["num_params"].dropna()
    budgets = sorted(study.plan["flops_budget"].dropna().unique())
    span = f"{plural(study.plan['size'].nunique(), 'size')}" + (
        f" from {short(sizes.min())} to {short(sizes.max())} parameters" if len(sizes) else ""
    )
    if budgets:
        ends = scientific(budgets[0]) if len(budgets) == 1 else f"{scientific(budgets[0])} to {scientific(budgets[-1])}"
        span += f" and {plural(len(budgets), 'budget')} of {ends} FLOPs"
    done = f"{len(usable)} of {plural(len(study.plan), 'planned run')} can be used, over {span}."
    if not arms or BASELINE not in study.arms:
        return f"How does the held-out {target} loss of {listed(study.arms)} fall with training FLOPs? {done}"
    verb = "Does" if len(arms) == 1 else "Do"
    return f"{verb} {listed(arms)} reach a lower held-out {target} loss than {BASELINE} at {matched}? {done}"


def answer(study: Study, target: str) -> list[str]:
    """Three sentences: the compute multiplier, the matched pairs, the references."""
    return [multiplier_sentence(study, target), pairs_sentence(study, target), reference_sentence(study)]


def multiplier_sentence(study: Study, target: str) -> str:
    arms = compared_arms(study)
    if BASELINE not in study.arms or not arms:
        return "With one side only there is nothing to compare, so no compute multiplier is estimated."
    clauses = [multiplier_clause(study, target, arm) for arm in arms]
    return f"At {matched_name(study)}, {'; '.join(clauses)}."


def multiplier_clause(study: Study, target: str, arm: str) -> str:
    """One arm's multiplier in words, decided by its interval."""
    found = leading_comparison(study, target, arm)
    if found is None or not is_number(found.multiplier.value):
        return f"these runs cannot tell how many FLOPs {arm} needs for {BASELINE}'s {target} loss ({_why_none(study, found)})"
    m, level = found.multiplier, level_name(found.level)
    value = fixed(2)(m.value)
    if not m.has_interval:
        return (
            f"{arm}'s compute multiplier on the {target} loss is {value}× but has no interval, so these runs "
            "cannot tell whether it differs from 1"
        )
    band = f"{level} interval {interval(m.low, m.high, fixed(2))}"
    where = " where their losses overlap" if found.curve else f" by {found.method}"
    if any("too few sizes" in warning for warning in found.warnings):
        where += ", but it was trained at too few sizes to find its own optimum, so this may understate it"
    where += f" ({plural(len(found.warnings), 'warning')} in section 5)" if found.warnings else ""
    if m.low > 1:
        saved = percent(0)(1 / m.value)
        return f"{arm} reaches {BASELINE}'s {target} loss with {saved} of its FLOPs (compute multiplier {value}×, {band}){where}"
    if m.high < 1:
        return (
            f"{arm} needs {percent(0)(1 / m.value)} of the FLOPs of {BASELINE} for the same {target} loss (compute "
            f"multiplier {value}×, {band}){where}"
        )
    return (
        f"so few small runs cannot tell whether {arm} needs fewer FLOPs than {BASELINE}: its compute multiplier on "
        f"the {target} loss is {value}×, and its {band} holds 1{where}"
    )


def why_no_parabola(study: Study, target: str, arm: str) -> str:
    """Why an arm has no isoFLOP curve: the fit's own reason, as a sentence."""
    if not study.fits.present:
        return "No fits have been made."
    reasons = [w for f in study.fits.arms if (f.arm, f.target) == (arm, target) for w in f.warnings if "isoFLOP" in w]
    reason = reasons[0].removeprefix("no isoFLOP optimum: ") if reasons else "none of its budgets could be fitted."
    reason = reason.replace("below_smallest", "below the smallest size").replace("above_largest", "above the largest size")
    return reason[:1].upper() + reason[1:]


def leading_comparison(study: Study, target: str, arm: str) -> Comparison | None:
    """The comparison that the answer quotes: along the curves if there is one with an estimate, else any."""
    found = [c for c in study.fits.comparisons if (c.arm, c.target, c.baseline) == (arm, target, BASELINE)]
    estimated = [c for c in found if is_number(c.multiplier.value)]
    return next(iter([c for c in estimated if c.curve] + estimated + found), None)


def _why_none(study: Study, comparison: Comparison | None) -> str:
    if not study.fits.present:
        return "no fits have been made"
    if comparison is not None and comparison.warnings:
        return comparison.warnings[0].rstrip(".")
    return "no comparison was fitted: their losses overlap too little, or the runs are too few"


def matched_pairs(study: Study, target: str, arm: str) -> MatchedPairs | None:
    """The arm against the baseline at each match group and size: as fitted, else from the losses alone, without an interval."""
    fitted = next((p for p in study.fits.pairs if (p.arm, p.target) == (arm, target)), None)
    if fitted is not None and fitted.differences:
        return fitted
    final = study.final(target).dropna(subset=["match_group"])
    means = final.groupby(["match_group", "size", "arm"])["loss"].mean().unstack("arm")
    if arm not in means or BASELINE not in means:
        return None
    gaps = (means[arm] - means[BASELINE]).dropna()
    if gaps.empty:
        return None
    mean = Estimate(float(gaps.mean()))
    return MatchedPairs(arm=arm, target=target, differences=tuple(gaps.astype(float)), mean=mean, level=study.fits.level)


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided sign test: the chance of a split of signs at least as uneven, were both arms equally good."""
    number, lower = len(differences), sum(d < 0 for d in differences)
    tail = sum(math.comb(number, k) for k in range(max(lower, number - lower), number + 1))
    return min(1.0, 2 * tail / float(2**number))


def pairs_sentence(study: Study, target: str) -> str:
    """How often the arm has the lower loss among matched runs, by how much, and whether that many pairs can tell."""
    found = [p for arm in compared_arms(study) if (p := matched_pairs(study, target, arm)) is not None]
    if not found:
        return f"No two complete runs of {BASELINE} and another arm are matched, so no pair of losses can be compared."
    return f"Among matched runs of the same size, {'; '.join(_pairs_clause(p) for p in found)}."


def _pairs_clause(pairs: MatchedPairs) -> str:
    nats, number, p = fixed(3), len(pairs.differences), sign_test(pairs.differences)
    lower = sum(d < 0 for d in pairs.differences)
    shown = "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{fixed(3)(p)}"
    if pairs.mean.has_interval:
        holds = pairs.mean.low <= 0 <= pairs.mean.high
        band = f"{level_name(pairs.level)} interval {interval(pairs.mean.low, pairs.mean.high, nats)}"
        verdict = (
            "holds 0: too few or too noisy to tell" if holds else "excludes 0, though the pairs are few" * (number < FEW_PAIRS)
        )
        spread = f"{band}, which {verdict or 'excludes 0'}"
    else:
        spread = f"from {nats(min(pairs.differences))} to {nats(max(pairs.differences))}, no interval"
    return (
        f"{pairs.arm} has the lower {pairs.target} loss in {lower} of {plural(number, 'pair')} (mean difference "
        f"{nats(pairs.mean.value)} nats, "
        f"{spread}; sign test {shown})"
    )


def reference_verdicts(study: Study) -> list[ReferenceVerdict]:
    """For each modality and reference, the best run of each arm at its largest budget."""
    verdicts = []
    for modality in ("speech", "text"):
        final = study.final(modality)
        final = final[~final["arm"].map(is_conditional).astype(bool)]
        if final.empty:
            continue
        largest = final[final["flops_budget"].fillna(final["flops"]) >= 0.99 * final["flops_budget"].fillna(final["flops"]).max()]
        for reference in REFERENCES:
            value = study.references.get(modality, {}).get(reference)
            for arm in study.arms:
                rows = largest[largest["arm"] == arm]
                if value is None or rows.empty:
                    continue
                best = rows.loc[rows["loss"].idxmin()]
                verdicts.append(
                    ReferenceVerdict(
                        arm=arm,
                        modality=modality,
                        reference=reference,
                        run_id=str(best["run_id"]),
                        loss=float(best["loss"]),
                        reference_loss=value,
                    )
                )
    return verdicts


def reference_sentence(study: Study) -> str:
    """Whether the largest runs beat each reference in each modality, in one sentence."""
    verdicts = reference_verdicts(study)
    if not verdicts:
        return (
            "Whether the largest runs beat a unigram or trigram model is not known, as references or held-out losses are missing."
        )
    clauses = []
    for modality in dict.fromkeys(v.modality for v in verdicts):
        here = [v for v in verdicts if v.modality == modality]
        parts = [_reference_part([v for v in here if v.reference == name]) for name in dict.fromkeys(v.reference for v in here)]
        items = study.references[modality].get("n_items")
        clauses.append(f"in {modality}{f' ({count(items)} held-out tokens)' if items else ''} {listed(parts)}")
    return f"At the largest budget, judged by the best run of each arm, {'; '.join(clauses)}."


def _reference_part(verdicts: list[ReferenceVerdict]) -> str:
    """One reference in one modality: who beats it, and by how much."""
    won, lost = [v for v in verdicts if v.beaten], [v for v in verdicts if not v.beaten]
    nats, name = fixed(2), f"the {verdicts[0].reference} reference is"
    if not lost:
        who = "every arm" if len(won) > 1 else won[0].arm
        return f"{name} beaten by {who} (by {nats(min(v.margin for v in won))} nats{' or more' if len(won) > 1 else ''})"
    if not won:
        return f"{name} beaten by none (the nearest stays {nats(min(-v.margin for v in lost))} nats above it)"
    return f"{name} beaten by {listed([v.arm for v in won])} but not by {listed([v.arm for v in lost], last='or')}"


def curves_sentence(study: Study) -> str:
    """What the figure of training curves can't show."""
    known, drawn = set(study.plan["run_id"]), set(study.curves["run_id"])
    return f"{len(known & drawn)} of {plural(len(known), 'planned run')} have training records."


def shares_sentence(shares: pd.DataFrame, what: str) -> str:
    """What lies outside the global transformer in each arm's smallest and largest size, and whether that dominates."""
    sentences = []
    for arm, rows in shares.groupby("arm", sort=False):
        ends = [rows.iloc[0]] if len(rows) == 1 else [rows.iloc[0], rows.iloc[-1]]
        first = ends[0]
        modules = ["head"] + ["local modules"] * bool(first["encoder"] + first["decoder"] > 0)
        modules += ["embedding"] * bool(first["embedding"] > 0)
        several = len(modules) > 1
        who = listed(modules).capitalize() if several else "The head"
        ruling = f"dominate{'' if several else 's'}" if first["global"] < 0.5 else f"do{'' if several else 'es'} not dominate"
        said = listed([f"{percent(0)(1 - row['global'])} at {row['size']} ({_shares_outside(row)})" for row in ends])
        sentences.append(f"{who} {ruling} {arm}'s smallest model: outside the global transformer lie {said} of its {what}.")
    return " ".join(sentences)


def _shares_outside(row: pd.Series) -> str:
    return listed([f"{group} {percent(0)(row[group])}" for group in GROUPS if group != "global" and row[group] >= 0.005])


def seed_spread(study: Study, target: str) -> float:
    """The largest held-out loss difference between seeds of one cell, or not-a-number with one seed each."""
    final = study.final(target)
    spread = (
        final.groupby(["arm", "size", "flops_budget"])["loss"]
        .agg(lambda v: v.max() - v.min() if len(v) > 1 else math.nan)
        .dropna()
    )
    return float(spread.max()) if len(spread) else math.nan
