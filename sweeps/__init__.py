"""The planner: from a study's configuration to matched, priced runs and their frozen configurations.

    from sweeps import plan
    planned = plan("demo")        # or a dict, or a StudyConfig
    planned.table                 # a DataFrame with the columns of docs/columns.md
    planned.write(Path("out"))

Not here: training (`lst`), jobs (`launch`), fits (`analysis`). On a command line: `plan-sweep study=demo out=DIR`.
"""

from sweeps.plan import plan

__all__ = ["plan"]
