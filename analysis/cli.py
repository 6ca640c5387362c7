"""`fit-scaling`: collect a study's records, fit its laws, show its runs in MLflow.

    fit-scaling collect DIR                       # results.csv, runs.csv, attempts.csv, curves.parquet, items.parquet
    fit-scaling fit DIR resamples=2000 n=global   # fits.json (collects first where DIR has runs)
    fit-scaling fit --table FILE.csv --json       # any table with columns num_params, tokens, loss
    fit-scaling power DIR multiplier=1.1          # power.json: what the plan would tell, against its cost
    fit-scaling sync DIR                          # DIR/mlflow.db
    fit-scaling import SOURCE out=DIR loss=COLUMN # a study from a CSV table, a W&B export or an MLflow store

Options are key=value (docs/fitting.md): n, d, baseline, loss, delta, curvature, method, resamples, level, seed; power has
law, multiplier, seed_noise, evaluation_noise, simulations, extra_seeds beside them.
Exit status: 0 done, 1 the work failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lst.command import ended, sigterm_raises
from lst.errors import FitError, did_you_mean

if TYPE_CHECKING:
    from analysis.power import PowerOptions
    from analysis.study import FitOptions

Options = TypeVar("Options", "FitOptions", "PowerOptions")
VERBS = ("collect", "fit", "power", "sync", "import")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status."""
    return ended("fit-scaling", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = _parse(list(sys.argv[1:] if argv is None else argv))
    return {"collect": _collect, "fit": _fit, "power": _power, "sync": _sync, "import": _import}[options.verb](options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="fit-scaling", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", metavar=f"{{{','.join(VERBS)}}}")
    collect = verbs.add_parser("collect", help="the runs' records as tables", description="Write the tables of docs/columns.md.")
    fit = verbs.add_parser(
        "fit", help="scaling laws of a study or of any table", description="Write DIR/fits.json, or fit --table."
    )
    power = verbs.add_parser(
        "power", help="interval widths that the plan will have", description="Simulate the plan's study; write DIR/power.json."
    )
    sync = verbs.add_parser(
        "sync", help="bring DIR/mlflow.db up to date", description="Write DIR/mlflow.db from the runs' records."
    )
    bring = verbs.add_parser(
        "import",
        help="a study from a CSV table, a W&B export or an MLflow store",
        description="Write the tables of docs/columns.md to DIR. What the map may name: docs/importing.md.",
    )
    bring.add_argument("source", type=Path, metavar="SOURCE", help="FILE.csv, an MLflow database (FILE.db) or a folder mlruns")
    bring.add_argument(
        "words", nargs="+", metavar="out=DIR key=COLUMN", help="the new folder, and where our columns stand in the source"
    )
    for verb in (collect, sync):
        verb.add_argument("dir", type=Path, metavar="DIR", help="folder of the planned study")
    fit.add_argument("words", nargs="*", metavar="DIR key=value", help="the study's folder (none with --table), and options")
    fit.add_argument(
        "--table", type=Path, metavar="FILE.csv", help="fit L(N, D) to a table with columns num_params, tokens, loss"
    )
    power.add_argument("words", nargs="+", metavar="DIR key=value", help="the study's folder, and options")
    for verb in (fit, power):
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.verb is None:
        parser.error(f"name what to do: {', '.join(VERBS)}")
    return options


def _progress(what: str) -> tuple[Callable[[int, int], None], Any]:
    """A bar on the terminal (none where the output is no terminal), and what closes it."""
    from tqdm import tqdm

    bar: Any = tqdm(desc=what, unit="", disable=None, leave=False, delay=1, file=sys.stderr)

    def told(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return told, bar


def _collect(options: argparse.Namespace) -> int:
    runs = _collect_into(options.dir)
    used = runs["excluded"].fillna("").eq("")
    counts = ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().items())
    print(f"{len(runs):,} runs ({counts}); {int(used.sum()):,} enter fits. Tables: {options.dir}")
    reasons = runs.loc[~used, "excluded"].value_counts()
    for reason, count in reasons.items():
        print(f"  left out, {count} x {reason}")
    return 0


def _collect_into(folder: Path) -> Any:
    from analysis.collect import collect_into
    from analysis.processes import processors

    told, bar = _progress("collecting")
    with bar, sigterm_raises():
        runs, notes = collect_into(folder, processes=processors(), progress=told)
    for note in notes:
        print(f"fit-scaling: {note}", file=sys.stderr)
    return runs


def _fit(options: argparse.Namespace) -> int:
    from analysis.study import FitOptions

    folders, overrides = _split(options.words)
    choices = _choices(overrides, FitOptions)
    if options.table is not None:
        if folders:
            raise FitError(f"'{folders[0]}' and --table {options.table} were both given; fit a study or a table, not both.")
        return _fit_table(options.table, choices, options.json)
    if len(folders) != 1:
        raise FitError(f"{len(folders)} folders were given; write: fit-scaling fit DIR, or: fit-scaling fit --table FILE.csv")
    return _fit_study(Path(folders[0]), choices, options.json)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Folders, and key=value options."""
    folders = [word for word in words if "=" not in word or Path(word).is_dir()]
    return folders, [word for word in words if word not in folders]


def _power(options: argparse.Namespace) -> int:
    from analysis.power import POWER, PowerOptions, study_power, write_power

    folders, overrides = _split(options.words)
    choices = _choices(overrides, PowerOptions)
    if len(folders) != 1:
        raise FitError(f"{len(folders)} folders were given; write: fit-scaling power DIR key=value")
    folder = Path(folders[0])
    told, bar = _progress("simulating")
    with bar:
        content = study_power(folder, choices, progress=told)
    write_power(folder, content)
    print(_json(content) if options.json else f"{power_table(content)}\nwritten: {folder / POWER}")
    return 0


def power_table(content: dict[str, Any]) -> str:
    """Widths against cost, a design a line: exponents as high - low, ratios as high / low."""
    law, noise = content["law"], content["noise"]
    names = list(content["designs"][0]["quantities"])
    lines = [
        f"assumed: {law['source']}; multipliers " + ", ".join(f"{arm} {e:.3g}" for arm, e in law["multipliers"].items()),
        f"noise of ln loss: seeds {noise['seed']:.2g}, evaluation {noise['evaluation']:.2g}; "
        f"{content['options']['level']:.0%} widths",
        f"{'design':<28}{'runs':>6}{'FLOPs':>10}  " + "  ".join(names),
    ]
    for design in content["designs"]:
        widths = [design["quantities"].get(name, {}).get("width") for name in names]
        shown = ["-" if w is None else f"{w:.3g}" for w in widths]
        told = design["refused"] or "  ".join(f"{w:>{len(name)}}" for w, name in zip(shown, names, strict=True))
        lines.append(f"{design['name']:<28}{design['runs']:>6}{design['cost_flops']:>10.3g}  {told}")
    return "\n".join([*lines, *(f"! {w}" for w in content["warnings"])])


def _choices(overrides: list[str], kind: type[Options]) -> Options:
    """Options from key=value texts. Raises FitError on an unknown key or a value of another type."""
    import dataclasses

    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise FitError(
            f"the options {' '.join(overrides)} cannot be read ({str(error).splitlines()[0]}); write key=value."
        ) from error
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    chosen: dict[str, Any] = {}
    for key, value in (values if isinstance(values, dict) else {}).items():
        name = str(key)
        if name not in defaults:
            raise FitError(f"unknown option '{name}'; {did_you_mean(name, defaults)}")
        wanted = type(defaults[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise FitError(f"{name}={value} must be of type {wanted.__name__}, as the default {defaults[name]}.")
        chosen[name] = value
    found = kind(**chosen)
    found.validate()
    return found


def _fit_table(path: Path, choices: FitOptions, as_json: bool) -> int:
    import numpy as np

    from analysis.csv_tables import read_csv
    from analysis.fit import fit_loss_surface

    try:
        table = read_csv(path)
        if "arm" in table.columns:  # one may be called NA
            table["arm"] = read_csv(path, dtype=str, keep_default_na=False)["arm"]
    except FileNotFoundError as error:
        raise FitError(f"table '{path}' does not exist; give a CSV file with columns num_params, tokens, loss.") from error
    if "arm" in table.columns and (arms := table["arm"].astype(str).unique()).size > 1:
        raise FitError(
            f"'{path}' has {len(arms)} arms ({', '.join(sorted(arms))}) and L(N, D) is one arm's: give the rows of one, or make "
            f"a study of it, which compares them: fit-scaling import {path} out=DIR arm=arm and so on (docs/importing.md)."
        )
    fit = fit_loss_surface(
        choices.prepared(table),
        **choices.columns,
        objective=choices.loss,
        delta=choices.delta,
        **choices.bootstrap,
        rng=np.random.default_rng(choices.seed),
    )
    print(_json({"loss_surface": fit.to_json(samples=False)}) if as_json else fit)
    return 0


def _fit_study(folder: Path, choices: FitOptions, as_json: bool) -> int:
    from analysis.study import FITS, fit_study, write_fits
    from analysis.summary import study_summary

    if (folder / "runs").is_dir():
        _collect_into(folder)
    told, bar = _progress("fitting")
    with bar:
        content = fit_study(folder, choices, progress=told)
    write_fits(folder, content)
    print(_json(content) if as_json else f"{study_summary(content)}\nwritten: {folder / FITS}")
    return 0


def _json(content: dict[str, Any]) -> str:
    import json

    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False)


def _sync(options: argparse.Namespace) -> int:
    from analysis.tracking import STORE, sync

    told, bar = _progress("syncing")
    with bar:
        done = sync(options.dir, progress=told)
    counts = f"{done.runs:,} runs ({done.created:,} new, {done.updated:,} updated), {done.metrics:,} metric values added"
    print(f"{options.dir / STORE}: {counts}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from analysis.importing import import_runs

    words = dict(word.partition("=")[::2] for word in options.words if word.partition("=")[2])
    if len(words) != len(options.words):
        raise FitError(
            f"{' '.join(options.words)} is not all key=value with every key once; write out=DIR loss=COLUMN and so on."
        )
    if "out" not in words:
        raise FitError("no out=DIR was given; name the new folder.")
    out, experiment = Path(words.pop("out")), words.pop("experiment", "")
    done = import_runs(options.source, out, words, experiment=experiment)
    for note in done.notes:
        print(f"fit-scaling: {note}", file=sys.stderr)
    left_out = done.runs["excluded"].fillna("").ne("")
    print(f"{len(done.runs):,} runs, {int((~left_out).sum()):,} enter fits. Next: fit-scaling fit {out}")
    for reason, count in done.runs.loc[left_out, "excluded"].value_counts().items():
        print(f"  left out, {count} x {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
