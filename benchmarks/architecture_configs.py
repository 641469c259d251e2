"""Small Hugging Face configurations with random weights: a module, its example arguments, and their dynamic dimensions.

Configuration classes of transformers create them; nothing is downloaded. Token inputs have a dynamic batch and
length, images and audio a dynamic batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

WORDS, LABELS = 96, 32
_SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PIXELS = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_SEQUENCE = {0: "batch", 1: "tokens"}


@dataclass(frozen=True)
class Architecture:
    """A network: `build` creates it, `inputs` are functions that draw an input for each argument of `forward`."""

    build: Callable[[], nn.Module]
    inputs: Mapping[str, Callable[[Mapping[str, int], torch.Generator], Tensor]]
    dynamic: Mapping[str, Mapping[int, str]]
    fixed: Mapping[str, Any]  # any: further arguments of `forward`

    def module(self) -> nn.Module:
        """The network with seeded weights, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build().eval()

    def arguments(self, sizes: Mapping[str, int], *, seed: int) -> dict[str, Any]:  # any: as `forward` takes
        """Keyword arguments of `forward` of these sizes."""
        generator = torch.Generator().manual_seed(seed)
        return {**{name: draw(sizes, generator) for name, draw in self.inputs.items()}, **self.fixed}


def _ids(length: str = "tokens") -> Callable[[Mapping[str, int], torch.Generator], Tensor]:
    return lambda sizes, generator: torch.randint(
        3, WORDS, (sizes["batch"], sizes[length]), generator=generator
    )


def _mask(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Mask of all tokens except the last token of the last row, if that row has more than one."""
    mask = torch.ones(sizes["batch"], sizes["tokens"], dtype=torch.int64)
    mask[-1, max(sizes["tokens"] - 1, 1) :] = 0
    return mask


def _drawn(*shape: int) -> Callable[[Mapping[str, int], torch.Generator], Tensor]:
    return lambda sizes, generator: torch.randn((sizes["batch"], *shape), generator=generator)


def _made(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:  # any: of the configuration
    def build() -> nn.Module:
        made: nn.Module = getattr(transformers, model)(
            getattr(transformers, config)(num_labels=LABELS, **options)
        )
        return made

    return build


def _encoder(model: str, config: str, **options: Any) -> Architecture:  # any: of the configuration
    inputs = {"input_ids": _ids(), "attention_mask": _mask}
    dynamic = {"input_ids": _SEQUENCE, "attention_mask": _SEQUENCE}
    return Architecture(_made(model, config, **options), inputs, dynamic, {})


def _decoder(model: str, config: str, **options: Any) -> Architecture:  # any: of the configuration
    return Architecture(
        _made(model, config, **options), {"input_ids": _ids()}, {"input_ids": _SEQUENCE}, {"use_cache": False}
    )


def _pair(model: str, config: str, **options: Any) -> Architecture:  # any: of the configuration
    """An encoder and a decoder with different lengths."""
    inputs = {"input_ids": _ids(), "decoder_input_ids": _ids("decoder_tokens")}
    dynamic = {"input_ids": _SEQUENCE, "decoder_input_ids": {0: "batch", 1: "decoder_tokens"}}
    return Architecture(_made(model, config, **options), inputs, dynamic, {"use_cache": False})


def _image(model: str, config: str, **options: Any) -> Architecture:  # any: of the configuration
    size = options.get("image_size", 32)
    inputs = {"pixel_values": _drawn(3, size, size)}
    return Architecture(_made(model, config, **options), inputs, {"pixel_values": {0: "batch"}}, {})


_BART = {
    **{
        "vocab_size": WORDS,
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_position_embeddings": 64,
    },
    **{
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
_T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": _encoder("BertForSequenceClassification", "BertConfig", **_SMALL),
    "roberta": _encoder("RobertaForSequenceClassification", "RobertaConfig", **_SMALL),
    "distilbert": _encoder(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        **{"vocab_size": WORDS, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    ),
    "albert": _encoder("AlbertModel", "AlbertConfig", **_SMALL, embedding_size=16),
    "electra": _encoder("ElectraForSequenceClassification", "ElectraConfig", **_SMALL, embedding_size=16),
    "deberta_v2": _encoder("DebertaV2ForSequenceClassification", "DebertaV2Config", **_SMALL),
    "mpnet": _encoder("MPNetModel", "MPNetConfig", **_SMALL),
    "modernbert": _encoder("ModernBertModel", "ModernBertConfig", **_DECODER),
    "xlnet": Architecture(
        _made(
            "XLNetForSequenceClassification",
            "XLNetConfig",
            vocab_size=WORDS,
            d_model=32,
            n_layer=2,
            n_head=4,
            d_inner=64,
        ),
        {"input_ids": _ids(), "attention_mask": lambda sizes, generator: _mask(sizes, generator).float()},
        {"input_ids": _SEQUENCE, "attention_mask": _SEQUENCE},
        {"use_mems": False},
    ),
    "gpt2": _decoder(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
    "gpt_neo": _decoder(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        **{
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
        },
        attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    "gpt_neox": _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **_SMALL),
    "gptj": _decoder(
        "GPTJForCausalLM",
        "GPTJConfig",
        vocab_size=WORDS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        n_positions=64,
    ),
    "opt": _decoder(
        "OPTForCausalLM",
        "OPTConfig",
        **{
            "vocab_size": WORDS,
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        word_embed_proj_dim=32,
    ),
    "bloom": _decoder(
        "BloomForCausalLM", "BloomConfig", vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4
    ),
    "falcon": _decoder(
        "FalconForCausalLM",
        "FalconConfig",
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "llama": _decoder("LlamaForCausalLM", "LlamaConfig", **_DECODER),
    "mistral": _decoder("MistralForCausalLM", "MistralConfig", **_DECODER, sliding_window=8, head_dim=8),
    "qwen2": _decoder("Qwen2ForCausalLM", "Qwen2Config", **_DECODER),
    "qwen3": _decoder("Qwen3ForCausalLM", "Qwen3Config", **_DECODER, head_dim=8),
    "gemma2": _decoder("Gemma2ForCausalLM", "Gemma2Config", **_DECODER, head_dim=8, sliding_window=8),
    "phi": _decoder("PhiForCausalLM", "PhiConfig", **_DECODER),
    "phi3": _decoder("Phi3ForCausalLM", "Phi3Config", **_DECODER),
    "stablelm": _decoder("StableLmForCausalLM", "StableLmConfig", **_DECODER),
    "olmo2": _decoder("Olmo2ForCausalLM", "Olmo2Config", **_DECODER),
    "mixtral": _decoder("MixtralForCausalLM", "MixtralConfig", **_DECODER, num_local_experts=4, head_dim=8),
    "qwen3_moe": _decoder("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_DECODER, **_EXPERTS, head_dim=8),
    "mamba": _decoder(
        "MambaForCausalLM", "MambaConfig", vocab_size=WORDS, hidden_size=32, state_size=8, num_hidden_layers=2
    ),
    "t5": _pair("T5ForConditionalGeneration", "T5Config", **_T5),
    "bart": _pair("BartForConditionalGeneration", "BartConfig", **_BART),
    "vit": _image("ViTForImageClassification", "ViTConfig", **{**_SMALL, **_PIXELS}),
    "convnext": _image(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1]
    ),
    "resnet": _image(
        "ResNetForImageClassification",
        "ResNetConfig",
        **{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "swin": _image(
        "SwinForImageClassification",
        "SwinConfig",
        **{
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "whisper_encoder": Architecture(
        lambda: (
            transformers.WhisperModel(
                transformers.WhisperConfig(**{**_BART, "max_source_positions": 20, "num_mel_bins": 8})
            ).encoder
        ),
        {"input_features": _drawn(8, 40)},
        {"input_features": {0: "batch"}},
        {},
    ),
}
