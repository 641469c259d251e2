"""A small language model of the Llama-2 kind: RMS norms, rotary positions, grouped-query attention, SwiGLU.

    H. Touvron et al., Llama 2: Open Foundation and Fine-Tuned Chat Models, 2023.

Sizes are those of stories260K, trained on TinyStories (R. Eldan and Y. Li, 2023).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN, CONTEXT = 512, 64, 5, 8, 4, 172, 512
EPS, THETA = 1e-5, 10_000.0


def rotation(context: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, size / 2] of the angles by which positions rotate adjacent pairs of a head."""
    frequencies = THETA ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(context), frequencies)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` [n, time, heads, size] with each pair of adjacent features rotated by its position's angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(3)


class Attention(nn.Module):
    """Causal attention; two heads of queries share one head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.wq = nn.Linear(WIDTH, HEADS * self.size, bias=False)
        self.wk = nn.Linear(WIDTH, KV_HEADS * self.size, bias=False)
        self.wv = nn.Linear(WIDTH, KV_HEADS * self.size, bias=False)
        self.wo = nn.Linear(HEADS * self.size, WIDTH, bias=False)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [n, 8, time, size], keys and values [n, 4, time, size] of `x` [n, time, width]."""
        n, time, _ = x.shape
        q = turn(self.wq(x).view(n, time, HEADS, self.size), cos, sin)
        k = turn(self.wk(x).view(n, time, KV_HEADS, self.size), cos, sin)
        v = self.wv(x).view(n, time, KV_HEADS, self.size)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def joined(self, y: Tensor) -> Tensor:
        """Results [n, 8, time, size] of all heads to [n, time, width]."""
        return self.wo(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.heads(x, cos, sin)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (k, v))
        return self.joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and feed-forward layer, each on a norm of the residual stream and added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=EPS)
        self.attention = Attention()
        self.ffn_norm = nn.RMSNorm(WIDTH, eps=EPS)
        self.ffn = FeedForward()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class Stories260K(nn.Module):
    """Tokens [n, time] to logits [n, time, 512] of the token that follows each."""

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

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [n, time, 512] of the residual stream [n, time, width]; the last layer shares the embedding table."""
        return F.linear(self.norm(x), self.tok_embeddings.weight)
