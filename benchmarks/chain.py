"""Seconds of one core to capture, verify, clean and fuse chains of layers: they must grow linearly with the length.

python benchmarks/chain.py [1000 5000]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fxpress.compiler import capture, text_table
from fxpress.ir import Graph, dump, parse, verify
from fxpress.passes import find_pass

LENGTHS = (1000, 5000)
Result = TypeVar("Result")


class Chain(nn.Module):
    """Half as many linear layers as nodes, each with an activation after it."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(nodes // 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def main() -> None:
    torch.set_num_threads(1)
    capture(Chain(10), (torch.randn(1, 4),))  # torch's tracer loads on first use
    rows = [_row(nodes) for nodes in map(int, sys.argv[1:] or LENGTHS)]
    print(
        text_table(
            ("nodes", "capture s", "verify s", "clean s", "fuse s", "dump, parse s", "all s", "ms a node"),
            rows,
        )
    )


def _row(nodes: int) -> tuple[str, ...]:
    captured, capturing = _timed(lambda: capture(Chain(nodes), (torch.randn(1, 4),)))
    graph, verifying = _timed(lambda: verify(captured.graph))
    cleaned, cleaning = _timed(lambda: _apply("clean", graph))
    fused, fusing = _timed(lambda: _apply("fuse", cleaned))
    _, writing = _timed(lambda: parse(dump(fused), params=fused.params))
    seconds = (capturing, verifying, cleaning, fusing, writing)
    whole = sum(seconds)
    return (f"{nodes:,}", *(f"{s:.2f}" for s in (*seconds, whole)), f"{whole / nodes * 1e3:.1f}")


def _apply(name: str, graph: Graph) -> Graph:
    chosen = find_pass(name)
    return chosen(graph, chosen.options()).graph


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
