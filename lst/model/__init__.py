"""The networks in torch: build one, make a batch by hand, compute logits, generate.

config = arm_config("lst_static", size="tiny")
model = build_model(config)
batch = make_batch([[("text", [12, 7]), ("speech", [3, 3, 90, 41, 7, 7]), ("text", [5])]], config)
logits_BTV = model(batch)                    # logits[b, t] predicts batch.ids_BT[b, t + 1]
[result] = generate(model, config, [[("text", [12, 7])]], direction="T->S", max_tokens=20)
"""

from lst.model.batch import Batch, make_batch
from lst.model.build import build_model, count_parameters
from lst.model.export import export_checkpoint, load_checkpoint
from lst.model.generate import Generation, generate

__all__ = [
    "Batch",
    "Generation",
    "build_model",
    "count_parameters",
    "export_checkpoint",
    "generate",
    "load_checkpoint",
    "make_batch",
]
