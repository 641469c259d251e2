"""The integer weights of a model from a Hugging Face folder, written as such a folder.

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
from .errors import UserError
from .file_contents import Content
from .model_folder import read_beside
from .session import Session
from .stored_form import KEEP_FLOAT, WEIGHT_SUFFIX, StoredForm, Unfit

_FORM = StoredForm("B604", "outputs.hf")


def emit_folder(session: Session, graph: Graph) -> dict[str, Content]:
    """Files of the folder, by name; UserError with all tensors that the convention cannot hold."""
    source, options = session.spec.model.source, session.spec.outputs.hf
    assert options is not None
    stored = {value.name: value for value in graph.constants if value.type.is_quantized}
    problems = [
        *_FORM.foreign(session),
        *_FORM.problems(p for v in stored.values() for p in _unfit(session.captured, graph, v)),
    ]
    if problems:
        raise UserError(problems)
    assert isinstance(source, FolderSource)
    tensors = dict[str, Entry]()
    for name, entry in session.captured.params.entries.items():
        if name in stored:
            tensors |= _packed(graph, stored[name])
        elif isinstance(entry, LazyTensor):  # all other tensors are created by capture
            tensors[name] = entry
    config = {**read_config(source.path), "quantization_config": _described(stored, options.format)}
    files: dict[str, Content] = {CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode()}
    files |= shards(Params(tensors), options.max_shard_bytes)
    copied = {path.name: path for path in source.files if path.suffix != ".safetensors"}
    kept = {name: path for name, path in copied.items() if name not in _replaced(copied)}
    for path in kept.values():
        if path.suffix == ".json":
            read_beside(path)
    return {name: path.read_bytes() for name, path in kept.items()} | files


def _replaced(names: Mapping[str, object]) -> set[str]:
    """Files of the source that describe its own weights."""
    return {name for name in names if name == CONFIG_FILE or name.endswith(".index.json")}


def _unfit(captured: Graph, graph: Graph, value: Value) -> Iterator[Unfit]:
    """Reasons why the convention cannot hold a stored weight."""
    yield from _FORM.unfit(captured, graph, value)
    readers = [*graph.users[value.name]]
    real = [r for node in readers for r in graph.users.get(node.output.name, ())]
    casts = [r for node in real if isinstance(node.op, Cast) for r in graph.users.get(node.output.name, ())]
    layers = [node for node in real if not isinstance(node.op, Cast)] + casts
    if not layers or not all(isinstance(node.op, Linear) for node in layers) or value.type.rank != 2:
        yield Unfit(value.name, "is not only the weight of linear layers", KEEP_FLOAT)


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
    if bits == 4:
        octets = octets[:, ::2] | (octets[:, 1::2] << bits)
    return octets.contiguous().view(torch.int32)


def _described(stored: Mapping[str, Value], convention: str) -> dict[str, object]:
    """`quantization_config`: a group of layers for each bit width and group size."""
    groups = dict[tuple[int, int | None], list[str]]()
    for name, value in stored.items():
        encoding = value.type.quantization
        assert isinstance(encoding, Encoding)
        groups.setdefault((encoding.bits, encoding.group_size), []).append(name.removesuffix(WEIGHT_SUFFIX))
    return {
        "quant_method": convention,
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
