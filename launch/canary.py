"""Before the grid: the cheapest row of each arm trains a few steps. If one fails, the study stops; else its records re-price it.

A canary is the real run, stopped after its steps, so nothing is trained twice. launch/canary.json says which arms have passed
with which code; other code has to pass anew. Not here: when the grid follows (`launch.order` on SLURM, `launch.submit` here).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.environment import python_environment
from launch.failures import FailureClass, last_line
from launch.job import is_complete
from launch.ledger import FAILED, LAUNCH, Attempt
from launch.retries import GOES_ON, may_go_on
from launch.rows import EVAL, TASK, Row, cost_of, waits_for
from lst.records import read_json, write_json

CANARY = "canary.json"
PRICE = "price.json"
PRICE_SECONDS = 300


def canaries(study: Path, todo: Sequence[Row], code: str) -> list[Row]:
    """The cheapest row of each arm that has not passed with this code; none where there is no more to run than these."""
    if any(row.kind == TASK for row in todo):
        return []
    todo = [row for row in todo if row.kind != EVAL]  # it trains nothing
    known = read_json(study / LAUNCH / CANARY) or {}
    passed = set(known.get("arms", [])) if known.get("code") == code else set()
    costs, chosen = cost_of(list(todo)), {}
    for row in sorted(todo, key=lambda row: costs[row.run_id]):
        if row.arm not in passed and row.arm not in chosen and not waits_for(study, row):
            chosen[row.arm] = row
    return list(chosen.values()) if len(todo) > len(chosen) else []


def of_other_arms(chosen: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Those of `chosen` whose arm has none of `rows`."""
    arms = {row.arm for row in rows}
    return [row for row in chosen if row.arm not in arms]


def counts(attempt: Attempt, since: int, code: str) -> bool:
    """Whether an attempt tells of canaries of this code that were asked for when the ledger had `since` lines.

    One that has started since then may be of a job that was queued before, with other code.
    """
    return attempt.line >= since and (not code or attempt.code in ("", code))


def passed(study: Path, rows: Sequence[Row], attempts: Mapping[str, Sequence[Attempt]], since: int, code: str) -> bool:
    """Whether all canaries have trained their steps, by attempts that count."""
    return all(
        is_complete(row.folder(study))
        or any(a.failure == FailureClass.CANARY and counts(a, since, code) for a in attempts.get(row.run_id, ()))
        for row in rows
    )


def failed(rows: Sequence[Row], attempts: Mapping[str, Sequence[Attempt]], since: int, code: str) -> str:
    """Which canary has failed and is not tried again by itself, by attempts that count, and why; empty where none has."""
    for row in rows:
        tries = attempts.get(row.run_id) or []
        last = tries[-1] if tries and tries[-1].ended is not None else None
        over = last is not None and (last.state == FAILED or last.failure in GOES_ON) and not may_go_on(tries)
        if last is not None and over and counts(last, since, code):
            return f"canary {row.run_id} ({row.arm}, {row.size}) failed: {last.cause}"
    return ""


def note_passed(study: Path, rows: Sequence[Row], code: str) -> None:
    """These arms have passed with this code; and what their records say of the others' prices."""
    known = read_json(study / LAUNCH / CANARY) or {}
    arms = set(known.get("arms", [])) if known.get("code") == code else set()
    write_json(study / LAUNCH / CANARY, {"code": code, "arms": sorted(arms | {row.arm for row in rows})})
    write_json(study / LAUNCH / PRICE, reprice(study))


def reprice(study: Path) -> dict[str, object]:
    """GPU-hours of every row at the speed that runs have shown, as `plan-sweep price` finds them; or why it cannot."""
    argv = [sys.executable, "-m", "sweeps.cli", "price", str(study), "--from-canary", str(study), "--json"]
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=PRICE_SECONDS, check=False, env=_environment(root), cwd=study
        )
    except subprocess.TimeoutExpired:
        return {"why": f"plan-sweep price took more than {PRICE_SECONDS} s"}
    if done.returncode:
        return {"why": last_line(done.stderr)}
    return {"gpu_hours": {row["run_id"]: row["est_gpu_hours"] for row in json.loads(done.stdout)["rows"]}}


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, **python_environment(root)}
