"""The processes that train one run together: who they are, and the few words that they exchange.

`Place` is read from the environment that torchrun or srun sets, without torch. `Ranks` is what the trainer talks to: in one
process it exchanges nothing and loads no torch.distributed. Numbers are gathered, not reduced, and summed in the ranks' order,
so that every rank has the same bits. Not here: how parameters are spread over ranks (lst.train.sharding).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lst.config import RunConfig
from lst.errors import ConfigError, LstError, RunFailed

if TYPE_CHECKING:
    import torch

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
# A job's port is drawn from its number where MASTER_PORT does not say: below those that Linux gives to any connection (32,768
# and up), and another one for each step, so that a port that is taken fails one start and not the next.
FIRST_PORT, PORTS, STEP = 20_000, 12_000, 997
WAIT = timedelta(minutes=30)  # for a rank that does not come: a large checkpoint may be verified meanwhile
FAILURE_BYTES = 4096
LAST_WORDS_SECONDS = 3.0  # how long rank 0 waits for the reason of a rank that vanished

log = logging.getLogger(__name__)
T = TypeVar("T")


class RankFailed(RunFailed):
    """Another rank failed. Has that rank's failure class and exit code."""

    def __init__(self, cause: str, *, kind: str, code: int) -> None:
        super().__init__(cause)
        self.kind, self.exit_code = kind, code


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands among those of its run."""

    rank: int = 0  # of this process, from 0
    size: int = 1  # processes of the run
    local: int = 0  # of this process on its machine: the GPU that it takes
    host: str = ""  # where rank 0 listens
    port: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Place:
        """From torchrun's variables, else from those of srun, else one process. Raises ConfigError if they are half-set."""
        if any(name in environment for name in TORCHRUN[:3]):
            return cls._of(environment, TORCHRUN, "torchrun")
        if "SLURM_STEP_ID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
            return cls()  # a batch script has a SLURM_PROCID too, but only srun starts steps
        place = cls._of(environment, SLURM, "srun")
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        step = _number(environment, "SLURM_STEP_ID")
        port = int(environment.get("MASTER_PORT") or FIRST_PORT + (place.port + STEP * step) % PORTS)
        return cls(rank=place.rank, size=place.size, local=place.local, host=host, port=port)

    @classmethod
    def _of(cls, environment: Mapping[str, str], names: Sequence[str], launcher: str) -> Place:
        missing = [name for name in names if not environment.get(name)]
        if missing:
            raise ConfigError(f"{', '.join(missing)} not set, though {launcher}'s other variables are; start all by {launcher}.")
        rank, size, local, port = (_number(environment, names[i]) for i in (0, 1, 2, 4))
        if not (rank < size and local < size):
            raise ConfigError(
                f"{names[0]}={rank} and {names[2]}={local} do not lie below {names[1]}={size}; start all by {launcher}."
            )
        return cls(rank=rank, size=size, local=local, host=environment[names[3]], port=port)

    def require_fit(self, config: RunConfig) -> None:
        """Raises ConfigError if there are more processes than sequences in a batch."""
        if self.size > config.train.batch_sequences:
            raise ConfigError(
                f"{self.size} processes cannot share train.batch_sequences={config.train.batch_sequences}; "
                f"start at most {config.train.batch_sequences}."
            )


def first_host(nodes: str) -> str:
    """The first host of SLURM's node list: 'gpu[007-009,12],cpu1' -> 'gpu007'."""
    match = re.match(r"([^\[,]*)(?:\[([^\]]*)\])?([^\[,]*)", nodes)
    assert match is not None
    head, numbers, tail = match.groups()
    return head + (re.split("[-,]", numbers)[0] if numbers else "") + tail


class Ranks:
    """The processes of a run, as one of them sees them. Every method but `tell` is called by all ranks, in the same order."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.writers: Any = None  # the process group by which checkpoints are collected, apart from all other talk
        self._store: Any = None

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the other processes: gloo for tensors of the CPU, and nccl for those of GPUs where there are any.

        Raises RunFailed if they do not come.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        place = self.place
        backend = "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local % torch.cuda.device_count())  # too few GPUs: the trainer says so
            backend = "cpu:gloo,cuda:nccl"
        on_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        try:
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                place.host, place.port, place.size, is_master=place.rank == 0 and not on_torchrun, timeout=WAIT
            )
            store = dist.PrefixStore(_generation(), self._store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=WAIT)
            self.writers = dist.new_group(backend="gloo", timeout=WAIT)
        except (RuntimeError, ValueError) as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunFailed(f"rank {place.rank} cannot meet the others at {place.host}:{place.port} ({first_line}).") from error

    def leave(self) -> None:
        """Take leave in good order, everybody at once."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Each rank's `numbers` (equally many), in the ranks' order."""
        mine = [float(n) for n in numbers]
        if self.size == 1:
            return [mine]
        import torch
        import torch.distributed as dist

        sent = torch.tensor(mine, dtype=torch.float64)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return [tensor.tolist() for tensor in received]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The numbers, summed over ranks in their order: whole ones are exact below 2^53."""
        return [sum(column) for column in zip(*self.gather(numbers), strict=True)]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether some rank raises it."""
        return [total > 0 for total in self.sum(flags)]

    def of_first(self, number: float) -> float:
        """Rank 0's number."""
        return self.gather([number])[0][0]

    def together(self, work: Callable[[], T]) -> T:
        """The result of `work()`, in which ranks do not wait for each other; if it fails on one, it fails on all.

        That rank raises its own error, the others RankFailed with its cause.
        """
        if self.size == 1:
            return work()
        try:
            result = work()
        except Exception as error:
            self._exchange_failures(error)
            raise
        self._exchange_failures(None)
        return result

    def on_first(self, work: Callable[[], None]) -> None:
        """`together`, with work for rank 0 alone."""
        self.together(work if self.first else lambda: None)

    def sum_tensor(self, tensor: torch.Tensor) -> None:
        """Sum a tensor of the CPU over all ranks, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def explain(self, error: Exception) -> Exception:
        """The error, or where this rank lost touch because another failed elsewhere, that one's.

        Leaves word of this rank's own error, for the others wait for it without knowing. Not called by all ranks together.
        """
        if self._store is None or isinstance(error, RankFailed):
            return error
        try:
            if _lost_touch(error):
                until = time.monotonic() + LAST_WORDS_SECONDS  # the other may just be failing
                while time.monotonic() < until:
                    if self._store.check(["failure"]):
                        return _failed(self._store.get("failure"))
                    time.sleep(0.1)
            else:
                self._store.set("failure", _describe(error, self.rank))
        except RuntimeError:
            log.debug("the ranks' store is gone already")
        return error

    def _exchange_failures(self, error: Exception | None) -> None:
        """Nothing if no rank failed. Raises RankFailed on the ranks that did not."""
        failed = [flag for (flag,) in self.gather([error is not None])]
        if not any(failed):
            return
        import torch
        import torch.distributed as dist

        text = _describe(error, self.rank) if error else b""
        sent = torch.frombuffer(bytearray(text.ljust(FAILURE_BYTES)), dtype=torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        if error is None:
            raise _failed(received[failed.index(1)].numpy().tobytes())


def _describe(error: BaseException, rank: int) -> bytes:
    from lst.train.failures import exit_code, failure_cause, failure_class

    cause = failure_cause(error, "the run's folder")
    if not isinstance(error, RankFailed):
        cause = f"rank {rank}: {cause}"
    content = {"cause": cause[: FAILURE_BYTES // 4], "kind": failure_class(error), "code": exit_code(error)}
    return json.dumps(content).encode()


def _lost_touch(error: Exception) -> bool:
    """Whether an exchange between ranks failed, which is never the first thing to go wrong."""
    texts = ("gloo", "Connection", "NCCL", "Socket")
    return isinstance(error, RuntimeError) and not isinstance(error, LstError) and any(text in str(error) for text in texts)


def _failed(text: bytes) -> RankFailed:
    content = json.loads(text)
    return RankFailed(content["cause"], kind=content["kind"], code=content["code"])


def _generation() -> str:
    """A new one after each restart by torchrun, whose store outlives the processes."""
    return f"lst-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise ConfigError(f"{name}='{environment[name]}' is no number; start all processes by torchrun or srun.")
    return int(environment[name])
