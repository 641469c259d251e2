"""Small Hugging Face folders with random weights, and specs that compile them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Any] = {  # Any: transformers is untyped
    "LlamaForCausalLM": transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, vocab_size=96, max_position_embeddings=16
    ),
    "MistralForCausalLM": transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, vocab_size=96, max_position_embeddings=16, sliding_window=12
    ),
    "Qwen2ForCausalLM": transformers.Qwen2Config(
        **SIZES, num_key_value_heads=2, vocab_size=96, max_position_embeddings=16
    ),
    "GPT2LMHeadModel": transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=16, bos_token_id=1, eos_token_id=2
    ),
    "BertModel": transformers.BertConfig(**SIZES, vocab_size=96, max_position_embeddings=16),
    "BertForSequenceClassification": transformers.BertConfig(
        **SIZES, vocab_size=96, max_position_embeddings=16
    ),
    "T5ForConditionalGeneration": transformers.T5Config(
        d_model=64, d_ff=96, d_kv=16, num_layers=1, num_heads=4, vocab_size=96, n_positions=16
    ),
}
GROUPED = {
    **SIZES,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NAMED = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2}
DECODERS: dict[str, Any] = {  # Any: as above; windows are shorter than the texts of tests
    "LlamaForCausalLM": transformers.LlamaConfig(**GROUPED),
    "MistralForCausalLM": transformers.MistralConfig(**GROUPED, sliding_window=6),
    "Qwen2ForCausalLM": transformers.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1, tie_word_embeddings=True
    ),
    "Gemma3ForCausalLM": transformers.Gemma3TextConfig(
        **GROUPED, head_dim=16, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "GPT2LMHeadModel": transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **NAMED),
    "GPTNeoXForCausalLM": transformers.GPTNeoXConfig(**SIZES, **NAMED, max_position_embeddings=64),
    "OPTForCausalLM": transformers.OPTConfig(
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=64,
        **NAMED,
    ),
    "PhiForCausalLM": transformers.PhiConfig(**GROUPED),
    "MixtralForCausalLM": transformers.MixtralConfig(**GROUPED, num_local_experts=3, sliding_window=None),
    "BloomForCausalLM": transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **NAMED),
    "GPTNeoForCausalLM": transformers.GPTNeoConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        max_position_embeddings=64,
        **NAMED,
    ),
    "MambaForCausalLM": transformers.MambaConfig(
        vocab_size=96, hidden_size=32, state_size=8, num_hidden_layers=2
    ),
}
"""Models that generate text; the last two cannot have static caches."""


def save_folder(
    folder: Path,
    architecture: str,
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "100KB",
    config: Any = None,  # Any: transformers is untyped
    **changes: object,
) -> nn.Module:
    """Write a model of random weights, none of them as initialised, and return it in evaluation mode.

    `config` is by default the architecture's own above.
    """
    config = config or CONFIGS[architecture]
    config = type(config).from_dict({**config.to_dict(), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + 0.1
    model = model.to(dtype).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    module: nn.Module = model
    return module


def write_spec(
    folder: Path, source: str, *, weights: str = "int4", model: str = "", outputs: str = "torch: {}"
) -> Path:
    """A spec next to a folder that stores its weights as integers."""
    path = folder / "spec.yaml"
    path.write_text(
        f"fxpress: 1\nmodel:\n  source: hf:{source}\n{model}passes:\n  - pass: clean\n"
        f"  - pass: weight_only\n    weights: {weights}\noutputs:\n  {outputs}\n"
    )
    return path
