"""Perplexity of a small language model, and its size, with weights in float, eight and four bits.

    python examples/language_model/perplexity.py

Each row is an emitted torch module, scored on the story that the float model writes by itself, and on the first
windows of Shakespeare, which it was not made for.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizer import BEGIN, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import compile_model, text_table

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
SPEC = HERE / "stories.yaml"
WINDOW, WINDOWS = 256, 24
FORMS = {
    "float32": ["passes[1].layers={'**': float32}"],
    "int8, a scale for each output": ["passes[1].weights=int8", "passes[1].group_size=null"],
    "int8, groups of 32": ["passes[1].weights=int8"],
    "int4, groups of 32": [],
    "int4, embedding and output int8": ["passes[1].layers={tok_embeddings: int8}"],
}
COLUMNS = ("weights", "own story", "Shakespeare", "weight bytes", "file bytes")


def main() -> None:
    """The table."""
    torch.set_num_threads(1)
    story, shakespeare = own_story(), shakespeare_windows()
    rows = []
    for name, overrides in FORMS.items():
        compiled = compile_model(SPEC, overrides=overrides)
        assert compiled.torch is not None
        module = compiled.torch.build()
        weights = sum(
            t.nbytes
            for key, t in compiled.torch.tensors.items()
            if "norm" not in key and key not in {"cos", "sin"}
        )
        size = sum(len(content) for content in compiled.torch.files().values())
        scores = [perplexity(module, windows) for windows in (story, shakespeare)]
        rows.append((name, *(f"{score:.4f}" for score in scores), f"{weights:,}", f"{size:,}"))
    print(text_table(COLUMNS, rows))


def perplexity(module: nn.Module, windows: Sequence[Tensor]) -> float:
    """exp of the mean cross-entropy, in nats a token, of each token given those before it in its window."""
    total = 0.0
    with torch.no_grad():
        for tokens in windows:
            logits = module(tokens)
            total += float(functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))
    return math.exp(total / len(windows))


def own_story() -> list[Tensor]:
    """What the float model writes, taking the likeliest token each time: one window."""
    with np.load(SHARED / "models" / "stories260k_tokenizer.npz") as arrays:
        return [torch.from_numpy(arrays["greedy_ids"].astype(np.int64))[None]]


def shakespeare_windows() -> list[Tensor]:
    """Windows of the validation part, line by line, each window after a token that begins a text."""
    tokenizer = Tokenizer.load(SHARED / "models" / "stories260k_tokenizer.npz")
    with np.load(SHARED / "data" / "tinyshakespeare.npz") as arrays:
        lines = arrays["val"].tobytes().decode().splitlines()
    numbers: list[int] = []
    for line in lines:
        if len(numbers) >= WINDOWS * (WINDOW - 1):
            break
        numbers += tokenizer.encode(line)
    starts = range(0, WINDOWS * (WINDOW - 1), WINDOW - 1)
    return [torch.tensor([[BEGIN, *numbers[at : at + WINDOW - 1]]]) for at in starts]


if __name__ == "__main__":
    main()
