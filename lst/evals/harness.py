"""An external check: EleutherAI's lm-evaluation-harness on our checkpoints and items (extra `harness`, T->T only).

    from lst.evals.harness import harness_model, write_harness_task
    import lm_eval

    task = write_harness_task("items/hellaswag", "harness")       # harness/items.jsonl and harness/<task>.yaml
    found = lm_eval.simple_evaluate(model=harness_model("my-model"), tasks=[task], log_samples=True)

The harness makes the prompts, asks for log-likelihoods of continuations, and decides itself; the model behind it is ours, of any
arm. Its `acc` decides by our loglik_sum. For arms baseline and bpe the check goes further, without any code of ours: the Llama
folder of `python -m lst.weights to-llama` in the harness's own `hf` model (docs/evaluation.md).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lst.errors import ConfigError, DataError

TEXT_MARKER = "<|text|>"  # begins text in an exported Llama's tokenizer (lst.model.huggingface)


def harness_model(
    source: str | Path, *, data: str = "", device: str = "auto", dtype: str = "float32", batch_tokens: int = 0
) -> Any:
    """A `lm_eval.api.model.LM` of the checkpoint `source`. Raises DataError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError("the check by lm-evaluation-harness needs the package 'lm-eval'; run: pip install lst-scaling[harness]")
    from lm_eval.api.model import LM

    from lst.evals.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(Path(source), data=data, device=device, dtype=dtype, batch_tokens=batch_tokens)

    class HarnessModel(LM):  # type: ignore[misc]  # no stubs
        """Log-likelihoods of texts, prompt and continuation tokenised apart as in lst.evals.choices."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return _logliks(checkpoint, dtype, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [loglik for loglik, _ in _logliks(checkpoint, dtype, [("", *request.args) for request in requests])]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise ConfigError("this check scores texts; for generation use lst.model.generate.")

    return HarnessModel()


def _logliks(checkpoint: Any, dtype: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(log-likelihood of the continuation after the context, whether it is what greedy decoding would give).

    The second is not computed, and False: no choice task asks for it.
    """
    from lst.data.interleave import Segment
    from lst.evals.scoring import Scorer

    scorer = Scorer(checkpoint.model, checkpoint.config, device=checkpoint.device, dtype=dtype)
    encode = checkpoint.dataset.tokenizer.encode
    parts = [[np.asarray(encode(text.strip()), np.int64) for text in pair] for pair in pairs]
    documents = [[Segment("text", np.concatenate(part))] for part in parts]
    scored = scorer.score(documents, first=[1 + len(context) for context, _ in parts])
    return [(-float(s.nats_T[1 + len(c) :].sum()), False) for s, (c, _) in zip(scored, parts, strict=True)]


def write_harness_task(items: str | Path, folder: str | Path, *, marker: bool = False) -> Path:
    """A T->T item set with prompts as a task of the harness: JSON lines and a YAML file, whose path is returned.

    With `marker` a prompt begins with the marker of text, as an exported Llama's tokenizer spells it.
    """
    from lst.evals.item_set import open_item_set

    opened, out = open_item_set(str(items)), Path(folder)
    rows = opened.table.to_pylist()
    if "T->T" not in opened.directions or not all(row["prompt"] for row in rows):
        raise ConfigError(f"item set '{opened.path}' has no prompts and endings as text; the harness scores these.")
    out.mkdir(parents=True, exist_ok=True)
    lines = [{"id": r["id"], "ctx": r["texts"][0], "endings": r["texts"][1:], "label": r["right"]} for r in rows]
    (out / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    start = f"{TEXT_MARKER} " if marker else ""
    task = {
        "task": f"{opened.task}_{'marked' if marker else 'text'}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str((out / "items.jsonl").resolve())}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": start + "{{ctx}}",
        "doc_to_choice": "endings",
        "doc_to_target": "label",
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
        "metadata": {"version": opened.items_id},
    }
    file = out / f"{task['task']}.yaml"
    file.write_text(json.dumps(task, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    return file
