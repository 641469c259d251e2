"""Tensors of files whose names or layouts are not those of the model: read as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folders import SIZES, save_folder, write_spec
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxpress.compiler import UserError, compile_model, load_compiled
from fxpress.compiler.model_folder import load_folder
from fxpress.ir import LazyTensor
from fxpress.specs import FolderSource

IMAGES: dict[str, Any] = {"image_size": 32, "patch_size": 8}
EXPERTS: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "vocab_size": 96}
CONFIGS: dict[str, Any] = {  # Any: transformers is untyped
    "ViTForImageClassification": transformers.ViTConfig(**SIZES, **IMAGES),
    "ViTModel": transformers.ViTConfig(**SIZES, **IMAGES),
    "SwinForImageClassification": transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4
    ),
    "CLIPVisionModel": transformers.CLIPVisionConfig(**SIZES, **IMAGES),
    "MixtralForCausalLM": transformers.MixtralConfig(**EXPERTS, num_local_experts=12),
    "Qwen2MoeForCausalLM": transformers.Qwen2MoeConfig(**EXPERTS, num_experts=3, moe_intermediate_size=32),
    "GPTNeoXForCausalLM": transformers.GPTNeoXConfig(**SIZES, vocab_size=96),
    "BertForSequenceClassification": transformers.BertConfig(**SIZES, vocab_size=96),
}


def stored(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def keep(folder: Path, tensors: dict[str, Tensor]) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_each_parameter_is_read_from_the_files_when_it_is_used(tmp_path: Path, architecture: str) -> None:
    model = save_folder(tmp_path, architecture, config=CONFIGS[architecture])
    found = load_folder(FolderSource(tmp_path))
    assert {name for name, _ in model.named_parameters()} <= found.params.keys()
    for name, entry in found.params.entries.items():
        assert isinstance(entry, LazyTensor) and torch.equal(entry.read(), model.state_dict()[name])
    assert not [note for note in found.notes if "does not have" in note]


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "MixtralForCausalLM"])
def test_files_with_the_names_of_the_model_are_read_too(tmp_path: Path, architecture: str) -> None:
    model = save_folder(tmp_path, architecture, config=CONFIGS[architecture])
    assert not stored(tmp_path).keys() >= model.state_dict().keys()
    keep(tmp_path, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    params = load_folder(FolderSource(tmp_path)).params
    assert all(torch.equal(params[name], tensor) for name, tensor in model.named_parameters())


def test_the_emitted_module_of_a_vit_equals_the_model_with_the_stored_weights(tmp_path: Path) -> None:
    model = save_folder(tmp_path / "net", "ViTModel", config=CONFIGS["ViTModel"])
    pixels = "  inputs:\n    pixel_values: {shape: [1, 3, 32, 32]}\n"
    spec = write_spec(tmp_path, "net", model=pixels, weights="int4\n    activations: float32")
    compiled = compile_model(spec)
    compiled.write(tmp_path / "out")
    weights = {value.name: value for value in compiled.graph.constants if value.type.is_quantized}
    for name, value in weights.items():
        encoding = value.type.quantization
        assert encoding is not None
        model.get_parameter(name).data = encoding.dequantize(compiled.graph.tensor(value))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = load_compiled(tmp_path / "out").module(images), model(images)
    assert len(weights) == 13
    torch.testing.assert_close(found[0], expected.last_hidden_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "MixtralForCausalLM"])
def test_transformers_reads_the_folder_that_is_written_again(tmp_path: Path, architecture: str) -> None:
    model = save_folder(tmp_path / "net", architecture, config=CONFIGS[architecture])
    images = architecture.startswith("ViT")
    inputs = "  inputs:\n    pixel_values: {shape: [1, 3, 32, 32]}\n" if images else ""
    kept = ["vit.embeddings"] if images else ["model.embed_tokens", "model.layers.*.mlp"]
    layers = ", ".join(f"{name}: float32" for name in kept)
    weights = f"int4\n    activations: float32\n    layers: {{{layers}}}"
    compiled = compile_model(write_spec(tmp_path, "net", model=inputs, weights=weights, outputs="hf: {}"))
    compiled.write(tmp_path / "out")
    loaded = getattr(transformers, architecture).from_pretrained(tmp_path / "out/hf")
    for value in compiled.graph.constants:
        if (encoding := value.type.quantization) is not None:
            model.get_parameter(value.name).data = encoding.dequantize(compiled.graph.tensor(value))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 32, 32, generator=generator) if images else torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)


def test_experts_that_cannot_be_one_tensor_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, "MixtralForCausalLM", config=CONFIGS["MixtralForCausalLM"])
    tensors = stored(tmp_path)
    tensors["model.layers.0.block_sparse_moe.experts.3.w1.weight"] = torch.ones(5, 5)
    keep(tmp_path, tensors)
    with pytest.raises(
        UserError, match=r"gate_up_proj cannot be computed from .*experts.0.w1.weight, .*M112"
    ):
        load_folder(FolderSource(tmp_path))
