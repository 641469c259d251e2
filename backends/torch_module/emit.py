"""Conversion of a graph to a torch module and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ...ir import Entry, Graph, LazyTensor, Params, UnsupportedError, Value, decode_codebooks
from ...ir.graph import check_graph
from ...ir.tensor_files import INDEX_FILE, shards
from ...specs.root_error import ArgumentError, expect, shown
from ..repeated_heads import group_repeated_heads
from .artifact import TorchArtifact
from .eager import EagerStyle
from .in_place import updated_in_place
from .layout import Layout, plan_layout
from .names import identifier
from .native import NativeStyle
from .qdq import QdqStyle
from .source import write_source
from .style import FloatStyle, Style
from .weight_only import WeightOnlyStyle, is_weight_only, packed_weight

Form = Literal["float", "qdq", "eager", "native"]


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """Options of the torch backend.

    `buffers`: floating-point constants that are not trained. `max_shard_bytes`: largest number of bytes of tensors in
    one file of weights; None: all are in one file. `in_place`: inputs whose memory an output takes, with its name, such
    as the caches of a language model.
    """

    form: Form = "float"
    name: str = "Model"
    buffers: Collection[str] = ()
    max_shard_bytes: int | None = None
    in_place: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            known = ", ".join(get_args(Form))
            raise ArgumentError(
                "TorchOptions(form)", f"unknown form {shown(self.form)}", f"there are {known}"
            )
        if self.max_shard_bytes is not None and self.max_shard_bytes < 1:
            fact = f"{shown(self.max_shard_bytes)} is not a number of bytes above zero"
            raise ArgumentError("TorchOptions(max_shard_bytes)", fact, "remove it for one file")


def emit(graph: Graph, options: TorchOptions = TorchOptions()) -> TorchArtifact:
    """The graph as a readable torch module: one Python file and its tensors.

    The float form computes the same bits as `ir.run`; the others are within one step of `ir.run_integer` at each
    requantization, and the native form is exact for most operators. UnsupportedError if the form does not support the
    graph, or if states cannot be updated in place.
    """
    check_graph(graph, "emit(graph, options)")
    expect(options, TorchOptions, "emit(graph, options)", "`TorchOptions`", 'for example TorchOptions("qdq")')
    graph = group_repeated_heads(decode_codebooks(graph))
    style = _style(graph, options.form)
    layout = plan_layout(graph, style, buffers=options.buffers)
    name = class_name(options.name)
    tensors, limit = _tensors(graph, layout, style), options.max_shard_bytes
    is_sharded = INDEX_FILE in shards(tensors, limit)
    updated = updated_in_place(graph, options.in_place)
    source = write_source(graph, layout, style, name=name, is_sharded=is_sharded, updated=updated)
    return TorchArtifact(name, source, tensors, _aliases(layout), style.notes, limit)


def to_module(graph: Graph, *, form: Form = "float", buffers: Collection[str] = ()) -> nn.Module:
    """The graph as an `nn.Module` in evaluation mode; see `emit`."""
    return emit(graph, TorchOptions(form, buffers=buffers)).build()


def read_back(graph: Graph, module: nn.Module) -> Graph:
    """`graph` with its constants from a module that was emitted from it in float form and then trained."""
    style = _style(graph, "float")
    state = module.state_dict()
    keys = plan_layout(graph, style).keys
    return graph.with_params({name: state[key].detach().to("cpu", copy=True) for name, key in keys.items()})


def class_name(name: str) -> str:
    """`name` as a class name."""
    cleaned = identifier(name, fallback="Model")
    return cleaned[0].upper() + cleaned[1:]


def _style(graph: Graph, form: Form) -> Style:
    if form == "qdq":
        return QdqStyle(graph)
    if form == "eager":
        return EagerStyle(graph)
    if form == "native":
        return NativeStyle(graph)
    if is_weight_only(graph):
        return WeightOnlyStyle(graph)
    if any(value.type.is_quantized for node in graph.nodes for value in (*node.operands, *node.outputs)):
        raise UnsupportedError("the graph is quantized; emit it in form 'qdq', 'eager' or 'native'")
    return FloatStyle()


def _tensors(graph: Graph, layout: Layout, style: Style) -> Params:
    """The emitted module's state by key, sorted: the graph's constants, and tensors that layers and the form add."""
    keys = layout.keys
    tensors = {keys[value.name]: _stored(graph, value, layout) for value in graph.constants}
    for layer in layout.layers.values():
        tensors |= {
            layout.names.state_key((*layer.path, name)): tensor for name, tensor in layer.kind.state.items()
        }
    tensors |= {layout.names.state_key(path): tensor for path, tensor in style.buffers.items()}
    return Params(dict(sorted(tensors.items())))


def _stored(graph: Graph, value: Value, layout: Layout) -> Entry:
    """Integers where a layer computes with them, packed if it requires that, reals everywhere else.

    A tensor that is not stored as in the graph is computed at each use.
    """
    encoding, shape = value.type.quantization, value.type.shape
    if encoding is not None and value.name in layout.packed_weights:
        return packed_weight(value.type, lambda: graph.tensor(value))
    if encoding is None or value.name in layout.integer_weights:
        entry = graph.params.entry(value.name)
        return entry.detach() if isinstance(entry, Tensor) else entry
    return LazyTensor(shape, torch.float32, lambda: encoding.dequantize(graph.tensor(value)))


def _aliases(layout: Layout) -> dict[str, str]:
    """Keys of tensors that are tied to another, with that other's key."""
    keys = layout.keys
    own = {
        layout.names.state_key((*layer.path, attribute)): keys[constant]
        for layer in layout.layers.values()
        for attribute, constant in layer.constants
    }
    return {key: owner for key, owner in own.items() if key != owner}
