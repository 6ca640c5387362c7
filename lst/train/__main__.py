"""`python -m lst.train RUN_DIR`: train the run whose run.yaml is in RUN_DIR, or go on where it was.

Exit codes: 0 done (or was done already), 1 the work failed (failure.json says why), 2 the input was wrong, 75 stopped by a
signal after saving: run it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lst.errors import ConfigError, LstError
from lst.train.signals import EXIT_STOPPED, Stopped, StopRequest

log = logging.getLogger("lst.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lst.train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a planned run, with its run.yaml")
    run_dir = parser.parse_args(argv).run_dir
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return train_run(run_dir, StopRequest.install())
    except LstError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def train_run(run_dir: Path, stop: StopRequest) -> int:
    """One attempt at the run, under its lock. What fails inside is told on stderr and in failure.json."""
    from lst.train.folder import RunLock, is_complete, read_run_config, require_run_config, write_failure
    from lst.train.layout import clean_up

    if not run_dir.is_dir():
        raise ConfigError(f"run folder '{run_dir}' does not exist; plan the study first, or give DIR/runs/<run_id>.")
    require_run_config(run_dir)  # before anything is written: this may be no run's folder at all
    lock = RunLock(run_dir)
    run_id, trainer = "", None
    try:
        config = read_run_config(run_dir)
        run_id = config.run_id
        if is_complete(run_dir, config):
            clean_up(run_dir)
            log.info("run %s is complete already", run_id)
            return 0
        # OpenMP reads this once, when torch is loaded: no thread pool larger than the run may use.
        os.environ.setdefault("OMP_NUM_THREADS", str(config.execution.threads))
        from lst.train.trainer import Trainer

        stop.check()
        trainer = Trainer(run_dir, config, attempt=lock.attempt, stop=stop)
        trainer.run()
        log.info("run %s is complete after %s steps", run_id, f"{trainer.state.step:,}")
        return 0
    except Stopped as signal:
        log.info("stopped by %s after %s steps; run it again to go on", signal, trainer.state.step if trainer else 0)
        return EXIT_STOPPED
    except Exception as error:
        from lst.train.failures import exit_code

        step = trainer.state.step if trainer else 0
        print(f"error: {write_failure(run_dir, error, run_id=run_id, attempt=lock.attempt, step=step)}", file=sys.stderr)
        return exit_code(error)
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
