"""The training loop of one run: step, record, evaluate, save; resume to the bit.

A step is: the global batch of the step, micro-batch by micro-batch; losses summed and divided by the batch's predicted
tokens; clip; judge; AdamW at the schedule's learning rate. Records of a step are written before the checkpoint that holds it,
so that a resumed run drops what its checkpoint does not know and writes it again, equal. With several ranks all of them run
this loop in step: whatever decides where it goes is agreed on between two steps or equal on all, and rank 0 alone writes. Not
here: the model (lst.model), the data (lst.data.stream), what a folder contains (docs/run_folder.md), how ranks share the model
(lst.train.sharding) and the batch (lst.train.batches).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lst.config import RunConfig
from lst.data.pack import PackedBatch
from lst.data.shards import Dataset, open_dataset
from lst.data.stream import Stream
from lst.errors import ConfigError, DataError
from lst.evals.evaluate import Evaluation, evaluation_steps
from lst.flops import SequenceCounts, parameter_counts, training_flops
from lst.model import Batch
from lst.model.attention import use_backend
from lst.model.warm_start import describe, warm_start
from lst.records import EXIT, write_json
from lst.schedule import learning_rate
from lst.train.bad_steps import judge_step
from lst.train.batches import Prefetch, StepBatch, equally_many
from lst.train.branches import branch_tag, due_branch, fork_off, rejoin
from lst.train.checkpoint import Snapshot, TrainState, resume, save_budget, save_final, save_kept
from lst.train.distributed import Ranks
from lst.train.failures import Diverged
from lst.train.fence import require_lease
from lst.train.folder import versions
from lst.train.layout import clean_up, remove_branches, step_folder
from lst.train.losses import LossSums, accumulate_gradients
from lst.train.metrics import (
    COUNTS,
    ProgressLog,
    branch_field,
    eval_record,
    exit_record,
    peak_flops,
    spent,
    train_record,
    wall_clock,
)  # fmt: skip
from lst.train.micro_batches import MicroBatches, event, explained_out_of_memory
from lst.train.optim import AdamW
from lst.train.run_records import RunRecords
from lst.train.sharding import make_network
from lst.train.signals import Stopped, StopRequest
from lst.train.writer import CheckpointWriter

log = logging.getLogger(__name__)


class Trainer:
    """One attempt of a run. `state` says how far it is, also after an exception."""

    def __init__(self, run_dir: Path, config: RunConfig, *, attempt: int, stop: StopRequest, ranks: Ranks | None = None) -> None:
        """Builds data, model and optimiser, and resumes. Raises DataError, ConfigError or CheckpointError."""
        self.run_dir, self.config, self.attempt, self.stop = run_dir, config, attempt, stop
        self.ranks = ranks = ranks or Ranks()
        self.state = TrainState(run_id=config.run_id)
        dataset = ranks.together(lambda: open_run_dataset(config))
        self.device = ranks.together(lambda: choose_device(config, ranks))
        _set_up_torch(config, self.device)
        self.stream = ranks.together(lambda: Stream(dataset, config))
        self.rows = Prefetch(self.stream, rank=ranks.rank, size=ranks.size, steps=config.train.steps)
        self.evaluation = Evaluation(dataset, config)
        self.model = make_network(config, ranks, self.device)
        use_backend(self.model, config.execution.attention)
        self.optimizer = AdamW(self.model, config.optim, ranks)
        self.writer = CheckpointWriter(run_dir, ranks, asynchronous=config.execution.checkpoint_async)
        self.state = self._resume()
        self.records = ranks.together(lambda: RunRecords(run_dir, self.state.records, writes=ranks.first))
        self.state.seconds += self.records.lost_seconds
        self.evaluation_steps = evaluation_steps(config.train.steps, config.evaluation)
        self.micro_batches = MicroBatches(config.execution.micro_batch_tokens, processes=ranks.size)
        self.peak_flops = peak_flops(config, self.device)
        self._saved: tuple[int | None, ...] = ()
        self._moved = False  # whether a step was done since the last save
        self._saved_time = self._clock = time.monotonic()

    def run(self) -> None:
        """Train to the end. Raises Stopped after saving if asked to stop, Diverged on a bad step that halts, OutOfMemory."""
        try:
            with explained_out_of_memory(self.config, self.device, self.micro_batches):
                if self.state.branch is not None:
                    self._finish_branch()
                self._train_to_end()
        except Stopped:
            self.save()
            self.writer.wait()
            raise
        finally:
            self.rows.close()
            self.writer.finish_quietly()
            self.records.close()
        self._finish()

    @property
    def end(self) -> int:
        """Steps of the run, or of the branch that it is on."""
        return self.state.branch or self.config.train.steps

    def _train_to_end(self) -> None:
        """From where the state stands to the end of its path: the run's, or a branch's."""
        end, execution = self.end, self.config.execution
        progress = ProgressLog(end, self.state.step)
        self._evaluate_and_branch()
        while self.state.step < end:
            self._agree_at_boundary()
            record = self.train_step()
            if self.state.step % execution.log_every == 0 or self.state.step == end:
                self.records.train.write(record)
            progress.step(record)
            self._evaluate_and_branch()

    def _agree_at_boundary(self) -> None:
        """Between two steps: leave if a rank was asked to stop or could not write, and save if it is time by rank 0's clock."""
        late = time.monotonic() - self._saved_time >= self.config.execution.checkpoint_every_seconds
        stop, failed, save = self.ranks.any(bool(self.stop.signal), self.writer.failed, self.ranks.first and late and self._moved)
        if failed:
            self.writer.wait()
        if stop:
            raise Stopped(self.stop.signal or "a signal to another rank")
        if save:
            self.save()

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; its record."""
        started, state, config = time.perf_counter(), self.state, self.config
        batch = StepBatch.make(self.rows, state.step, self.ranks)
        data_seconds = time.perf_counter() - started
        losses, smaller = self.micro_batches.run(batch.own, partial(self._gradients, int(batch.counts.predicted)))
        state.out_of_memory += [event(self.attempt, state.step + 1, tokens) for tokens in smaller]
        grad_norm = self.optimizer.clip_gradients()
        loss = losses.nats / losses.tokens
        bad = judge_step(state, loss=loss, grad_norm=grad_norm, config=config, agree=lambda bad: self.ranks.any(bad)[0])
        lr = learning_rate(state.step, steps=self.end, optim=config.optim)
        if not bad:
            self.optimizer.step(lr)
        flops = self._advance(batch.counts)
        clock = wall_clock(
            batch.counts,
            seconds=time.perf_counter() - started,
            data_seconds=data_seconds,
            flops=flops,
            peak_flops=self.peak_flops and self.peak_flops * self.ranks.size,
            device=self.device,
        )
        if self.ranks.size > 1:
            clock["processes"] = self.ranks.size
        if state.out_of_memory:
            clock["micro_batch_tokens"] = self.micro_batches.tokens
        known = self.stream.repetition.record(state.counts) | {"batch_hash": batch.hash}
        return train_record(state, losses=losses, lr=lr, grad_norm=grad_norm, known=known, clock=clock, skipped=bad)

    def _gradients(self, predicted: int, parts: list[PackedBatch]) -> LossSums:
        """The gradients of a global batch that predicts `predicted` tokens, from this rank's parts; its summed losses."""
        self.optimizer.zero_grad()
        losses = LossSums()
        for part in equally_many(parts, self.stream, self.ranks):
            batch = Batch.from_packed(part, self.device)
            losses += accumulate_gradients(self.model, batch, predicted=predicted, dtype=self.config.train.dtype)
        return losses.over(self.ranks)

    def save(self) -> None:
        """Save a checkpoint of the current step, unless that is what was saved last."""
        state = self.state
        stands = (state.branch, state.step, state.evaluated_step, len(state.branches))
        if stands != self._saved:
            state.records = self.ranks.together(self.records.flush_to_disk)  # what the checkpoint counts on goes before it
            self._count_seconds()
            state.rng = _rng_states()
            self.writer.save(self._snapshot)
            self._saved = stands
        self._moved = False
        self._saved_time = time.monotonic()

    def _snapshot(self, copy: bool) -> Snapshot:
        return Snapshot.take(model=self.model, optimizer=self.optimizer, config=self.config, state=self.state, copy=copy)

    def _advance(self, counts: SequenceCounts) -> float:
        """Count a batch as trained on; its FLOPs."""
        state, flops = self.state, training_flops(self.config, counts).total
        state.step += 1
        self._moved = True
        state.train_flops += flops
        state.spent_flops += flops
        state.counts = asdict(SequenceCounts(**state.counts) + counts)
        return flops

    def _load(self, branch: int | None = None) -> TrainState:
        """Weights, moments and random states of the newest checkpoint, of the trunk or a branch; its state."""
        self.writer.wait()
        state = resume(
            self.run_dir, model=self.model, optimizer=self.optimizer, config=self.config, branch=branch, ranks=self.ranks
        )
        _restore_rng(state.rng)
        return state

    def _resume(self) -> TrainState:
        """Where the run stands: on the trunk, or on the branch that leaves it there, if that was begun."""
        trunk = self._load()
        if self.config.train.init_from and not trunk.warm_start:  # once in a run: a checkpoint says that it was done
            trunk.warm_start = warm_start(self.model, self.config, self.run_dir)
            log.info(describe(trunk.warm_start, self.config.execution.init_path))
        branch = due_branch(self.config, trunk)
        self.ranks.on_first(lambda: remove_branches(self.run_dir, but=branch))
        state = trunk if branch is None else self._load(branch)
        if state.branch != branch:  # it is to begin
            state = trunk
        if state.rng:  # else nothing was loaded
            of = "" if state.branch is None else f" of branch {state.branch:,}"
            log.info("resumed from %s%s", step_folder(self.run_dir, state.step).name, of)
        return state

    def _evaluate_and_branch(self) -> None:
        """What is due after the current step."""
        self._evaluate_if_due()
        self._keep_if_due()
        while (branch := due_branch(self.config, self.state)) is not None:
            self.save()  # the trunk as it stands: what the run comes back to
            self.state = fork_off(self.state, branch)
            log.info("branch %s: forked at step %s", f"{branch:,}", f"{self.state.step:,}")
            self._finish_branch()

    def _finish_branch(self) -> None:
        """Train the branch to its end, keep its weights, and go back to the trunk where the branch left it."""
        self._train_to_end()
        branch = self.state
        assert branch.branch is not None
        self._count_seconds()
        tag = branch_tag(self.config, branch)
        self.ranks.together(lambda: save_budget(self.run_dir, model=self.model, config=self.config, tag=tag, ranks=self.ranks))
        self.state = self._load()
        rejoin(self.state, branch, self.config)
        self.save()
        self.writer.wait()
        self.ranks.on_first(lambda: remove_branches(self.run_dir))
        log.info("branch %s is done; back on the trunk at step %s", f"{branch.branch:,}", f"{self.state.step:,}")

    def _evaluate_if_due(self) -> None:
        """Evaluate after the current step if the run wants it and has not done it; all records are written at once."""
        state, lr = self.state, self.config.optim.lr
        due = state.step == self.end if state.branch is not None else state.step in self.evaluation_steps
        if not due or state.evaluated_step >= state.step:
            return
        final = state.step == self.end
        results = self.evaluation.run(self.model, self.device, final=final, stop=self._check_stop, ranks=self.ranks)
        for metric in results.metrics:
            if not math.isfinite(metric.value):
                raise Diverged(f"{metric.task} {metric.metric} is {metric.value} after step {state.step}; lower optim.lr={lr}.")
            self.records.evaluations.write(eval_record(state, metric))
            log.info("step %s  %s %s %s = %.4f", f"{state.step:,}", metric.task, metric.direction, metric.metric, metric.value)
        for item in results.items:
            self.records.items.write({"step": state.step} | branch_field(state) | item)
        state.evaluated_step = state.step

    def _keep_if_due(self) -> None:
        """Keep the weights of the current step if the run wants it: others evaluate them, beside the training."""
        state = self.state
        if state.branch is None and 0 < state.step < self.end and state.step in self.config.execution.keep_steps:
            tag = {"run_id": state.run_id, "step": state.step, **spent(state, COUNTS)}
            self.ranks.together(lambda: save_kept(self.run_dir, model=self.model, config=self.config, tag=tag, ranks=self.ranks))

    def _check_stop(self) -> None:
        """Raises Stopped if a rank was asked to stop. Called by all ranks."""
        if self.ranks.any(bool(self.stop.signal))[0]:
            raise Stopped(self.stop.signal or "a signal to another rank")

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now

    def _finish(self) -> None:
        """Keep the weights, and say last of all that the run is done."""
        self._count_seconds()
        self.writer.wait()
        self.ranks.together(lambda: save_final(self.run_dir, model=self.model, config=self.config, ranks=self.ranks))
        self.ranks.on_first(self._say_done)

    def _say_done(self) -> None:
        state = self.state
        ended = exit_record(state) | {
            "attempts": self.attempt,
            "versions": versions(),
            "num_params": parameter_counts(self.config.model),
            **({"warm_start": state.warm_start} if state.warm_start else {}),
        }
        require_lease(self.run_dir)
        write_json(self.run_dir / EXIT, ended)
        clean_up(self.run_dir)


def open_run_dataset(config: RunConfig) -> Dataset:
    """The run's data set. Raises DataError if it is another one, ConfigError if its vocabularies are not the model's."""
    dataset = open_dataset(config.execution.data_path)
    if dataset.data_id != config.data.data_id:
        raise DataError(
            f"data '{dataset.path}' has data_id={dataset.data_id}, the run wants '{config.data.data_id}'; "
            "set execution.data_path to that data set, or plan again for this one."
        )
    for key in ("text_vocab", "speech_vocab"):
        ours, theirs = getattr(config.model, key), getattr(dataset, key)
        if ours != theirs:
            raise ConfigError(f"model.{key}={ours}, but data '{dataset.path}' has {theirs}; set model.{key}={theirs}.")
    return dataset


def choose_device(config: RunConfig, ranks: Ranks) -> torch.device:
    """`auto` takes a GPU where there is one, of several processes each its own. Raises ConfigError if there are too few."""
    wanted, there = config.execution.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("execution.device='cuda', but this process sees no GPU; use 'auto' or 'cpu'.")
    if wanted == "cpu" or not there:
        return torch.device("cpu")
    if ranks.size == 1:
        return torch.device("cuda")
    local, count = ranks.place.local, torch.cuda.device_count()
    if local >= count:
        raise ConfigError(f"process {local + 1} of a machine finds {count} GPUs there; start one process a GPU.")
    return torch.device("cuda", local)


def _set_up_torch(config: RunConfig, device: torch.device) -> None:
    torch.set_num_threads(config.execution.threads)
    torch.manual_seed(config.train.seed)
    if device.type == "cpu":
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would load torch's compiler as well
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
        if config.train.dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            log.warning("this processor has no fast bfloat16 products: train.dtype=float32 would be many times faster here")
    else:
        torch.backends.cuda.matmul.allow_tf32 = True


def _rng_states() -> dict[str, str]:
    """States of torch's generators as hex digits. (Data order needs none: it is a function of seed and step.)"""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: state.numpy().tobytes().hex() for name, state in states.items()}


def _restore_rng(states: dict[str, str]) -> None:
    for name, digits in states.items():
        state = torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available():
            torch.cuda.set_rng_state(state)
