"""Launching: from a study's plan.csv to finished run folders, on this machine or on a SLURM cluster.

This package decides which rows still have to run, starts one worker a run, keeps the ledger and tells the state of a
study. It does not train (`lst.train` is a subprocess of the worker), plan, or read results, and never imports torch.

    submit-sweep submit DIR cluster=local
"""
