"""EleutherAI's lm-evaluation-harness decides as we do, item by item. Needs the extra `harness` (make harness)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lst.errors import ConfigError, DataError
from lst.evals.choice_run import run_choices
from lst.evals.choices import record_scores
from lst.evals.harness import harness_model, write_harness_task
from lst.evals.make_items import prepare_items
from lst.model import build_model, export_checkpoint
from lst.records import read_jsonl
from tests.evals.item_files import write_lines
from tests.train.tiny_run import tiny_config

INSTALLED = all(importlib.util.find_spec(name) for name in ("lm_eval", "accelerate", "peft"))
REASON = "needs lm-evaluation-harness: make harness"


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty items of four endings, of words in the tiny data set's letters."""
    folder = tmp_path_factory.mktemp("items")
    generator = np.random.Generator(np.random.Philox(key=9))

    def text(words: int) -> str:
        return " ".join("".join(generator.choice(list("abcdefghij"), generator.integers(2, 6))) for _ in range(words))

    lines = [
        {"ctx": text(8), "endings": [text(int(generator.integers(2, 7))) for _ in range(4)], "label": i % 4, "doc_id": i}
        for i in range(30)
    ]
    prepare_items({"eval": str(write_lines(folder / "val.jsonl", lines)), "out": str(folder / "set"), "format": "hellaswag"})
    return folder / "set"


def checkpoint(arm: str, data: Path, folder: Path) -> Path:
    torch.manual_seed(2)
    config = tiny_config(arm, data)
    return export_checkpoint(build_model(config), config, folder / arm)


def ours(source: Path, items: Path, out: Path) -> list[dict[str, Any]]:
    run_choices(source, {"items": str(items), "out": str(out), "directions": "T->T", "score": "loglik_sum"})
    return read_jsonl(out / "items.jsonl")


def theirs(model: Any, task: Path, **options: Any) -> list[dict[str, Any]]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task.parent), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task.stem], task_manager=manager, log_samples=True, bootstrap_iters=0, **options
    )
    samples = sorted(found["samples"][task.stem], key=lambda s: int(s["doc_id"]))
    return [{"acc": s["acc"], "logliks": [float(r[0]) for r in s["filtered_resps"]]} for s in samples]


def require_equal(records: list[dict[str, Any]], samples: list[dict[str, Any]], rel: float) -> None:
    assert len(records) == len(samples) == 30
    for record, sample in zip(records, samples, strict=True):
        assert record_scores(record)["loglik_sum"] == pytest.approx(sample["logliks"], rel=rel)
        assert record["correct"] == bool(sample["acc"])
    assert 0 < sum(r["correct"] for r in records) < 30


@pytest.mark.harness
@pytest.mark.skipif(not INSTALLED, reason=REASON)
@pytest.mark.parametrize("arm", ["baseline", "lst_static", "bpe"])
def test_the_harness_decides_as_we_do_on_any_arm(tiny_data: Path, items: Path, tmp_path: Path, arm: str) -> None:
    source = checkpoint(arm, tiny_data, tmp_path)
    task = write_harness_task(items, tmp_path / "task")
    require_equal(ours(source, items, tmp_path / "o"), theirs(harness_model(source), task), rel=1e-5)


@pytest.mark.harness
@pytest.mark.skipif(not INSTALLED, reason=REASON)
def test_the_exported_llama_in_the_harness_decides_as_we_do(tiny_data: Path, items: Path, tmp_path: Path) -> None:
    """Export, transformers' Llama and tokenizer, the harness's own model: nothing of ours but the weights."""
    from lst.model.huggingface import to_llama

    source = checkpoint("baseline", tiny_data, tmp_path)
    llama = to_llama(source, tmp_path / "llama")
    task = write_harness_task(items, tmp_path / "task", marker=True)
    options = {"pretrained": str(llama), "dtype": "float32", "add_bos_token": True, "device": "cpu"}
    require_equal(ours(source, items, tmp_path / "o"), theirs("hf", task, model_args=options, batch_size=4), rel=1e-4)


def test_a_task_of_the_harness_holds_the_items(items: Path, tmp_path: Path) -> None:
    file = write_harness_task(items, tmp_path / "task", marker=True)
    task = json.loads(file.read_text())
    assert (task["task"], task["doc_to_text"]) == ("val_marked", "<|text|> {{ctx}}")
    lines = read_jsonl(tmp_path / "task" / "items.jsonl")
    assert [line["label"] for line in lines] == [i % 4 for i in range(30)]
    assert all(len(line["endings"]) == 4 for line in lines)


def test_items_without_prompts_are_no_task_of_the_harness(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "pairs.jsonl", [{"endings": ["a b", "c"], "label": 0}])
    prepare_items({"eval": str(source), "out": str(tmp_path / "set")})
    with pytest.raises(ConfigError, match="has no prompts and endings as text"):
        write_harness_task(tmp_path / "set", tmp_path / "task")


def test_without_the_harness_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install lst-scaling\[harness\]"):
        harness_model(tmp_path)
