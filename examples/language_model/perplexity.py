"""Perplexity of a small language model, and its size, with weights in float, eight, four and fewer bits.

    python examples/language_model/perplexity.py

Each row is an emitted torch module, scored on the story that the float model writes by itself, and on the first
windows of Shakespeare, which it was not made for. KL is the mean divergence from the float model, in nats a token, on
24 texts that the float model samples, other ones than those for calibration.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from texts import float_model, sampled
from tokenizer import BEGIN, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import compile_model, text_table

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
SPEC, SMALL = HERE / "stories.yaml", HERE / "small.yaml"
CALIBRATION = f"data.calibration={{source: {HERE / 'texts.py'}:calibration}}"
WINDOW, WINDOWS = 256, 24
_GPTQ, _NO_TRAINING = "passes[1].rounding=gptq", "passes[2].epochs=0"
FORMS = {
    "float32": (SPEC, ["passes[1].layers={'**': float32}"]),
    "int8, a scale for each output": (SPEC, ["passes[1].weights=int8", "passes[1].group_size=null"]),
    "int8": (SPEC, ["passes[1].weights=int8"]),
    "int4": (SPEC, []),
    "int4, embedding int8": (SPEC, ["passes[1].layers={tok_embeddings: int8}"]),
    "int4, embedding int8, GPTQ": (SPEC, ["passes[1].layers={tok_embeddings: int8}", _GPTQ, CALIBRATION]),
    "int3, embedding int8": (SPEC, ["passes[1].weights=int3", "passes[1].layers={tok_embeddings: int8}"]),
    "int3, embedding int8, GPTQ": (
        SPEC,
        ["passes[1].weights=int3", "passes[1].layers={tok_embeddings: int8}", _GPTQ, CALIBRATION],
    ),
    "136 kB, GPTQ": (SMALL, [_NO_TRAINING]),
    "136 kB, GPTQ, trained": (SMALL, []),
}
COLUMNS = ("weights", "KL", "own story", "Shakespeare", "constant bytes", "file bytes")


def main() -> None:
    """The table."""
    torch.set_num_threads(1)
    story, shakespeare = own_story(), shakespeare_windows()
    texts = torch.from_numpy(sampled(24, seed=1))
    model = float_model()
    rows = []
    for name, (spec, overrides) in FORMS.items():
        compiled = compile_model(spec, overrides=overrides)
        assert compiled.torch is not None
        module = compiled.torch.build()
        (section,) = (s for s in compiled.report.passes if s.name == "weight_only")
        (summary,) = (table for table in section.tables if table.name == "summary")
        (weights,) = (row[1] for row in summary.rows if row[0] == "constant_bytes_after")
        size = sum(len(content) for content in compiled.torch.files().values())
        scores = [perplexity(module, windows) for windows in (story, shakespeare)]
        divergence = f"{mean_divergence(model, module, texts):.4f}"
        rows.append((name, divergence, *(f"{score:.4f}" for score in scores), f"{weights:,}", f"{size:,}"))
    print(text_table(COLUMNS, rows))


def mean_divergence(model: nn.Module, module: nn.Module, texts: Tensor) -> float:
    """Kullback-Leibler divergence of the module's next-token distributions from the model's, in nats a token."""
    total = 0.0
    with torch.no_grad():
        for text in texts:
            p, q = (network(text[None]).log_softmax(-1) for network in (model, module))
            total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(texts)


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
