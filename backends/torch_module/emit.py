"""Graph to torch module and back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...ir import Graph, UnsupportedError
from .artifact import TorchArtifact
from .forward import FloatStyle
from .layout import Layout, plan_layout
from .names import identifier
from .source import write_source

Form = Literal["float", "qdq", "eager"]


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How to emit. `buffers` names constants that are not trained although they are floating point."""

    form: Form = "float"
    name: str = "Model"
    buffers: Collection[str] = ()


def emit(graph: Graph, options: TorchOptions = TorchOptions()) -> TorchArtifact:
    """The graph as a readable torch module: one Python file and its tensors.

    The float form computes the bits of `ir.run`. UnsupportedError when the form does not fit the graph.
    """
    if any(value.type.is_quantized for node in graph.nodes for value in (*node.operands, *node.outputs)):
        raise UnsupportedError("the graph is quantized; emit it in form 'qdq' or 'eager'")
    layout = plan_layout(graph, buffers=options.buffers)
    name = class_name(options.name)
    source = write_source(graph, layout, FloatStyle(), name=name, weights="model.safetensors")
    return TorchArtifact(name, source, _tensors(graph, layout), _aliases(layout))


def to_module(graph: Graph, *, form: Form = "float", buffers: Collection[str] = ()) -> nn.Module:
    """The graph as an `nn.Module` in evaluation mode; see `emit`."""
    return emit(graph, TorchOptions(form, buffers=buffers)).build()


def read_back(graph: Graph, module: nn.Module) -> Graph:
    """`graph` with its constants taken from a module that was emitted from it and trained since."""
    state = module.state_dict(keep_vars=False)
    constants = {
        name: state[key].detach().to("cpu", copy=True)
        for name, key in plan_layout(graph).keys.items()
        if key in state
    }
    return graph.with_params(constants)


def class_name(name: str) -> str:
    """`name` as a class name."""
    cleaned = identifier(name, fallback="Model")
    return cleaned[0].upper() + cleaned[1:]


def _tensors(graph: Graph, layout: Layout) -> dict[str, Tensor]:
    """The emitted module's state, in the order of keys: the graph's constants and the counters beside them."""
    tensors = {key: graph.params[name].detach() for name, key in layout.keys.items()}
    for layer in layout.layers.values():
        for counter in layer.kind.counters:
            tensors[layout.names.state_key((*layer.path, counter))] = torch.zeros((), dtype=torch.int64)
    return dict(sorted(tensors.items()))


def _aliases(layout: Layout) -> dict[str, str]:
    """Keys of tensors that are tied to another, with that other's key."""
    keys = layout.keys
    own = {
        layout.names.state_key((*layer.path, attribute)): keys[constant]
        for layer in layout.layers.values()
        for attribute, constant in layer.constants
    }
    return {key: owner for key, owner in own.items() if key != owner}
