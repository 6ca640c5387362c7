"""Arms against each other item by item: the table of item_pairs.csv, and what so many tests can say together.

The tests are those of `fit-scaling collect`: McNemar's exact test, a paired bootstrap, Holm's correction over all of them.
"""

from __future__ import annotations

from reports.numbers import count, fixed, interval, level_name, percent, plural, scientific
from reports.study import Study, records
from reports.tables import DIRECTION, Column, Table

LEVEL = 0.05
"""Of a p-value that is called a difference."""


def table(study: Study) -> Table:
    """A row a pair of runs, task and direction; no rows where nothing can be paired."""
    share, small = percent(1), fixed(4)
    rows = [
        row
        | {"interval": interval(row["low"], row["high"], share), "patches": "aligned" if row.get("conditional") is True else ""}
        for row in records(study.item_pairs)
    ]
    return Table(
        name="item-pairs",
        caption=(
            "Accuracy of each arm's run against another's of the same match group, size and seed, on the same items: the "
            "baseline's, or each arm's where no baseline has answered them. Under aligned patches both were given the future."
        ),
        columns=(
            Column("arm", "arm", numeric=False),
            Column("against", "against", numeric=False),
            Column("size", "size", numeric=False),
            Column("flops_budget", "budget (FLOPs)", scientific),
            Column("task", "task", numeric=False),
            DIRECTION,
            Column("n_items", "items", count),
            Column("accuracy", "accuracy", share),
            Column("baseline_accuracy", "the other's", share),
            Column("difference", "difference", share),
            Column("interval", f"{level_name(float(rows[0]['level']))} interval" if rows else "interval", numeric=False),
            Column("only_arm", "only the arm is right", count),
            Column("only_baseline", "only the other", count),
            Column("p_value", "McNemar p", small),
            Column("p_holm", "Holm p", small),
            Column("patches", "patches", numeric=False),
            Column("evaluation", "evaluation", numeric=False),
        ),
        rows=tuple(rows),
    )


def sentence(study: Study) -> str:
    """How many tests there are, and how many differences luck alone would make of them."""
    pairs = study.item_pairs
    tests, alone, together = len(pairs), int((pairs["p_value"] < LEVEL).sum()), int((pairs["p_holm"] < LEVEL).sum())
    return (
        f"{plural(tests, 'comparison')} item by item: {alone} with p below {LEVEL:g} taken alone, where luck gives up to about "
        f"{LEVEL * tests:.2g}; {together} after Holm's correction for all of them. They speak of the items drawn, not of seeds."
    )
