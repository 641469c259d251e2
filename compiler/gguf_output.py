"""The weights of a llama-like model from a Hugging Face folder, stored as integers, as one GGUF file.

Blocks of 32 weights of a row, each the bytes of a scale in float16 and of the codes:

    Q8_0   scale, 32 codes of 8 bits
    Q4_0   scale, 16 bytes: code i + 8 in the low half of byte i, code i + 16 in the high half

Groups of a multiple of 32 are blocks that repeat a scale. Matrices that are not stored as integers keep their element
type, vectors become float32. Rows of queries and keys of architecture llama are in llama.cpp's order: the two elements
that a rotary embedding rotates are neighbours in a head, not half a head apart.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..ir import CodedNumbers, Encoding, Graph, LazyTensor, Value
from ..ir.element_type import element_bytes
from ..specs import FolderSource
from .errors import Problem, UserError, first_line
from .file_contents import Content, Pieces
from .gguf_tokenizer import add_tokenizer
from .model_folder import completed_config
from .session import Session
from .stored_form import KEEP_FLOAT, StoredForm, Unfit

FILE = "model.gguf"
_FORM = StoredForm("B605", "outputs.gguf")
_BLOCK = 32
_TYPES = {4: "Q4_0", 8: "Q8_0"}
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ARCHITECTURES = {"LlamaForCausalLM": "LLAMA", "MistralForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2"}
_LLAMA = "LLAMA"
_ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file: its GGUF name and type, its shape, and its elements, which are computed when they are
    read.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    elements: LazyTensor


def emit_gguf(session: Session, graph: Graph) -> dict[str, Content]:
    """The file, by name; UserError with all tensors that it cannot hold."""
    package, problems = _package(), [*_FORM.foreign(session)]
    if problems:
        raise UserError(problems)
    source = session.spec.model.source
    assert isinstance(source, FolderSource)
    config = completed_config(source)
    problems += _unlike_llama(config)
    if problems:
        raise UserError(problems)
    architecture = _ARCHITECTURES[config.architectures[0]]
    names = package.get_tensor_name_map(package.MODEL_ARCH[architecture], config.num_hidden_layers)
    stored = {value.name: value for value in graph.constants if value.type.is_quantized}
    unfit = [reason for value in stored.values() for reason in _unfit(session.captured, graph, value)]
    tensors = list[_Stored]()
    for name, entry in session.captured.params.entries.items():
        if not isinstance(entry, LazyTensor):  # created by capture, not part of the folder
            continue
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            fact = f"{package.MODEL_ARCH_NAMES[package.MODEL_ARCH[architecture]]} has no such tensor in GGUF"
            unfit.append(Unfit(name, fact, "write `outputs: hf`"))
        elif entry.dtype not in _FLOATS:
            fact = f"has elements of {str(entry.dtype).removeprefix('torch.')}"
            unfit.append(Unfit(name, fact, "set `model.dtype: float32`"))
        elif not unfit:
            order = _rotary_order(name, entry.shape[0], config) if architecture == _LLAMA else None
            value = stored.get(name)
            if value is None:
                tensors.append(_plain(renamed, entry, order))
            else:
                tensors.append(_packed(renamed, graph, value, order))
    if unfit:
        raise UserError(_FORM.problems(unfit))
    if config.rope_parameters["rope_type"] == "llama3":
        factors = _frequency_factors(config)
        lazy = LazyTensor(tuple(factors.shape), factors.dtype, factors.clone)
        tensors.append(_Stored(_ROPE_FREQS, "F32", lazy.shape, lazy))
    header = _header(package, config, source, architecture, tensors)
    return {FILE: Pieces(partial(_pieces, header, tensors, package.GGUF_DEFAULT_ALIGNMENT))}


def _package() -> Any:  # Any: gguf is optional
    try:
        return importlib.import_module("gguf")
    except ImportError as err:
        fact = f"needs the package gguf: {first_line(err)}"
        raise UserError(Problem("B606", _FORM.place, fact, "pip install 'fxpress[hf]'")) from err


def _unlike_llama(config: Any) -> Iterator[Problem]:  # Any: a configuration of transformers
    """Reasons why llama.cpp would compute different results."""
    advice = f"write `outputs: hf`, or a model of {', '.join(_ARCHITECTURES)}"
    if config.architectures[0] not in _ARCHITECTURES:
        fact = f"{config.architectures[0]} is not among the supported architectures"
        yield Problem(_FORM.code, _FORM.place, fact, advice)
        return
    if config.hidden_act != "silu":
        fact = f"`hidden_act` is {config.hidden_act}; llama.cpp computes silu"
        yield Problem(_FORM.code, _FORM.place, fact, advice)
    positions = config.max_position_embeddings
    if positions < 1:
        fact = f"`max_position_embeddings` is {positions}, the context length of the file"
        yield Problem(_FORM.code, _FORM.place, fact, "correct config.json")
    rope = config.rope_parameters
    forms = ("default", "linear", "llama3")[: 3 if _ARCHITECTURES[config.architectures[0]] == _LLAMA else 2]
    if rope["rope_type"] not in forms or rope.get("partial_rotary_factor", 1.0) != 1.0:
        fact = f"rotary embedding of `rope_type` {rope['rope_type']}; supported are {', '.join(forms)}"
        yield Problem(_FORM.code, _FORM.place, f"{fact}, of all numbers of a head", "write `outputs: hf`")


def _unfit(captured: Graph, graph: Graph, value: Value) -> Iterator[Unfit]:
    """Reasons why blocks cannot hold a stored weight exactly."""
    yield from _FORM.unfit(captured, graph, value)
    encoding = value.type.quantization
    assert encoding is not None
    if value.type.rank != 2 or encoding.axis != 0:
        yield Unfit(value.name, "is not a matrix with scales for parts of its rows", KEEP_FLOAT)
        return
    group = encoding.group_size or value.type.shape[1]
    if group % _BLOCK:
        fact = f"has a scale for each {group} weights; a block has {_BLOCK}"
        yield Unfit(value.name, fact, f"use `group_size: {_BLOCK}`, or {KEEP_FLOAT}")
    scale = encoding.scale.tensor(torch.float32)
    if not isinstance(encoding.scale, CodedNumbers) and not torch.equal(scale.half().float(), scale):
        fact = "has scales that float16 cannot represent"
        advice = f"use `scales: float16`; where its range is too narrow, {KEEP_FLOAT}"
        yield Unfit(value.name, fact, advice)


def _packed(name: str, graph: Graph, value: Value, order: Tensor | None) -> _Stored:
    encoding, (rows, columns) = value.type.quantization, value.type.shape
    assert isinstance(encoding, Encoding)
    bits = encoding.bits

    def blocks() -> Tensor:
        scales = encoding.scale.tensor(torch.float16).reshape(rows, -1)
        packed = pack_blocks(graph.tensor(value), scales, bits)
        return packed if order is None else packed[order]

    width = columns // _BLOCK * (2 + _BLOCK * bits // 8)
    return _Stored(name, _TYPES[bits], (rows, columns), LazyTensor((rows, width), torch.uint8, blocks))


def pack_blocks(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns] of 4 or 8 bits with scales [rows, groups] as bytes [rows, bytes] of Q4_0 or Q8_0."""
    rows = codes.shape[0]
    grouped = codes.reshape(rows, -1, _BLOCK)
    if bits == 4:
        raised = (grouped + 8).to(torch.uint8)
        grouped = raised[..., : _BLOCK // 2] | (raised[..., _BLOCK // 2 :] << 4)
    each = scales.half().repeat_interleave(grouped.shape[1] // scales.shape[1], 1)
    return torch.cat([each[..., None].view(torch.uint8), grouped.view(torch.uint8)], -1).reshape(rows, -1)


def _plain(name: str, entry: LazyTensor, order: Tensor | None) -> _Stored:
    dtype = entry.dtype if len(entry.shape) > 1 else torch.float32  # the type of vectors in the file

    def elements() -> Tensor:
        tensor = entry.read()
        return (tensor if order is None else tensor[order]).to(dtype)

    return _Stored(name, _FLOATS[dtype], entry.shape, LazyTensor(entry.shape, dtype, elements))


def _rotary_order(name: str, rows: int, config: Any) -> Tensor | None:  # Any: of transformers
    """The source row of each row of a weight or bias of queries or keys; None for other tensors."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return None
    return torch.arange(rows).view(count, 2, -1).transpose(1, 2).reshape(-1)


def _frequency_factors(config: Any) -> Tensor:  # Any: of transformers
    """The factors [head / 2] by which llama.cpp divides the frequencies of a rotary embedding of type llama3."""
    functions = importlib.import_module("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    scaled, _ = functions["llama3"](config, torch.device("cpu"))
    powers = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    factors: Tensor = 1.0 / (config.rope_parameters["rope_theta"] ** powers) / scaled
    return factors


def _header(
    package: Any, config: Any, source: FolderSource, architecture: str, tensors: list[_Stored]
) -> bytes:
    """All bytes before the tensors, padded; gguf and transformers are optional, so their objects are Any."""
    kinds = package.GGMLQuantizationType
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        writer = package.GGUFWriter(path, package.MODEL_ARCH_NAMES[package.MODEL_ARCH[architecture]])
        _add_metadata(package, writer, config, source, tensors)
        add_tokenizer(package, writer, source.path, config.vocab_size)
        for tensor in tensors:
            size = prod(tensor.elements.shape) * tensor.elements.dtype.itemsize
            writer.add_tensor_info(tensor.name, tensor.shape, None, size, raw_dtype=kinds[tensor.kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return _padded(path.read_bytes(), package.GGUF_DEFAULT_ALIGNMENT)


def _add_metadata(
    package: Any, writer: Any, config: Any, source: FolderSource, tensors: list[_Stored]
) -> None:
    head, rope = getattr(config, "head_dim", None), config.rope_parameters
    head = head or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_name(source.attribute)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(config.max_position_embeddings, window))  # llama.cpp has no window
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    counts = dict.fromkeys(_TYPES.values(), 0)
    for tensor in tensors:
        if tensor.kind in counts:
            counts[tensor.kind] += prod(tensor.shape)
    writer.add_file_type(package.LlamaFileType[f"MOSTLY_{max(counts, key=lambda kind: counts[kind])}"])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)


def _pieces(header: bytes, tensors: list[_Stored], alignment: int) -> Iterator[bytes]:
    yield header
    for tensor in tensors:
        yield _padded(element_bytes(tensor.elements.read()), alignment)


def _padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)
