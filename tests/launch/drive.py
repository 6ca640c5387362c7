"""submit-sweep with the stand-in trainer: `python drive.py submit DIR ...` (a process of its own, as a user has it)."""

from __future__ import annotations

import sys
from pathlib import Path

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], trainer_argv=[sys.executable, str(Path(__file__).with_name("standin_trainer.py"))]))
