"""The weights of a model from a Hugging Face folder, stored as integers, as such a folder again.

Convention: compressed-tensors, format pack-quantized. The weight of a linear layer becomes

    weight_packed  int32 [out, ceil(in * bits / 32)], codes + 2^(bits-1), the first in the lowest bits
    weight_scale   [out, groups], either sign
    weight_shape   int64 [2]

and all other tensors are those of the source. `quantization_config` of config.json names bits, groups and layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..ir import Encoding, Entry, Graph, LazyTensor, Params, Value
from ..ir.ops.convert import Cast
from ..ir.ops.linear import Linear
from ..ir.tensor_files import shards
from ..specs import FolderSource
from ..specs.model_folder import CONFIG_FILE, read_config
from ..specs.options import CleanOptions, WeightOnlyOptions
from .errors import Problem, UserError
from .file_contents import Content
from .session import Session

_BITS = (4, 8)
_ROUNDINGS = ("nearest", "gptq")
_PLACE = "outputs.hf"
_SUFFIX = ".weight"


def emit_folder(session: Session, graph: Graph) -> dict[str, Content]:
    """Files of the folder, by name; UserError with everything that the convention cannot hold."""
    source, options = session.spec.model.source, session.spec.outputs.hf
    assert options is not None
    stored = {value.name: value for value in graph.constants if value.type.is_quantized}
    problems = [*_foreign(session), *(p for v in stored.values() for p in _unfit(session.captured, graph, v))]
    if problems:
        raise UserError(problems)
    assert isinstance(source, FolderSource)
    tensors = dict[str, Entry]()
    for name, entry in session.captured.params.entries.items():
        if name in stored:
            tensors |= _packed(graph, stored[name])
        elif isinstance(entry, LazyTensor):  # all others are made by capture
            tensors[name] = entry
    config = {**read_config(source.path), "quantization_config": _described(stored)}
    files: dict[str, Content] = {CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode()}
    files |= shards(Params(tensors), options.max_shard_bytes)
    copied = {path.name: path for path in source.files if path.suffix != ".safetensors"}
    return {name: path.read_bytes() for name, path in copied.items() if name not in _replaced(copied)} | files


def _replaced(names: Mapping[str, object]) -> set[str]:
    """Files of the source that describe its own weights."""
    return {name for name in names if name == CONFIG_FILE or name.endswith(".index.json")}


def _foreign(session: Session) -> Iterator[Problem]:
    """Passes after which other tensors of the folder than stored weights have changed."""
    if not isinstance(session.spec.model.source, FolderSource) or session.own_model:
        yield Problem(
            "B604", _PLACE, "the model is not from a folder", "write `source: hf:PATH`, or `outputs: torch`"
        )
    names = [step.pass_name() for step in session.spec.passes]
    if WeightOnlyOptions.pass_name() not in names:
        yield Problem("B604", _PLACE, "no pass stores weights as integers", "add `weight_only`")
    for index, step in enumerate(session.spec.passes):
        place = f"passes[{index}] ({step.pass_name()})"
        if isinstance(step, WeightOnlyOptions) and step.rounding.kind not in _ROUNDINGS:
            fact = f"rounding {step.rounding.kind} changes other tensors, too, or has zero points"
            yield Problem("B604", place, f"{_PLACE}: {fact}", f"use {' or '.join(_ROUNDINGS)}")
        if not isinstance(step, WeightOnlyOptions | CleanOptions):
            fact = "this pass changes tensors that the folder would take from its source"
            yield Problem("B604", place, f"{_PLACE}: {fact}", "leave it out, or write `outputs: torch`")


def _unfit(captured: Graph, graph: Graph, value: Value) -> Iterator[Problem]:
    """Reasons why the convention cannot hold a stored weight."""
    place, encoding = f"{_PLACE}, {value.name}", value.type.quantization
    assert encoding is not None
    keep = f"keep it as it is: `layers: {{{value.name.removesuffix(_SUFFIX)}: float32}}`"
    if value.name not in captured.params or not value.name.endswith(_SUFFIX):
        yield Problem("B604", place, "is not a tensor of the folder, but moved or computed from one", keep)
    readers = [*graph.users[value.name]]
    real = [r for node in readers for r in graph.users.get(node.output.name, ())]
    casts = [r for node in real if isinstance(node.op, Cast) for r in graph.users.get(node.output.name, ())]
    layers = [node for node in real if not isinstance(node.op, Cast)] + casts
    if not layers or not all(isinstance(node.op, Linear) for node in layers) or value.type.rank != 2:
        yield Problem("B604", place, "is not the weight of linear layers alone", keep)
    if encoding.levels is not None or encoding.bits not in _BITS:
        what = "codes of a table" if encoding.levels is not None else f"{encoding.bits} bits"
        yield Problem(
            "B604", place, f"has {what}; the convention takes {_BITS[0]} and {_BITS[1]}", "use int4 or int8"
        )
    if not encoding.is_symmetric:
        yield Problem("B604", place, "has zero points", f"use rounding {' or '.join(_ROUNDINGS)}")


def _packed(graph: Graph, value: Value) -> dict[str, Entry]:
    encoding, (rows, columns) = value.type.quantization, value.type.shape
    assert encoding is not None
    words = -(-columns * encoding.bits // 32)
    dtype = encoding.scale.dtype.torch

    def packed() -> Tensor:
        return pack_words(graph.tensor(value), encoding.bits)

    return {
        f"{value.name}_packed": LazyTensor((rows, words), torch.int32, packed),
        f"{value.name}_scale": encoding.scale.tensor(dtype).reshape(rows, -1),
        f"{value.name}_shape": torch.tensor([rows, columns]),
    }


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns] of 4 or 8 bits as int32 [rows, words], the first of a word in its lowest bits."""
    each = 32 // bits
    raised = torch.nn.functional.pad(codes.to(torch.int16) + (1 << (bits - 1)), (0, -codes.shape[1] % each))
    octets = raised.to(torch.uint8)
    if bits == _BITS[0]:
        octets = octets[:, ::2] | (octets[:, 1::2] << bits)
    return octets.contiguous().view(torch.int32)


def _described(stored: Mapping[str, Value]) -> dict[str, object]:
    """`quantization_config`: a group of layers for each bit width and group size."""
    groups = dict[tuple[int, int | None], list[str]]()
    for name, value in stored.items():
        encoding = value.type.quantization
        assert isinstance(encoding, Encoding)
        groups.setdefault((encoding.bits, encoding.group_size), []).append(name.removesuffix(_SUFFIX))
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {
            f"group_{index}": {
                "targets": names,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "channel" if size is None else "group",
                    "group_size": size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for index, ((bits, size), names) in enumerate(groups.items())
        },
    }
