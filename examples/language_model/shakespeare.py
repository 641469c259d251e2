"""Shakespeare as tokens of the stories models, to which a small language model is adapted.

Windows of 128 tokens, each after one that begins a text; the label of a token is the token after it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizer import BEGIN, Tokenizer
from torch import Tensor
from torch.nn import functional

SHARED = Path(__file__).resolve().parents[3] / "shared"
WINDOW, NO_LABEL = 128, -100
TRAINED_ON, HELD = 160, 32  # windows

Arrays = dict[str, NDArray[np.int64]]


def training() -> Arrays:
    """160 windows from the beginning of the training part: `tokens` and `next`, both [n, 128]."""
    return _windows("train", slice(0, 8000), TRAINED_ON)


def validation() -> Arrays:
    """32 windows of other plays, for choosing recipes."""
    return _windows("train", slice(30_000, None), HELD)


def evaluation() -> Arrays:
    """32 windows of the validation part of the file."""
    return _windows("val", slice(0, None), HELD)


def loss(scores: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats a token."""
    return float(functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL))


def _windows(part: str, lines: slice, count: int) -> Arrays:
    tokenizer = Tokenizer.load(SHARED / "models" / "stories260k_tokenizer.npz")
    with np.load(SHARED / "data" / "tinyshakespeare.npz") as arrays:
        chosen = arrays[part].tobytes().decode().splitlines()[lines]
    numbers = np.array([number for line in chosen for number in tokenizer.encode(line)])
    rows = numbers[: count * (WINDOW - 1)].reshape(count, WINDOW - 1)
    tokens = np.pad(rows, ((0, 0), (1, 0)), constant_values=BEGIN)
    return {"tokens": tokens, "next": np.pad(rows, ((0, 0), (0, 1)), constant_values=NO_LABEL)}
