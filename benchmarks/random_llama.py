"""Llama-like decoder with random weights and a static key-value cache, in plain torch.

The form of Llama 2 (Touvron et al., 2023): RMS norm, rotary positions, grouped-query attention, gated SiLU. By default
124.7 million parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; `context` positions are cached."""

    width: int = 768
    hidden: int = 2048
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    tokens: int = 32000
    context: int = 128

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.width // self.heads


class Attention(nn.Module):
    """Grouped-query attention over the cached positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.heads * shape.head, bias=False)
        self.k = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.v = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.o = nn.Linear(shape.heads * shape.head, shape.width, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], at: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [1, t, width], caches [1, kv_heads, context, head] -> x and the caches with the new positions."""
        shape, (_, t, _) = self.shape, x.shape
        q = rotated(self.q(x).view(1, t, shape.heads, shape.head).transpose(1, 2), rotary)
        k = rotated(self.k(x).view(1, t, shape.kv_heads, shape.head).transpose(1, 2), rotary)
        v = self.v(x).view(1, t, shape.kv_heads, shape.head).transpose(1, 2)
        keys, values = keys.index_copy(2, at, k), values.index_copy(2, at, v)
        repeats = shape.heads // shape.kv_heads
        y = functional.scaled_dot_product_attention(
            q, keys.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1), attn_mask=mask
        )
        return self.o(y.transpose(1, 2).reshape(1, t, -1)), keys, values


class Block(nn.Module):
    """Attention and a gated layer, each after a norm and beside a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], at: Tensor, mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention`."""
        y, keys, values = self.attention(self.attention_norm(x), rotary, at, mask, keys, values)
        x = x + y
        normed = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed)), keys, values


class Llama(nn.Module):
    """Tokens [1, t], their positions [t], and per layer the cached keys and values -> logits and caches."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape = Shape()) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.tokens, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.head = nn.Linear(shape.width, shape.tokens, bias=False)
        angles = torch.outer(
            torch.arange(shape.context), 10000.0 ** (-torch.arange(0, shape.head, 2) / shape.head)
        )
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())

    def forward(self, tokens: Tensor, at: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One step of any number of tokens."""
        rotary, mask = (self.cos[at], self.sin[at]), torch.arange(self.shape.context) <= at[:, None]
        x, new = self.embed(tokens), []
        for layer, keys, values in zip(self.layers, caches[::2], caches[1::2], strict=True):
            x, *pair = layer(x, rotary, at, mask, keys, values)
            new += pair
        return (self.head(self.norm(x)), *new)

    def caches(self) -> list[Tensor]:
        """Empty caches."""
        size = (1, self.shape.kv_heads, self.shape.context, self.shape.head)
        return [torch.zeros(size) for _ in range(2 * self.shape.layers)]

    def step(self, count: int) -> tuple[Tensor, ...]:
        """Inputs of a step of `count` tokens at the last positions of the context."""
        positions = torch.arange(self.shape.context - count, self.shape.context)
        return (torch.arange(count)[None] % self.shape.tokens, positions, *self.caches())


def rotated(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al., 2021), halves of a head paired."""
    cos, sin = rotary
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin
