"""One step of the model: a token at its position, with caches of the keys and values of all positions before it."""

import torch
import torch.nn.functional as F
from llama import CONTEXT, Block, Stories260K
from torch import Tensor


class Step(Stories260K):
    """A token [1, 1], its position [1], and keys and values [1, 4, 512, 8] of each layer to logits and caches."""

    def forward(self, token: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        cos, sin = self.cos[position], self.sin[position]
        seen = torch.arange(CONTEXT) <= position[:, None]
        x, written = self.tok_embeddings(token), []
        for layer, old_keys, old_values in zip(self.layers, caches[::2], caches[1::2], strict=True):
            assert isinstance(layer, Block)
            q, k, v = layer.attention.heads(layer.attention_norm(x), cos, sin)
            keys, values = old_keys.index_copy(2, position, k), old_values.index_copy(2, position, v)
            written += [keys, values]
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
            x = x + layer.attention.joined(y)
            x = x + layer.ffn(layer.ffn_norm(x))
        return self.logits(x), *written
