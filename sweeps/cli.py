"""`plan-sweep`: from a study's name to a folder of matched, priced runs.

    plan-sweep study=demo out=studies/demo
    plan-sweep study=demo out=studies/demo budgets=[1e11,3e11] recipe.lr_scale=0.5 --dry-run
    plan-sweep study=isoflop spend.total_flops=5e22 budgets=[] --dry-run explain=true
    plan-sweep diff studies/a studies/b
    plan-sweep price studies/demo price.device=h100
    plan-sweep picture studies/demo
    plan-sweep sizes
    plan-sweep savings
    plan-sweep statistics study=demo data=FOLDER out=FILE.yaml
    plan-sweep propose studies/demo total_flops=1e12

Overrides are key=value with the fields of a study (sweeps/study.py); each study is a file of sweeps/conf/study. The only
file that imports Hydra, which leaves no files behind. Not here: what is printed (`sweeps.show`), planning (`sweeps.plan`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lst.command import ended, sigterm_raises
from lst.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from sweeps.plan import Plan
    from sweeps.study import StudyConfig

VERBS = ("plan", "diff", "price", "picture", "sizes", "savings", "statistics", "propose")
PATHS = ("data", "recipe.table", "after.data")  # keys of a study that name files or folders
OPTIONS = "after.options."
EXAMPLE = "plan-sweep study=demo out=studies/demo"


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status (0 done, 1 the work failed, 2 wrong input, 130 or 143 interrupted)."""
    with sigterm_raises():
        return ended("plan-sweep", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in (*VERBS, "-h", "--help"):
        arguments.insert(0, "plan")
    parser, verbs = _parsers()
    if arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    options = verbs[arguments[0]].parse_intermixed_args(arguments[1:])
    run: Callable[[argparse.Namespace], int] = {
        "plan": _plan,
        "diff": _diff,
        "price": _price,
        "picture": _picture,
        "sizes": _sizes,
        "savings": _savings,
        "statistics": _statistics,
        "propose": _propose,
    }[arguments[0]]
    return run(options)


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="plan-sweep", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(title="verbs (plan, if none is given)")
    plan = verbs.add_parser("plan", help="plan a study", description=__doc__, formatter_class=raw)
    plan.add_argument(
        "overrides", nargs="*", metavar="key=value", help="study=NAME, out=DIR, explain=true, and fields of the study"
    )
    plan.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    plan.add_argument("--widen", action="store_true", help="let the plan in out grow, if all its runs stay")
    diff = verbs.add_parser("diff", help="compare two plans", description="What differs between the plans in folders A and B.")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    price = verbs.add_parser("price", help="price an existing plan otherwise, without changing it")
    price.add_argument("folder", metavar="DIR")
    price.add_argument("overrides", nargs="*", metavar="price.key=value", help="fields of the study's section price")
    price.add_argument("--from-canary", metavar="RUNS", help="take speeds from the records of runs of the plan below RUNS")
    picture = verbs.add_parser("picture", help="draw a plan's grid", description="Write plan.svg and plan.png into DIR.")
    picture.add_argument("folder", metavar="DIR")
    sizes = verbs.add_parser("sizes", help="print the ladder of sizes", description="Shapes and parameters of every size.")
    savings = verbs.add_parser("savings", help="print what patching saves in true FLOPs", description="By size and option.")
    statistics = verbs.add_parser(
        "statistics", help="state a data set's statistics", description="Measure what the plans of a study need of its data."
    )
    statistics.add_argument(
        "overrides", nargs="*", metavar="key=value", help="study=NAME, out=FILE.yaml, and fields of the study"
    )
    what = "given a plan's results (fits.json, power.json) and a total, say which rows to run next"
    propose = verbs.add_parser("propose", help="say which rows to run next", description=what)
    propose.add_argument("folder", metavar="DIR")
    propose.add_argument("overrides", nargs="*", metavar="key=value", help="total_flops=, total_gpu_hours= or total_money=")
    every = (plan, diff, price, picture, sizes, savings, statistics, propose)
    for verb in every:
        verb.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    for verb in (plan, price):
        verb.add_argument(
            "--cores", type=_positive, default=os.cpu_count() or 1, help="runs at a time, for the wall-clock estimate"
        )
    return parser, dict(zip(VERBS, every, strict=True))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no positive whole number")
    return int(text)


def _plan(options: argparse.Namespace) -> int:
    from sweeps.plan import plan

    overrides = _split_overrides(options.overrides)
    out = overrides.pop("out", None)
    if out is None and not options.dry_run:
        raise ConfigError(f"out is missing; give the folder to write, as in: {EXAMPLE} (or --dry-run to write nothing).")
    if out == "":
        raise ConfigError(f"out is empty; give the folder to write, as in: {EXAMPLE}")
    explained = _flag("explain", overrides.pop("explain", "false"))
    study = compose_study(overrides)
    planned = plan(study, progress=_progress if sys.stderr.isatty() else None)
    written = None if options.dry_run or out is None else planned.write(Path(out), widen=options.widen).value
    if options.json:
        print(json.dumps(_plan_json(planned, options.cores, out, written), indent=1))
        return 0
    from sweeps.explain import explain_text
    from sweeps.show import describe

    print(describe(planned, options.cores))
    if explained:
        print("\n" + explain_text(planned))
    message = {None: "dry run: nothing was written", "new": f"written: {out}", "widened": f"widened: {out}"}
    print("\n" + message.get(written, f"unchanged: {out} holds this plan already"))
    return 0


def _flag(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigError(f"{key}={text} must be true or false.")
    return text == "true"


def _plan_json(planned: Plan, cores: int, out: str | None, written: str | None) -> dict[str, Any]:
    from sweeps.contradictions import contradictions
    from sweeps.show import assumptions_touched

    return {
        "study": planned.study.name,
        "out": out,
        "written": written,
        "rows": [dataclasses.asdict(row) for row in planned.rows],
        "totals": {**dataclasses.asdict(planned.totals), "wall_minutes": planned.wall_minutes(cores), "cores": cores},
        "warnings": list(planned.warnings),
        "assumptions": [assumption.name for assumption in assumptions_touched(planned.study)],
        "contradictions": [dataclasses.asdict(found) for found in contradictions(planned)],
    }


def _diff(options: argparse.Namespace) -> int:
    from sweeps.diff import describe_diff, diff_plans

    diff = diff_plans(options.a, options.b)
    print(json.dumps(diff.as_dict(), indent=1) if options.json else describe_diff(diff))
    return 0


def _price(options: argparse.Namespace) -> int:
    from sweeps.canary import canary_json, read_canary
    from sweeps.plan import Totals, read_plan
    from sweeps.price import wall_minutes
    from sweeps.reprice import reprice
    from sweeps.show import refusals_text
    from sweeps.show_price import canary_text, price_text

    stored = read_plan(options.folder)
    overrides = _split_overrides(options.overrides)
    for key in overrides:
        if not key.startswith("price."):
            raise ConfigError(f"'{key}' is no price; only fields of the section price can change here, as in price.device=h100.")
    priced = _with_overrides(stored.study, overrides).price
    canary = read_canary(Path(options.from_canary), stored.rows, priced) if options.from_canary else None
    rows = reprice(stored, priced, canary)
    wall = wall_minutes((row.est_minutes for row in rows if row.admitted), options.cores)
    totals = Totals.of(rows)
    if options.json:
        content = {**dataclasses.asdict(totals), "wall_minutes": wall, "cores": options.cores}
        measured = {"canary": canary_json(canary, rows)} if canary else {}
        print(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "totals": content, **measured}, indent=1))
    else:
        if canary:
            print(canary_text(canary, rows) + "\n")
        print(price_text(rows, totals, wall, options.cores))
        misfits = [row for row, before in zip(rows, stored.rows, strict=True) if before.admitted and not row.admitted]
        if misfits:
            print("\n" + refusals_text(misfits, label="does not fit: "))
    return 0


def _picture(options: argparse.Namespace) -> int:
    from sweeps.picture import write_picture
    from sweeps.plan import read_plan

    files = [str(file) for file in write_picture(read_plan(options.folder))]
    print(json.dumps({"files": files}) if options.json else f"written: {' and '.join(files)}")
    return 0


def _sizes(options: argparse.Namespace) -> int:
    from sweeps.sizes import size_json, size_text

    print(json.dumps(size_json(), indent=1) if options.json else size_text())
    return 0


def _savings(options: argparse.Namespace) -> int:
    from sweeps.savings import savings_json, savings_text

    print(json.dumps(savings_json(), indent=1) if options.json else savings_text())
    return 0


def _statistics(options: argparse.Namespace) -> int:
    from sweeps.export import require_new_file, study_statistics, write_statistics
    from sweeps.stated_file import to_plain

    overrides = _split_overrides(options.overrides)
    out = overrides.pop("out", None)
    if out:
        require_new_file(Path(out))
    stated = study_statistics(compose_study(overrides), name=Path(out).stem if out else "measured")
    if out:
        write_statistics(stated, Path(out))
    print(json.dumps(to_plain(stated), indent=1) if options.json or not out else f"written: {out}; plan from it with data={out}")
    return 0


def _propose(options: argparse.Namespace) -> int:
    from sweeps.plan import read_plan
    from sweeps.propose import propose, read_spend
    from sweeps.show_propose import proposal_json, proposal_text

    stored = read_plan(options.folder)
    proposal = propose(stored, read_spend(_split_overrides(options.overrides)))
    print(json.dumps(proposal_json(proposal), indent=1) if options.json else proposal_text(stored, proposal))
    return 0


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\rplanning {done} of {total} match groups", end=end, file=sys.stderr, flush=True)


def _split_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """key=value words as a dict. Raises ConfigError on a word without '=' and on a key that is given twice."""
    overrides: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{argument}' is no key=value; see plan-sweep --help.")
        key = key.lstrip("+")
        if key in overrides:
            raise ConfigError(f"'{key}' is given twice, as {overrides[key]} and as {value}; give it once.")
        overrides[key] = value
    return overrides


def compose_study(overrides: dict[str, str]) -> StudyConfig:
    """The named study with overrides, through Hydra's composition and its grammar of values.

    Raises ConfigError on an unknown study or key, and on a value that cannot be read.
    """
    from lst.plain import merge
    from sweeps.study import StudyConfig, require_study_name, study_names

    overrides = dict(overrides)
    name = overrides.pop("study", None)
    if name is None:
        raise ConfigError(f"study is missing; known: {', '.join(study_names())}, as in: {EXAMPLE}")
    require_study_name(name)
    # a path is taken as it stands: Hydra's grammar would stumble over blanks and signs in it
    paths: dict[str, Any] = {key: overrides.pop(key) for key in PATHS if key in overrides}
    # so is an option of lst.evals, as that command reads it: directions are written S->S,T->T
    options = [key for key in overrides if key.startswith(OPTIONS)]
    _require_known_keys(dict.fromkeys(options, ""))
    paths |= {key: _scalar(overrides.pop(key)) for key in options}
    values = _compose([f"+study={name}"], overrides)
    for key, path in paths.items():
        *section, last = key.split(".")
        values = merge(values, functools.reduce(lambda inner, part: {part: inner}, reversed(section), {last: path}))
    if overrides.get("arm_sizes", "").replace(" ", "") == "{}":
        # Hydra merges mappings, so that an empty one would clear nothing
        given = [key.partition(".")[2] for key in overrides if key.startswith("arm_sizes.")]
        values["arm_sizes"] = {arm: values["arm_sizes"][arm] for arm in given}
    return StudyConfig.from_dict(values)


def _scalar(text: str) -> str | int | float | bool:
    """A number, true or false where `text` is one, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and math.isfinite(value) else text


def _with_overrides(study: StudyConfig, overrides: dict[str, str]) -> StudyConfig:
    """A study that is not in the package's folder, with overrides."""
    from lst.plain import merge
    from sweeps.study import StudyConfig, study_to_dict

    return StudyConfig.from_dict(merge(study_to_dict(study), _compose([], overrides)))


def _profiles(text: str) -> dict[str, Any]:
    """The GPUs of a YAML or JSON file. Raises ConfigError on one that cannot be read."""
    from sweeps.yaml_file import UnreadableError, read_mapping

    try:
        values = read_mapping(Path(text))
    except UnreadableError as error:
        raise ConfigError(f"price.profiles={text} cannot be read ({error}); give a YAML or JSON file.") from error
    if values is None:
        raise ConfigError(f"price.profiles={text} is no mapping of GPUs by name.")
    return values


def _compose(groups: list[str], overrides: dict[str, str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from lst.plain import merge

    _require_known_keys(overrides)
    file = overrides.get("price.profiles", "")
    if file.endswith((".yaml", ".yml", ".json")):
        overrides = {key: value for key, value in overrides.items() if key != "price.profiles"}
        return merge(_compose(groups, overrides), {"price": {"profiles": _profiles(file)}})
    words = [f"++{key}={value}" for key, value in overrides.items()]
    try:
        with initialize_config_module("sweeps.conf", version_base="1.3"):
            found = compose(overrides=[*groups, *words])
        values = OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"an override cannot be read: {reason.rstrip('.')}; check {' '.join(words).replace('++', '')}"
        ) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _require_known_keys(overrides: dict[str, str]) -> None:
    """ConfigError for a dotted key that is no field of a study."""
    from lst.config import TrainConfig
    from sweeps.options import TrainOptions
    from sweeps.study import StudyConfig

    for dotted in overrides:
        section: Any = StudyConfig
        for place, part in enumerate(dotted.split(".")):
            fields = {field.name: field for field in dataclasses.fields(section)}
            if part not in fields:
                of_a_run = section is TrainOptions and hasattr(TrainConfig, part)
                known = f"known: {', '.join(fields)}."
                raise ConfigError(f"unknown key '{dotted}'; {known if of_a_run else did_you_mean(part, fields)}")
            section = fields[part].default_factory
            is_section = isinstance(section, type) and dataclasses.is_dataclass(section)
            if not is_section:
                if place + 1 < len(dotted.split(".")) and part not in ("arm_sizes", "profiles", "options"):
                    raise ConfigError(f"unknown key '{dotted}'; '{part}' has no fields of its own.")
                break


if __name__ == "__main__":
    sys.exit(main())
