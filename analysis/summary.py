"""fits.json in a few lines for the terminal: which N, D and C, then each arm, each comparison, each accuracy. Fits nothing."""

from __future__ import annotations

from typing import Any


def study_summary(content: dict[str, Any]) -> str:
    """The study's fits in a few lines each; fits.json has the rest."""
    kinds = {(f["n_kind"], f["d_kind"], f["flops_convention"], ", ".join(f["matching"])) for f in content["fits"]}
    lines = [
        f"N = {n}, D = {d}, FLOPs {convention}, matching: {matching or 'unknown'}" for n, d, convention, matching in sorted(kinds)
    ]
    for entry in content["fits"]:
        lines.append(f"{entry['arm']}, {entry['target']}{' (conditional)' if entry['conditional'] else ''}")
        if (surface := entry["loss_surface"]) is not None:
            lines.append("  L(N, D): " + ", ".join(_ranged(surface, name) for name in ("E", "alpha", "beta")))
        if (isoflop := entry["isoflop"]) is not None:
            inside = sum(p["status"] == "interior" for p in isoflop["profiles"])
            law = isoflop["optimal_params"]
            lines.append(
                f"  isoFLOP: {inside} of {len(isoflop['profiles'])} budgets have an interior minimum"
                + (f"; N* ~ C^{_ranged(law, 'exponent', bare=True)}" if law else "")
            )
        if (out := entry["held_out"]) is not None:
            lines.append(
                f"  held out: {out['flops_budget']:.3g} FLOPs, {out['times_the_next']:.3g} times the next; ln loss off by "
                f"{out['mean_error']:+.2g} (rms {out['root_mean_square_error']:.2g}); "
                f"{_share(out['covered'])} of {len(out['runs'])} runs covered"
            )
        lines += [f"  ! {w}" for w in dict.fromkeys([*entry["warnings"], *(surface or {}).get("warnings", ())])]
    for entry in content["comparisons"]:
        lines.append(f"{entry['arm']} against {entry['baseline']}, {entry['target']}")
        if (curve := entry["curve"]) is not None:
            low, high = curve["overlap"]
            lines.append(
                f"  compute multiplier {_band(curve['mean'], curve['mean_interval'])} over losses {low:.4g} to {high:.4g}"
            )
        if (shared := entry["shared"]) is not None:
            arm = entry["arm"]
            band = _band(shared["efficiencies"][arm].get("compute"), shared["intervals"][arm].get("compute"))
            lines.append(f"  with shared exponents {band}")
            lines += [f"    ! {w}" for w in shared["warnings"]]
        if (test := entry["exponents"]) is not None:
            told = "differ" if test["p"] < 0.05 else "may be shared"
            lines.append(f"  exponents {told}: F {test['f']:.3g}, p {test['p']:.2g}")
        if (curve or {}).get("slope_interval"):
            lines.append(
                f"  gain against scale, d ln multiplier / d ln C: {_band(curve['slope'], curve['slope_interval'], '+.3g', '')}"
            )
        if (pairs := entry["matched"]) is not None:
            lines.append(
                f"  {pairs['n']} matched pairs: mean loss difference {_band(pairs['mean'], pairs['interval'], '+.4f', ' nats')}"
            )
        lines += [f"  ! {w}" for w in dict.fromkeys([*entry["warnings"], *(curve or {}).get("warnings", ())])]
    lines += [line for entry in content["accuracy_laws"] for line in _told_law(entry)]
    lines += [line for entry in content["accuracy_comparisons"] for line in _told_accuracy(entry)]
    return "\n".join([*lines, *(f"! {w}" for w in content["warnings"])])


def _told_law(entry: dict[str, Any]) -> list[str]:
    """A line for each sigmoid of an arm, task and direction."""
    named, lines = f"{entry['arm']}, {entry['task']} {entry['direction']}: accuracy of", []
    of = {f"the {entry['loss_target']} loss": entry["of_loss"], f"ln C ({entry['flops_convention']})": entry["of_flops"]}
    for x, law in of.items():
        if law is not None:
            lines.append(f"{named} {x}: midpoint {_band(law['law']['midpoint'], law['intervals'].get('midpoint'), '.4g', '')}")
    return lines


def _told_accuracy(entry: dict[str, Any]) -> list[str]:
    """An arm's accuracy against the baseline's: by compute, and item by item."""
    named, lines = f"{entry['arm']} against {entry['baseline']}, {entry['task']} {entry['direction']}", []
    if (curve := entry["curve"]) is not None:
        lines.append(f"{named}: compute multiplier in accuracy {_band(curve['mean'], curve['mean_interval'])}")
    if (items := entry["items"]) is not None:
        gap = _band(items["difference"], items["interval"], "+.3f", "")
        lines.append(f"{named}: {items['pairs']} matched pairs on {items['n_items']:,} items, accuracy {gap}")
    return lines


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _ranged(fit: dict[str, Any], name: str, *, bare: bool = False) -> str:
    band = _band(fit[name], fit["intervals"].get(name), ".4g", "")
    return band if bare else f"{name} {band}"


def _band(value: float | None, interval: list[float] | None, form: str = ".3g", unit: str = "x") -> str:
    """A number with its interval, as 1.29x [1.18, 1.4]."""
    if value is None:
        return "not determined"
    ends = "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
    return f"{value:{form}}{unit}{ends}"
