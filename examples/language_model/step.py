"""One step of the model: a token at its position, with caches of the keys and values of all positions before it."""

import torch
import torch.nn.functional as F
from llama import CONTEXT, EPS, HEADS, KV_HEADS, LAYERS, VOCABULARY, WIDTH, Block, rotation, turn
from torch import Tensor, nn


class Step(nn.Module):
    """A token [1, 1], its position [1], and keys and values [1, 4, 512, 8] of each layer to logits and caches."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=EPS)
        cos, sin = rotation(CONTEXT, WIDTH // HEADS)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, token: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        cos, sin = self.cos[position], self.sin[position]
        seen = torch.arange(CONTEXT) <= position[:, None]
        x, written = self.tok_embeddings(token), []
        for layer, old_keys, old_values in zip(self.layers, caches[::2], caches[1::2], strict=True):
            assert isinstance(layer, Block)
            h, size = layer.attention_norm(x), WIDTH // HEADS
            q = turn(layer.attention.wq(h).view(1, 1, HEADS, size), cos, sin).transpose(1, 2)
            k = turn(layer.attention.wk(h).view(1, 1, KV_HEADS, size), cos, sin).transpose(1, 2)
            v = layer.attention.wv(h).view(1, 1, KV_HEADS, size).transpose(1, 2)
            keys, values = old_keys.index_copy(2, position, k), old_values.index_copy(2, position, v)
            written += [keys, values]
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
            x = x + layer.attention.wo(y.transpose(1, 2).reshape(1, 1, WIDTH))
            x = x + layer.ffn(layer.ffn_norm(x))
        return F.linear(self.norm(x), self.tok_embeddings.weight), *written
