"""GGUF files: read by the package gguf and by transformers; graphs that they cannot represent are refused by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from folders import save_folder, write_spec
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.gguf_output import pack_blocks
from fxpress.ir import open_tensors

LLAMA, MISTRAL, QWEN2 = "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"
HEADS = {"attn_q": 4, "attn_k": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


def spec(folder: Path, *, weights: str = "int4", options: str = "") -> Path:
    path = write_spec(folder, "net", weights=weights, outputs="gguf: {}")
    path.write_text(path.read_text().replace(f"weights: {weights}\n", f"weights: {weights}\n{options}"))
    return path


def written(folder: Path, **changes: Any) -> tuple[Any, gguf.GGUFReader]:  # Any: what transformers takes
    compiled = compile_model(spec(folder, **changes))
    compiled.write(folder / "out")
    return compiled, gguf.GGUFReader(folder / "out/gguf/model.gguf")


def reals(tensor: gguf.ReaderTensor) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))


def unpermuted(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Rows of queries and keys as transformers has them: all first numbers of the pairs of a head, then all second."""
    heads = HEADS.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("architecture", "weights", "options", "dtype", "changes"),
    [
        (LLAMA, "int4", "", torch.float32, {"attention_bias": True}),
        (LLAMA, "int8", "    layers: {lm_head: float32}\n", torch.bfloat16, {"head_dim": 32}),
        (LLAMA, "int4", "", torch.float32, {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
        (
            MISTRAL,
            "int8",
            "    group_size: 64\n    layers: {model.layers.*.mlp.down_proj: float32}\n",
            torch.float32,
            {},
        ),
        (
            QWEN2,
            "int4",
            "    layers: {model.layers.*.mlp.up_proj: int8, model.layers.*.mlp.gate_proj: float32}\n",
            torch.float16,
            {},
        ),
    ],
)
def test_its_package_reads_the_weights_of_the_graph(
    tmp_path: Path,
    architecture: str,
    weights: str,
    options: str,
    dtype: torch.dtype,
    changes: dict[str, Any],
) -> None:
    save_folder(tmp_path / "net", architecture, dtype=dtype, **changes)
    compiled, reader = written(tmp_path, weights=weights, options=options)
    kind = gguf.MODEL_ARCH.QWEN2 if architecture == QWEN2 else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(kind, 2)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = {value.name: value for value in compiled.graph.constants if value.type.is_quantized}
    for name, kept in open_tensors(tmp_path / "net").items():
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        found = tensors.pop(renamed)
        expected, value = kept.float(), stored.pop(name, None)
        if value is not None:
            assert found.tensor_type.name == {4: "Q4_0", 8: "Q8_0"}[value.type.quantization.bits]
            expected = value.type.quantization.dequantize(compiled.graph.tensor(value))
        actual = reals(found)
        assert torch.equal(actual if architecture == QWEN2 else unpermuted(renamed, actual), expected), name
    assert not stored and set(tensors) == ({"rope_freqs.weight"} if "rope_parameters" in changes else set())


@pytest.mark.parametrize("architecture", [LLAMA, QWEN2])
def test_transformers_reads_the_model_that_was_stored(tmp_path: Path, architecture: str) -> None:
    source = save_folder(tmp_path / "net", architecture)
    compiled, _ = written(tmp_path)
    found = load_gguf_checkpoint(tmp_path / "out/gguf/model.gguf", return_tensors=True, model_to_load=source)
    loaded = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**found["config"]), dtype=torch.float32
    ).eval()
    loaded.load_state_dict(found["tensors"])
    rewritten = {
        value.name: value.type.quantization.dequantize(compiled.graph.tensor(value))
        for value in compiled.graph.constants
        if value.type.is_quantized
    }
    source.load_state_dict({**source.state_dict(), **rewritten})
    tokens = torch.arange(12)[None]
    assert torch.equal(loaded(tokens).logits, source(tokens).logits)


def test_metadata_are_those_of_the_configuration(tmp_path: Path) -> None:
    save_folder(
        tmp_path / "net",
        MISTRAL,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    )
    _, reader = written(tmp_path, weights="int8")
    expected = {
        "general.architecture": "llama",
        "general.name": "net",
        "general.file_type": 7,
        "llama.context_length": 12,  # the sliding window, within which attention is full
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500.0,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
        "llama.vocab_size": 96,
        "tokenizer.ggml.model": "none",
    }
    assert {key: reader.fields[key].contents() for key in expected} == expected


def test_factors_of_llama_3_give_the_frequencies_of_transformers(tmp_path: Path) -> None:
    model: Any = save_folder(tmp_path / "net", LLAMA, rope_parameters=LLAMA3)
    _, reader = written(tmp_path)
    factors = reals(next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"))
    plain = 500.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq)
    assert factors.max() > 1


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_hold_every_code_and_scales_of_either_sign(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = torch.arange(-half, half).repeat(512 // (2 * half)).reshape(2, 256).to(torch.int8)
    scales = torch.tensor([[0.5, -0.25], [-(2.0**-24), 65504.0]])
    kind = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}[bits]
    found = torch.from_numpy(gguf.dequantize(pack_blocks(codes, scales, bits).numpy(), kind))
    assert torch.equal(found, codes.float() * scales.repeat_interleave(128, 1))


FAULTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "architecture": (
        "GPT2LMHeadModel",
        {},
        {},
        r"GPT2LMHeadModel is not among the supported architectures.*B605",
    ),
    "activation": (LLAMA, {"hidden_act": "gelu"}, {}, r"`hidden_act` is gelu"),
    "positions": (LLAMA, {"max_position_embeddings": -3}, {}, r"`max_position_embeddings` is -3.*B605"),
    "rotary": (
        QWEN2,
        {"rope_parameters": LLAMA3},
        {},
        r"`rope_type` llama3; supported are default, linear",
    ),
    "3 bits": (
        LLAMA,
        {},
        {"weights": "int3"},
        r"outputs.gguf, 16 tensors: .*q_proj.weight, .* and 13 more: each has 3 bits; the convention .*B605\]$",
    ),
    "groups": (
        LLAMA,
        {},
        {"options": "    group_size: 16\n"},
        r"each has a scale for each 16 weights; .*`layers: \{.*: float32, .*: float32, \.\.\.\}`",
    ),
    "scales": (LLAMA, {}, {"options": "    scales: float32\n"}, r"has scales that float16 cannot represent"),
    "coded scales": (
        LLAMA,
        {},
        {"options": "    scales: double\n"},
        r"each has scales that are stored as codes \(`double`\); use `scales: float16`",
    ),
    "table": (LLAMA, {}, {"weights": "nf4"}, r"has codes of a table"),
    "other pass": (LLAMA, {}, {"options": "  - pass: fuse\n"}, r"this pass changes tensors.*B605"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_file_cannot_hold_is_refused_by_name(tmp_path: Path, name: str) -> None:
    architecture, changes, options, words = FAULTS[name]
    save_folder(tmp_path / "net", architecture, **changes)
    with pytest.raises(UserError, match=words):
        compile_model(spec(tmp_path, **options))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.import_module

    def without(name: str, *arguments: Any) -> Any:  # Any: a module
        if name == "gguf":
            raise ImportError("no gguf")
        return plain(name, *arguments)

    save_folder(tmp_path / "net", LLAMA)
    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"needs the package gguf: .*no gguf.*B606"):
        compile_model(spec(tmp_path))
