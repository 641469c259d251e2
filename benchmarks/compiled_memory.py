"""Resident memory and seconds to compile a large module with weight-only quantization, and to write the result.

    python benchmarks/compiled_memory.py [LAYERS]      # 16 layers of 4096 x 4096 in float32: 1.07 GB

What the compilation adds to the module is the graph of integers, its check against the emitted module, and one tensor
at a time for the files.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fxpress.compiler import compile_model, text_table

LAYERS, WIDTH, TOKENS = 16, 4096, 4
Result = TypeVar("Result")


class Block(nn.Module):
    """A residual linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


def main() -> None:
    torch.set_num_threads(1)
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else LAYERS
    rows: list[tuple[str, str, str]] = []
    net = _measured(rows, "module", lambda: nn.Sequential(*(Block() for _ in range(layers))).eval())
    x, passes = torch.zeros(1, TOKENS, WIDTH), [{"pass": "weight_only", "weights": "int8"}]
    compiled = _measured(
        rows, "compile", lambda: compile_model(net, inputs=x, passes=passes, outputs="torch")
    )
    with tempfile.TemporaryDirectory() as folder:
        _measured(rows, "write", lambda: compiled.write(Path(folder) / "out"))
    print(f"{layers * WIDTH * WIDTH * 4 / 1e9:.2f} GB of weights in float32")
    print(text_table(("step", "seconds", "peak MB"), rows))


def _measured(rows: list[tuple[str, str, str]], step: str, work: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append((step, f"{time.perf_counter() - start:.1f}", f"{peak:,.0f}"))
    return result


if __name__ == "__main__":
    main()
