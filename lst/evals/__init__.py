"""Evaluation of a model: held-out losses and story completion."""
