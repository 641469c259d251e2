"""Resident memory and seconds to compile a large module with weight-only quantization, and to write the result.

    python benchmarks/compiled_memory.py                  # 16 layers of 4096 x 4096 in float32: 1.07 GB
    python benchmarks/compiled_memory.py --meta           # the same on the meta device, its weights in a file
    python benchmarks/compiled_memory.py --layers 64

What the compilation adds to the module is the graph of integers, its check against the emitted module, and one tensor
at a time for the files. Of a module on the meta device the weights are read when they are used.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from fxpress.compiler import capture, compile_model, text_table
from fxpress.ir import Graph, LazyTensor, Params, open_tensors, write_tensors

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--meta", action="store_true", help="the module on the meta device")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers: int = options.layers
    rows: list[tuple[str, str, str]] = []
    x, passes = torch.zeros(1, TOKENS, WIDTH), [{"pass": "weight_only", "weights": "int8"}]
    with tempfile.TemporaryDirectory() as folder:
        if options.meta:
            weights = Path(folder) / "weights.safetensors"
            _measured(rows, "weights file", lambda: write_tensors(weights, _random_weights(layers)))
            graph = _measured(rows, "capture", lambda: _captured(layers, x, open_tensors(weights)))
            compiled = _measured(
                rows, "compile", lambda: compile_model(graph, passes=passes, outputs="torch")
            )
        else:
            net = _measured(rows, "module", lambda: nn.Sequential(*(Block() for _ in range(layers))).eval())
            compiled = _measured(
                rows, "compile", lambda: compile_model(net, inputs=x, passes=passes, outputs="torch")
            )
        _measured(rows, "write", lambda: compiled.write(Path(folder) / "out"))
    print(f"{layers * WIDTH * WIDTH * 4 / 1e9:.2f} GB of weights in float32")
    print(text_table(("step", "seconds", "peak MB"), rows))


def _random_weights(layers: int) -> Params:
    """Weights by the names of the state dict, made when they are read."""

    def drawn() -> Tensor:
        weight: Tensor = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
        return weight

    names = [f"{index}.linear.weight" for index in range(layers)]
    return Params({name: LazyTensor((WIDTH, WIDTH), torch.float32, drawn) for name in names})


def _captured(layers: int, x: Tensor, weights: Params) -> Graph:
    with torch.device("meta"):
        net = nn.Sequential(*(Block() for _ in range(layers))).eval()
    return capture(net, (x,), params=weights).graph


def _measured(rows: list[tuple[str, str, str]], step: str, work: Callable[[], Result]) -> Result:
    start = time.perf_counter()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append((step, f"{time.perf_counter() - start:.1f}", f"{peak:,.0f}"))
    return result


if __name__ == "__main__":
    main()
