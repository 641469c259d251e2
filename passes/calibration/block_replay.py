"""Runs of samples through a network block by block: memory holds the weights of one block and its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...ir import Graph, run
from ...ir.interpret import Observer, sizes_of_call
from ...ir.params import Params
from ..network_blocks import split_blocks
from .calibrate import Batch, check_samples


class BlockReplay:
    """Blocks that each read a constant of `wanted`, in order; the inputs of a block are the results of the blocks
    before it.

    Each sample that is needed later must run through every block. Lazy constants are read once for each block.
    """

    def __init__(self, graph: Graph, wanted: Collection[str], samples: Sequence[Batch]) -> None:
        check_samples(graph, samples)
        self._graph, self.count = graph, len(samples)
        self._sizes = [sizes_of_call(graph, sample) if graph.dimensions else {} for sample in samples]
        self._parts = split_blocks(graph, wanted)
        self._part = graph  # the last returned block
        self._values: dict[str, dict[int, Tensor]] = {v.name: {} for part in self._parts for v in part.inputs}
        for index, sample in enumerate(samples):
            self._keep(index, dict(zip((v.name for v in graph.inputs), sample, strict=True)))

    @property
    def parts(self) -> tuple[Graph, ...]:
        """All blocks, with constants that may be lazy."""
        return tuple(self._parts)

    def blocks(self, *, until: int | None = None) -> Iterator[Graph]:
        """The blocks, or the first `until`; each must be run on the samples before the next one."""
        for at, part in enumerate(self._parts[:until]):
            self._part = part
            yield replace(part, params=Params({name: part.params[name] for name in part.params}))
            later = {v.name for other in self._parts[at + 1 :] for v in other.inputs}
            for name in self._values.keys() - later:
                del self._values[name]

    def inputs(self, index: int) -> Batch:
        """Inputs of the last returned block for a sample."""
        return tuple(self._values[v.name][index] for v in self._part.inputs)

    def run(self, block: Graph, index: int, *, observe: Observer | None = None) -> None:
        """Runs that block, or a replacement of it, on a sample: its results are inputs of later blocks."""
        inputs = self.inputs(index)
        sizes = {name: self._sizes[index][name] for name in block.dimensions}
        block = block.at_sizes(sizes) if sizes else block
        with torch.no_grad():
            if observe is not None:
                for value, x in zip(block.inputs, inputs, strict=True):
                    observe(value, x)
            found = run(block, inputs, observe=observe)
        self._keep(index, dict(zip((v.name for v in self._part.outputs), found, strict=True)))

    def _keep(self, index: int, found: dict[str, Tensor]) -> None:
        for name in found.keys() & self._values.keys():
            self._values[name][index] = found[name]
