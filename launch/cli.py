"""`submit-sweep`: run a study's missing runs, look at them, stop them, read their logs.

submit-sweep submit DIR cluster=local         # this machine, parallel to the cores, until all runs have ended
submit-sweep submit DIR cluster=slurm cluster.partition=gpu
submit-sweep status DIR --follow
submit-sweep resubmit DIR --failed
submit-sweep logs DIR RUN
submit-sweep cancel DIR
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lst.command import ended
from lst.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from launch.submit import Selection

FOLLOW_SECONDS = 2.0
LOG_SECONDS = 0.5
DETACH_SECONDS = 120.0  # how long a detached submitter may take until it works on the study


def main(argv: Sequence[str] | None = None, *, trainer_argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. `trainer_argv` replaces the trainer's command, for tests only."""
    return ended("error", lambda: _main(argv, trainer_argv))


def _main(argv: Sequence[str] | None, trainer_argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [text for text in rest if not text.startswith("-")]
    unknown = [text for text in rest if text.startswith("-")]
    if unknown or (overrides and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    arguments.trainer_argv = trainer_argv
    code: int = arguments.command(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="submit-sweep", description="Run a planned study on this machine or on SLURM.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{submit,status,resubmit,cancel,logs,prepare,preflight}")
    submit = verbs.add_parser("submit", help="run what is missing; calling it again changes nothing that is done or running")
    again = verbs.add_parser("resubmit", help="run again what has failed or was lost, and nothing else")
    for verb in (submit, again):
        verb.add_argument("dir", type=Path, metavar="DIR", help="folder of the planned study")
        verb.add_argument(
            "overrides", nargs="*", metavar="key=value", help="cluster=local, cluster=slurm or cluster=FILE.yaml, parallel=2, ..."
        )
        verb.add_argument(
            "--run", action="append", default=[], metavar="RUN", help="only this run (a beginning of its run_id); may be repeated"
        )
        waiting = verb.add_mutually_exclusive_group()
        waiting.add_argument(
            "--wait", action="store_true", help="stay until all runs have ended (the default with cluster=local)"
        )
        waiting.add_argument(
            "--detach", action="store_true", help="leave at once; the runs go on (the default with cluster=slurm)"
        )
        verb.set_defaults(command=_submit, failed=False, failure_class=[])
    again.add_argument("--failed", action="store_true", help="runs that have failed or were lost (the default)")
    again.add_argument(
        "--class",
        dest="failure_class",
        action="append",
        default=[],
        metavar="CLASS",
        help="only failures of this class, such as oom",
    )
    _add_preparation(verbs)
    status = verbs.add_parser("status", help="the state of every run")
    status.add_argument("dir", type=Path, metavar="DIR")
    shape = status.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="a list with an object a run")
    shape.add_argument("--follow", action="store_true", help="look again every two seconds until all runs have ended")
    status.set_defaults(command=_status)
    cancel = verbs.add_parser("cancel", help="stop running runs (they save and leave) and take back queued ones")
    cancel.add_argument("dir", type=Path, metavar="DIR")
    cancel.add_argument("--run", action="append", default=[], metavar="RUN", help="only this run; may be repeated")
    cancel.add_argument("--now", action="store_true", help="have SLURM end the running jobs, whether they have saved or not")
    cancel.set_defaults(command=_cancel)
    logs = verbs.add_parser("logs", help="what runs have printed: the one named, else those that failed, else those that run")
    logs.add_argument("dir", type=Path, metavar="DIR")
    logs.add_argument("runs", nargs="*", metavar="RUN")
    logs.add_argument("-n", "--lines", type=int, default=40, help="lines from the end (default 40)")
    logs.add_argument("--follow", action="store_true", help="go on printing what one run prints, until it ends")
    logs.set_defaults(command=_logs)
    return parser


def _add_preparation(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The verbs for what comes before a study's runs."""
    prepare = verbs.add_parser("prepare", help="run the parts of a data preparation as a study's runs, then join them")
    prepare.add_argument("dir", type=Path, metavar="DIR", help="folder of the preparation's jobs")
    prepare.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="parts=N, options of prepare-data; cluster=slurm, cluster.qos=...",
    )
    prepare.add_argument("--wait", action="store_true", help="stay until all have ended (the default with cluster=local)")
    prepare.set_defaults(command=_prepare, detach=False, failed=False, failure_class=[], run=[])
    preflight = verbs.add_parser("preflight", help="one small job a node type: is all there that runs need?")
    preflight.add_argument("dir", type=Path, metavar="DIR")
    preflight.add_argument("overrides", nargs="*", metavar="key=value", help="cluster=slurm, cluster.partition=...")
    preflight.add_argument("--json", action="store_true", help="a list with an object a node type")
    preflight.set_defaults(command=_preflight)


def _submit(arguments: argparse.Namespace) -> int:
    from launch.asked import resubmission
    from launch.cluster import DebugCluster, LocalCluster, load_cluster
    from launch.display import Display, failures, summary
    from launch.ledger import DONE
    from launch.limits import split_limits
    from launch.retries import study_stopped
    from launch.submit import Report, submit

    given, overrides = split_limits(arguments.overrides)
    cluster = load_cluster(overrides)
    selection = _selection(arguments)
    if arguments.detach and isinstance(cluster, DebugCluster):
        raise ConfigError("cluster=debug runs in this process; leave --detach out.")
    if arguments.detach and isinstance(cluster, LocalCluster):
        return _detach(arguments, selection, given)
    wait = arguments.wait or (isinstance(cluster, LocalCluster | DebugCluster) and not arguments.detach)
    display = Display(sys.stdout)
    report: Report = submit(
        arguments.dir,
        cluster,
        display=display,
        wait=wait,
        selection=selection,
        limits=given,
        trainer_argv=arguments.trainer_argv,
    )
    what = "run" if report.submitted == 1 else "runs"
    print(
        f"{report.submitted:,} {what} submitted; {summary(report.statuses, None)}"
        if report.submitted
        else f"nothing to submit; {summary(report.statuses, None)}"
    )
    bad = failures(arguments.dir, report.statuses)
    if stopped := study_stopped(arguments.dir):
        bad.append(f"the study is stopped: {stopped}; mend it, then: {resubmission(arguments.dir)}")
    for line in bad:
        print(line, file=sys.stderr)
    if report.interrupted:
        return report.interrupted
    undone = not selection.failed_only and any(s.state != DONE for s in report.statuses)
    return 1 if wait and (bad or undone) else 0


def _prepare(arguments: argparse.Namespace) -> int:
    from launch.cluster import DebugCluster, load_cluster
    from launch.limits import check_limits, split_limits
    from launch.prepare import check_options, split_words, write_preparation

    parts, options, rest = split_words(arguments.overrides)
    limits, words = split_limits(rest)
    if isinstance(load_cluster(words), DebugCluster):
        raise ConfigError("cluster=debug trains runs; prepare with cluster=local or slurm, or call prepare-data itself.")
    check_limits(arguments.dir, limits)
    check_options(parts, options)
    write_preparation(arguments.dir, parts, options)
    arguments.overrides = rest
    return _submit(arguments)


def _preflight(arguments: argparse.Namespace) -> int:
    from launch.cluster import load_cluster
    from launch.preflight import check_machines, report_lines

    found = check_machines(arguments.dir, load_cluster(arguments.overrides))
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(report_lines(found)))
    return 1 if any(machine["wrong"] for machine in found) else 0


def _selection(arguments: argparse.Namespace) -> Selection:
    from launch.failures import FailureClass
    from launch.submit import Selection
    from lst.errors import did_you_mean

    known = tuple(FailureClass)
    for name in arguments.failure_class:
        if name not in known:
            raise ConfigError(f"--class {name} is unknown; {did_you_mean(name, known)}")
    return Selection(
        run_ids=tuple(arguments.run), failed_only=arguments.verb == "resubmit", classes=tuple(arguments.failure_class)
    )


def _detach(arguments: argparse.Namespace, selection: Selection, given: Mapping[str, float]) -> int:
    """Start a submitter of its own session, and look on until it works on the study or has given up."""
    import subprocess
    import time

    from launch.environment import python_environment
    from launch.failures import tail_of
    from launch.lease import holder
    from launch.ledger import LAUNCH
    from launch.limits import check_limits
    from launch.rows import read_rows
    from launch.snapshot import code_root, make_private
    from launch.status import lock_path

    selection.rows(read_rows(arguments.dir))
    check_limits(arguments.dir, given)
    folder = make_private(arguments.dir / LAUNCH)
    chosen = [text for name in arguments.run for text in ("--run", name)]
    chosen += [text for name in arguments.failure_class for text in ("--class", name)]
    argv = [
        sys.executable,
        "-m",
        "launch.cli",
        arguments.verb,
        str(arguments.dir.absolute()),
        *arguments.overrides,
        "--wait",
        *chosen,
    ]
    with (folder / "submit.log").open("ab") as log:
        before = log.tell()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **python_environment(code_root())},
        )
    deadline = time.monotonic() + DETACH_SECONDS
    while time.monotonic() < deadline:
        found = holder(lock_path(arguments.dir)) or {}
        if found.get("works") or (found.get("process") or [process.pid])[0] != process.pid:  # another one's: it waits for that
            break
        if process.poll() is not None:
            print(tail_of(folder / "submit.log", before), end="", file=sys.stderr if process.returncode else sys.stdout)
            return process.returncode
        time.sleep(0.05)
    print(
        f"process {process.pid} runs the study and writes to '{folder / 'submit.log'}'; "
        f"look: submit-sweep status {arguments.dir} --follow"
    )
    return 0


def _status(arguments: argparse.Namespace) -> int:
    import time

    from launch.display import summary, table
    from launch.limits import left_text
    from launch.rows import read_rows
    from launch.status import OPEN_STATES, PLANNED, RUNNING, as_json, eta_seconds, gather, why_nothing_starts

    rows = read_rows(arguments.dir)
    while True:
        statuses = gather(arguments.dir, rows)
        if arguments.json:
            print(json.dumps([as_json(s) for s in statuses], indent=1))
            return 0
        running = sum(s.state == RUNNING for s in statuses)
        lines = [*table(statuses), summary(statuses, eta_seconds(rows, statuses, running) if running else None)]
        text = "\n".join([*lines, *filter(None, [left_text(arguments.dir), why_nothing_starts(arguments.dir)])])
        clear = "\x1b[2J\x1b[H" if arguments.follow and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        waits = any(s.state in (*OPEN_STATES, PLANNED) for s in statuses) and any(s.state in OPEN_STATES for s in statuses)
        if not arguments.follow or not waits:
            return 0
        time.sleep(FOLLOW_SECONDS)


def _cancel(arguments: argparse.Namespace) -> int:
    from launch.cancel import cancel
    from launch.submit import Selection

    concerned = cancel(arguments.dir, selection=Selection(run_ids=tuple(arguments.run)), now=arguments.now)
    what = "run saves and leaves" if len(concerned) == 1 else "runs save and leave"
    print(f"{len(concerned)} {what}; submit again to go on" if concerned else "nothing is running or queued")
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from launch.ledger import FAILED, LOST
    from launch.rows import read_rows
    from launch.status import RUNNING, gather
    from launch.submit import find_row
    from lst.records import LOG

    rows = read_rows(arguments.dir)
    if arguments.runs:
        chosen = [find_row(rows, name) for name in arguments.runs]
    else:
        states = {s.run_id: s.state for s in gather(arguments.dir, rows)}
        failed = [row for row in rows if states[row.run_id] in (FAILED, LOST)]
        chosen = failed or [row for row in rows if states[row.run_id] == RUNNING]
        if not chosen:
            print("no run has failed and none is running; name one: submit-sweep logs DIR RUN")
            return 0
    if arguments.lines < 1:
        raise ConfigError(f"--lines {arguments.lines} must be positive.")
    if arguments.follow and len(chosen) != 1:
        raise LaunchError(f"--follow prints one run, and {len(chosen)} fit; name one by its run_id.")
    for row in chosen:
        path = row.folder(arguments.dir) / LOG
        print(f"==> {path} ({row.arm}, {row.size})")
        text = path.read_text(errors="replace") if path.is_file() else "(nothing printed yet)\n"
        print("".join(text.splitlines(keepends=True)[-arguments.lines :]), end="", flush=True)
        if arguments.follow:
            _follow_log(arguments.dir, row.run_id, path, len(text.encode()) if path.is_file() else 0)
    return 0


def _follow_log(study: Path, run_id: str, path: Path, offset: int) -> None:
    """Print what is appended to the log until the run is neither running nor queued."""
    import time

    from launch.rows import read_rows
    from launch.status import OPEN_STATES, gather

    rows = [row for row in read_rows(study) if row.run_id == run_id]
    while True:
        going = gather(study, rows)[0].state in OPEN_STATES
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            offset += len(data)
            print(data.decode(errors="replace"), end="", flush=True)
        if not going:
            return
        time.sleep(LOG_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
