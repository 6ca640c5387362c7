"""Training of one run: loop, optimiser, checkpoints, records. `python -m lst.train RUN_DIR` is its command."""
