"""Folders in the compressed-tensors convention: read by its package; others are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationConfig
from folders import save_folder, write_spec

from fxpress.compiler import UserError, compile_model, load_compiled
from fxpress.compiler.folder_output import pack_words
from fxpress.ir import open_tensors

KEPT = "    layers: {model.embed_tokens: float32}\n"


def spec(folder: Path, *, options: str = KEPT, weights: str = "int4", extra: str = "") -> Path:
    path = write_spec(folder, "net", weights=weights, outputs=f"hf: {{{extra}}}")
    text = path.read_text().replace(f"weights: {weights}\n", f"weights: {weights}\n{options}")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("weights", "options"),
    [("int4", KEPT), ("int8", f"{KEPT}    group_size: null\n"), ("int4", f"{KEPT}    group_size: 8\n")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_package_reads_the_weights_of_the_graph(
    tmp_path: Path, weights: str, options: str, dtype: torch.dtype
) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM", dtype=dtype)
    compiled = compile_model(spec(tmp_path, weights=weights, options=options))
    compiled.write(tmp_path / "out")
    described = json.loads((tmp_path / "out/hf/config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(described).config_groups["group_0"]
    tensors, found = open_tensors(tmp_path / "out/hf"), 0
    for value in compiled.graph.constants:
        encoding = value.type.quantization
        if encoding is None:
            continue
        shape, scale = tensors[f"{value.name}_shape"], tensors[f"{value.name}_scale"].float()
        codes = unpack_from_int32(
            tensors[f"{value.name}_packed"], scheme.weights.num_bits, torch.Size(shape.tolist())
        )
        reals = (codes.reshape(*scale.shape, -1).float() * scale[..., None]).reshape(codes.shape)
        assert torch.equal(reals, encoding.dequantize(compiled.graph.tensor(value)))
        assert value.name.removesuffix(".weight") in scheme.targets
        found += 1
    assert found == 15
    source = open_tensors(tmp_path / "net")
    kept = [name for name in tensors if name in source]
    assert len(kept) == 6 and all(torch.equal(tensors[name], source[name]) for name in kept)


def test_shards_hold_at_most_the_bytes_asked_for(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    compiled = compile_model(spec(tmp_path, extra="max_shard_bytes: 20 kB"))
    names = [name for name in compiled.files if name.startswith("hf/model-")]
    compiled.write(tmp_path / "out")
    assert len(names) > 2
    index = json.loads((tmp_path / "out/hf/model.safetensors.index.json").read_text())
    assert load_compiled(tmp_path / "out").interface.torch_class is None
    assert set(index["weight_map"].values()) == {name.removeprefix("hf/") for name in names}
    assert len(open_tensors(tmp_path / "out/hf")) == len(index["weight_map"])


def test_codes_of_rows_that_fill_no_word_are_padded() -> None:
    codes = torch.tensor([[-8, 7, 0, 1, -1, 3, 2, -4, 5]], dtype=torch.int8)
    words = pack_words(codes, 4)
    assert words.shape == (1, 2)
    assert torch.equal(unpack_from_int32(words, 4, torch.Size((1, 9))), codes)


def test_transposed_weights_keep_their_names_and_are_refused_by_them(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "GPT2LMHeadModel")
    kept = "    layers: {transformer.wte: float32, lm_head: float32}\n"
    words = (
        "8 tensors: transformer.h.0.attn.c_attn.weight, transformer.h.0.attn.c_proj.weight, .*each is not a"
    )
    with pytest.raises(UserError, match=rf"{words} tensor of the folder, but moved.*B604\]$"):
        compile_model(spec(tmp_path, options=kept))


def test_files_beside_the_weights_are_copied_or_named(tmp_path: Path) -> None:
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    for name in ("special_tokens_map.json", "generation_config.json", "tokenizer_config.json"):
        (tmp_path / "net" / name).write_text("{}")
    (tmp_path / "net/chat_template.jinja").write_text("text")
    compile_model(spec(tmp_path)).write(tmp_path / "out")
    copied = {path.name for path in (tmp_path / "out/hf").iterdir()}
    assert {"special_tokens_map.json", "generation_config.json", "chat_template.jinja"} <= copied
    (tmp_path / "net/generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"generation_config.json cannot be read: .*not a JSON object.*M137"):
        compile_model(spec(tmp_path))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "embedding": (
        {"options": ""},
        r"embed_tokens.weight: is not only the weight of linear layers.*embed_tokens: fl",
    ),
    "3 bits": (
        {"weights": "int3"},
        r"outputs.hf, 15 tensors: .*q_proj.weight, .* and 12 more: each has 3 bits; the convention .*B604\]$",
    ),
    "coded scales": (
        {"options": f"{KEPT}    scales: double\n"},
        r"outputs.hf, 15 tensors: .*each has scales that are stored as codes \(`double`\).*float16`.*B604\]$",
    ),
    "zero points": ({"options": f"{KEPT}    rounding: hqq\n"}, r"rounding hqq changes other tensors.*B604"),
    "other pass": (
        {"options": f"{KEPT}  - pass: fuse\n"},
        r"this pass changes tensors.*B604",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_convention_cannot_hold_is_refused_by_name(tmp_path: Path, name: str) -> None:
    arguments, words = FAULTS[name]
    save_folder(tmp_path / "net", "LlamaForCausalLM")
    with pytest.raises(UserError, match=words):
        compile_model(spec(tmp_path, **arguments))
