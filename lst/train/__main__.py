"""`python -m lst.train RUN_DIR`: train the run whose run.yaml is in RUN_DIR, or go on where it was.

Exit codes: 0 done (or was done already), 1 the work failed (failure.json says why), 2 the input was wrong, 75 stopped by a
signal after saving: run it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lst.errors import ConfigError, LstError
from lst.train.signals import EXIT_STOPPED, Stopped, StopRequest
from lst.train.terminal import TerminalHandler, complain

if TYPE_CHECKING:
    from lst.train.distributed import Ranks

log = logging.getLogger("lst.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lst.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a planned run, with its run.yaml")
    run_dir = parser.parse_args(argv).run_dir
    terminal = TerminalHandler(sys.stdout)
    logging.basicConfig(handlers=[terminal], level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return train_run(run_dir, StopRequest.install())
    except LstError as error:
        complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def train_run(run_dir: Path, stop: StopRequest) -> int:
    """One attempt at the run, in one process or as one of several; the exit code.

    What this process can see to be wrong for itself is raised before anything is written and anybody waited for.
    """
    from lst.train.distributed import Place, Ranks
    from lst.train.folder import require_run_config

    if not run_dir.is_dir():
        raise ConfigError(f"run folder '{run_dir}' does not exist; plan the study first, or give DIR/runs/<run_id>.")
    require_run_config(run_dir)
    ranks = Ranks(Place.read(os.environ))
    if ranks.size > 1 and (refused := _meet(run_dir, ranks)):
        return refused
    try:
        code = _attempt(run_dir, stop, ranks)
    except LstError as error:  # another process trains this run
        if ranks.first:
            raise
        return error.exit_code
    ranks.leave()
    return code


def _meet(run_dir: Path, ranks: Ranks) -> int:
    """Join the other processes, if there may be so many; 0, or the exit code of a refusal that rank 0 tells for all."""
    from lst.train.distributed import LAST_WORDS_SECONDS
    from lst.train.folder import read_run_config

    if not ranks.first:
        logging.getLogger().setLevel(logging.WARNING)
    config = read_run_config(run_dir)
    try:
        ranks.place.require_fit(config)
    except ConfigError as error:
        if ranks.first:
            raise
        time.sleep(LAST_WORDS_SECONDS)  # torchrun ends all ranks as soon as one ends: rank 0 speaks before that
        return error.exit_code
    os.environ.setdefault("OMP_NUM_THREADS", str(config.execution.threads))
    ranks.join()
    return 0


def _attempt(run_dir: Path, stop: StopRequest, ranks: Ranks) -> int:
    """Train under the run's lock. What fails inside is told by rank 0, on stderr and in failure.json."""
    from lst.train.folder import RunLock, is_complete, read_run_config
    from lst.train.layout import clean_up

    locks: list[RunLock] = []
    ranks.on_first(lambda: locks.append(RunLock(run_dir)))
    attempt = int(ranks.of_first(locks[0].attempt if locks else 0))
    run_id, trainer = "", None
    try:
        config = ranks.together(lambda: read_run_config(run_dir))
        run_id = config.run_id
        if ranks.of_first(ranks.together(lambda: is_complete(run_dir, config))):
            ranks.on_first(lambda: clean_up(run_dir))
            log.info("run %s is complete already", run_id)
            return 0
        # OpenMP reads this once, when torch is loaded: no thread pool larger than the run may use.
        os.environ.setdefault("OMP_NUM_THREADS", str(config.execution.threads))
        from lst.train.trainer import Trainer

        if ranks.any(bool(stop.signal))[0]:
            raise Stopped(stop.signal or "a signal to another rank")
        trainer = Trainer(run_dir, config, attempt=attempt, stop=stop, ranks=ranks)
        trainer.run()
        log.info("run %s is complete after %s steps", run_id, f"{trainer.state.step:,}")
        return 0
    except Stopped as signal:
        log.info("stopped by %s after %s steps; run it again to go on", signal, trainer.state.step if trainer else 0)
        return EXIT_STOPPED
    except Exception as error:
        return _fail(run_dir, ranks, error, run_id=run_id, attempt=attempt, step=trainer.state.step if trainer else 0)
    finally:
        for lock in locks:
            lock.release()


def _fail(run_dir: Path, ranks: Ranks, error: Exception, *, run_id: str, attempt: int, step: int) -> int:
    """Say what failed, on rank 0 for all; the exit code. Ends other ranks at once, for they may wait for each other."""
    from lst.train.failures import exit_code
    from lst.train.fence import lease_lost
    from lst.train.folder import write_failure

    error = ranks.explain(error)
    if ranks.first and lease_lost(run_dir):
        complain(f"error: {error}")  # the run is another runner's: its failure.json too
    elif ranks.first:
        complain(f"error: {write_failure(run_dir, error, run_id=run_id, attempt=attempt, step=step)}")
    if ranks.size > 1:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(exit_code(error))
    return exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
