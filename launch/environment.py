"""The environment of jobs: an allow-list of the submitter's variables, our code's root, and thread limits.

Nothing else gets through, so that a run depends on the machine's set-up and not on a shell's history (nor sees a
secret that lies in it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

ALLOWED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_*", "NVIDIA_*", "NCCL_*", "GLOO_*", "TORCH_*", "PYTORCH_*",
    "TRITON_*", "TORCHINDUCTOR_*", "CC", "CXX", "SLURM_*", "SUBMITIT_*", "MASTER_ADDR", "MASTER_PORT", "LST_*",
)  # fmt: skip
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

FILTERS = ("SQUEUE_", "SCANCEL_", "SACCT_", "SINFO_", "SCONTROL_", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
OPTIONS = "SBATCH_"  # variables that sbatch takes for options, and puts before those of the script


def job_environment(base: Mapping[str, str], *, root: Path, threads: int, allow: Iterable[str] = ()) -> dict[str, str]:
    """The variables of `base` that jobs may see, with Python bound to the code below `root` and `threads` threads."""
    rules = (*ALLOWED, *allow)
    names = {rule for rule in rules if not rule.endswith("*")}
    prefixes = tuple(rule[:-1] for rule in rules if rule.endswith("*"))
    environment = {key: value for key, value in base.items() if key in names or key.startswith(prefixes)}
    return environment | python_environment(root) | dict.fromkeys(THREAD_LIMITS, str(threads))


def ask_environment(base: Mapping[str, str]) -> dict[str, str]:
    """What SLURM's commands see when they are asked: all of `base` but what changes what they list, or how."""
    return {name: value for name, value in base.items() if not name.startswith(FILTERS)}


def python_environment(root: Path) -> dict[str, str]:
    """What binds a Python process to the packages below `root`, whatever its working directory holds."""
    bound = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(root)}
    return bound | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
