"""Texts of stories260k, the language model of examples/language_model, for methods of weights and activations."""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

LANGUAGE_MODEL = Path(__file__).resolve().parent.parent / "language_model"
SPEC = LANGUAGE_MODEL / "stories.yaml"

_FIRST_SEED = {"calibration": 100, "validation": 200, "evaluation": 300}


@cache
def drawn(part: str, seed: int, *, count: int = 32) -> Tensor:
    """Texts [count, 256] that the model writes itself, other ones for each part and seed."""
    sys.path.insert(0, str(LANGUAGE_MODEL))
    try:
        texts = import_module("texts")
    finally:
        sys.path.remove(str(LANGUAGE_MODEL))
    return torch.from_numpy(texts.sampled(count, seed=_FIRST_SEED[part] + seed))
