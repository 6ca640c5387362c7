"""The training loop of one run in one process: step, record, evaluate, save; resume to the bit.

A step is: the global batch of the step, micro-batch by micro-batch; losses summed and divided by the batch's predicted
tokens; clip; AdamW at the schedule's learning rate. Records of a step are written before the checkpoint that holds it, so
that a resumed run drops what its checkpoint does not know and writes it again, equal. Not here: the model (lst.model), the
data (lst.data.stream), what a folder contains (docs/run_folder.md), more than one process (later: `accumulate_gradients`
takes the global count of predicted tokens, and `Stream.batch` the global batch).
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lst.config import RunConfig
from lst.data.shards import Dataset, open_dataset
from lst.data.stream import Stream
from lst.errors import ConfigError, DataError
from lst.evals.evaluate import Evaluation, evaluation_steps
from lst.flops import SequenceCounts, parameter_counts, training_flops
from lst.model import Batch, build_model
from lst.model.attention import use_backend
from lst.model.warm_start import describe, warm_start
from lst.records import EVAL_RECORDS, EXIT, ITEM_RECORDS, TRAIN_RECORDS, JsonLinesWriter, iter_jsonl, write_json
from lst.schedule import learning_rate
from lst.train.checkpoint import TrainState, resume, save_checkpoint, save_final
from lst.train.failures import Diverged
from lst.train.folder import versions
from lst.train.layout import clean_up, flush_to_disk
from lst.train.losses import LossSums, accumulate_gradients
from lst.train.metrics import EVAL_COUNTS, ProgressLog, eval_record, spent, train_record, wall_clock
from lst.train.optim import AdamW
from lst.train.signals import Stopped, StopRequest

log = logging.getLogger(__name__)


class Trainer:
    """One attempt of a run. `state` says how far it is, also after an exception."""

    def __init__(self, run_dir: Path, config: RunConfig, *, attempt: int, stop: StopRequest) -> None:
        """Builds data, model and optimiser, and resumes. Raises DataError, ConfigError or CheckpointError."""
        self.run_dir, self.config, self.attempt, self.stop = run_dir, config, attempt, stop
        self.state = TrainState(run_id=config.run_id)
        dataset = open_run_dataset(config)
        self.device = choose_device(config)
        _set_up_torch(config, self.device)
        self.stream = Stream(dataset, config)
        self.evaluation = Evaluation(dataset, config)
        self.model = build_model(config).to(self.device).train()
        use_backend(self.model, config.execution.attention)
        self.optimizer = AdamW(self.model, config.optim)
        self.state = resume(run_dir, model=self.model, optimizer=self.optimizer, config=config)
        if config.train.init_from and not self.state.warm_start:
            self.state.warm_start = warm_start(self.model, config)
            log.info(describe(self.state.warm_start, config.execution.init_path))
        _restore_rng(self.state.rng)
        self.evaluation_steps = evaluation_steps(config.train.steps, config.evaluation)
        self._saved_step = self._saved_evaluation = -1
        self._saved_time = self._clock = time.monotonic()
        self._open_records()

    def run(self) -> None:
        """Train to the end. Raises Stopped after saving if asked to stop, Diverged on a loss that is no number."""
        steps, state = self.config.train.steps, self.state
        progress = ProgressLog(steps, state.step)
        try:
            self._evaluate_if_due()
            while state.step < steps:
                self.stop.check()
                record = self.train_step()
                if state.step % self.config.execution.log_every == 0 or state.step == steps:
                    self.train_records.write(record)
                progress.step(record)
                self._evaluate_if_due()
                if state.step < steps and time.monotonic() - self._saved_time >= self.config.execution.checkpoint_every_seconds:
                    self.save()
        except Stopped:
            self.save()
            raise
        finally:
            for records in (self.train_records, self.eval_records, self.item_records):
                records.close()
        self._finish()

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; its record."""
        started, state, config = time.perf_counter(), self.state, self.config
        packed = self.stream.batch(state.step)
        counts = packed.counts
        parts = [Batch.from_packed(part, self.device) for part in packed.split(config.execution.micro_batch_tokens)]
        data_seconds = time.perf_counter() - started
        losses = LossSums()
        self.optimizer.zero_grad()
        for part in parts:
            losses += accumulate_gradients(self.model, part, predicted=int(counts.predicted), dtype=config.train.dtype)
        grad_norm = self.optimizer.clip_gradients()
        if not (math.isfinite(losses.nats) and math.isfinite(grad_norm)):
            raise Diverged(
                f"the loss of step {state.step + 1} is {losses.nats / losses.tokens} and its gradient norm {grad_norm}; "
                f"lower optim.lr={config.optim.lr} or raise optim.warmup_steps={config.optim.warmup_steps}."
            )
        lr = learning_rate(state.step, steps=config.train.steps, optim=config.optim)
        self.optimizer.step(lr)
        self._advance(counts)
        clock = wall_clock(
            seconds=time.perf_counter() - started, data_seconds=data_seconds, tokens=counts.tokens, device=self.device
        )
        return train_record(state, losses=losses, lr=lr, grad_norm=grad_norm, batch_hash=packed.hash, clock=clock)

    def save(self) -> None:
        """Save a checkpoint of the current step, unless that is what was saved last."""
        if (self.state.step, self.state.evaluated_step) != (self._saved_step, self._saved_evaluation):
            for name in (TRAIN_RECORDS, EVAL_RECORDS, ITEM_RECORDS):
                flush_to_disk(self.run_dir / name)  # what the checkpoint counts on is on the disk before it
            self._count_seconds()
            self.state.rng = _rng_states()
            save_checkpoint(self.run_dir, model=self.model, optimizer=self.optimizer, config=self.config, state=self.state)
            self._saved_step, self._saved_evaluation = self.state.step, self.state.evaluated_step
        self._saved_time = time.monotonic()

    def _advance(self, counts: SequenceCounts) -> None:
        state = self.state
        state.step += 1
        state.train_flops += training_flops(self.config, counts).total
        state.counts = asdict(SequenceCounts(**state.counts) + counts)

    def _evaluate_if_due(self) -> None:
        """Evaluate after the current step if the run wants it and has not done it; all records are written at once."""
        state, lr = self.state, self.config.optim.lr
        if state.step not in self.evaluation_steps or state.evaluated_step >= state.step:
            return
        results = self.evaluation.run(self.model, self.device, final=state.step == self.config.train.steps, stop=self.stop.check)
        for metric in results.metrics:
            if not math.isfinite(metric.value):
                raise Diverged(f"{metric.task} {metric.metric} is {metric.value} after step {state.step}; lower optim.lr={lr}.")
            self.eval_records.write(eval_record(state, metric))
            log.info("step %s  %s %s %s = %.4f", f"{state.step:,}", metric.task, metric.direction, metric.metric, metric.value)
        for item in results.items:
            self.item_records.write({"step": state.step} | item)
        state.evaluated_step = state.step

    def _open_records(self) -> None:
        """Open the record files at the resumed step; the time of training that is lost is counted all the same."""
        state, folder = self.state, self.run_dir
        lost = sum(r.get("seconds", 0.0) for r in iter_jsonl(folder / TRAIN_RECORDS) if r["step"] > state.step)
        state.seconds += lost
        self.train_records = JsonLinesWriter(folder / TRAIN_RECORDS, last_step=state.step)
        self.eval_records = JsonLinesWriter(folder / EVAL_RECORDS, last_step=state.evaluated_step)
        self.item_records = JsonLinesWriter(folder / ITEM_RECORDS, last_step=state.evaluated_step)
        self._clock = time.monotonic()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now

    def _finish(self) -> None:
        """Keep the weights, and say last of all that the run is done."""
        state = self.state
        self._count_seconds()
        save_final(self.run_dir, model=self.model, config=self.config)
        ended = {
            "run_id": state.run_id,
            "status": "done",
            "step": state.step,
            **spent(state, EVAL_COUNTS),
            "seconds": round(state.seconds, 3),
            "attempts": self.attempt,
            "versions": versions(),
            "num_params": parameter_counts(self.config.model),
            **({"warm_start": state.warm_start} if state.warm_start else {}),
        }
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


def choose_device(config: RunConfig) -> torch.device:
    """`auto` takes a GPU where there is one. Raises ConfigError if cuda is asked for and there is none."""
    wanted, there = config.execution.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("execution.device='cuda', but this process sees no GPU; use 'auto' or 'cpu'.")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and there) else "cpu")


def _set_up_torch(config: RunConfig, device: torch.device) -> None:
    torch.set_num_threads(config.execution.threads)
    torch.manual_seed(config.train.seed)
    if device.type == "cpu":
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would load torch's compiler as well
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
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
