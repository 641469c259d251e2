"""Encoder of short texts with norms before each sublayer, whose layers can be chosen among those of a deeper one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY, LENGTH, HEADS = 2048, 48, 2
CLASSES = 2


class Layer(nn.Module):
    """Self-attention over the tokens that are not padding, and a feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        """Tokens [n, t, width]."""
        n, length, width = x.shape
        heads = self.qkv(self.norm1(x)).view(n, length, 3, HEADS, width // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=is_token[:, None, None, :])
        x = x + self.output(y.transpose(1, 2).reshape(n, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Classifier of texts. `layers` are the numbers of its layers in an encoder of 12 layers."""

    def __init__(self, layers: Sequence[int] = tuple(range(12)), width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleDict({str(layer): Layer(width) for layer in layers})
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores [n, 2] of token numbers [n, 48]."""
        is_token = ids.bool()  # padding is 0
        x = self.tokens(ids) + self.positions
        for layer in self.layers.values():
            x = layer(x, is_token)
        return self.head(self.norm(x[:, 0]))
