"""States that the emitted module updates in the memory of its arguments: caches to which rows are copied.

`index_copy` on an input that nothing else reads becomes `index_copy_`, so that a step does not copy the whole cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir import Graph, UnsupportedError
from ...ir.ops.put import IndexCopy
from .record import Recording

_METHOD = "torch.Tensor.index_copy"


def updated_in_place(graph: Graph, states: Mapping[str, str]) -> frozenset[str]:
    """Values that states become in place, by input, with the name of the output; UnsupportedError if that is
    impossible.
    """
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    updated = set()
    for name, output in states.items():
        value = outputs[output]
        producer = graph.producers.get(value.name)
        if producer is None or not isinstance(producer.op, IndexCopy) or value.type.is_quantized:
            raise UnsupportedError(
                f"state {name} cannot be in place: its output {output} is not an index_copy of floats"
            )
        if producer.operand("x").name != name or len(graph.users[name]) != 1:
            raise UnsupportedError(f"state {name} cannot be in place: {output} is not its only use")
        updated.add(value.name)
    return frozenset(updated)


def in_place(recording: Recording) -> Recording:
    """The calls of an index_copy that writes to its first argument."""
    calls = tuple(
        replace(call, function=f"{call.function}_") if call.function == _METHOD else call
        for call in recording.calls
    )
    return replace(recording, calls=calls)
