"""Columns of the tables that `fit-scaling collect` writes as CSV (docs/columns.md), and which columns of any table hold text.

Names alone, so that every stage that reads these tables may know them. Not here: the columns of plan.csv (`sweeps.columns`)
and of the Parquet tables (`analysis.run_tables`).
"""

from __future__ import annotations

RESULT_COLUMNS = [
    "run_id",
    "arm",
    "size",
    "branch",
    "step",
    "train_flops",
    "units",
    "text_tokens",
    "speech_tokens",
    "task",
    "direction",
    "metric",
    "value",
    "n_items",
    "score",
    "patching",
    "conditional",
    "evaluation",
    "items_id",
    "options",
]
RUN_COLUMNS = [
    "run_id",
    "study",
    "kind",
    "arm",
    "size",
    "seed",
    "matching",
    "match_group",
    "state",
    "reason",
    "step",
    "steps",
    "num_params",
    "num_non_embedding_params",
    "num_params_global",
    "flops_budget",
    "planned_flops",
    "planned_spent_flops",
    "train_flops",
    "spent_flops",
    "units",
    "tokens",
    "text_tokens",
    "text_only_tokens",
    "speech_tokens",
    "skipped_steps",
    "seconds",
    "final_loss",
    "excluded",
]
_TEXT = """
run_id study kind parent_run_id arm size matching match_group flops_convention context_match recipe data_id status
placement_reason reason state excluded job_id submitted started ended cause task direction metric item scores score patching
evaluation items_id options
"""
TEXT_COLUMNS = frozenset(_TEXT.split())
"""Read as they stand: an id of digits (with an e) is no number."""
