"""The Latent Speech-Text Transformer: configuration, FLOPs, data, model, training and evaluation of one run.

This package knows one run at a time. It is not the planner (`sweeps`), the launcher (`launch`), the fitter
(`analysis`) or the report (`reports`), and imports none of them. Importing `lst` does not import torch.
"""

__version__ = "0.1.0"
