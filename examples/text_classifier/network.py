"""A classifier of short texts with the encoder of BERT: learned positions, post-norm layers, GELU.

    J. Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2019.

It is small enough to be trained in minutes on one core.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS, HIDDEN = 2048, 48, 128, 4, 4, 512
PAD = 0


class Attention(nn.Module):
    """Self-attention over the tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (
            layer(x).view(n, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_token[:, None, None, :])
        return self.output(y.transpose(1, 2).reshape(n, length, WIDTH))


class Layer(nn.Module):
    """Attention and feed-forward layer, each added to its input and normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, is_token)))
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class TextClassifier(nn.Module):
    """Tokens [n, 48], padded with 0, to scores [n, 2], computed from the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.classifier = nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor) -> Tensor:
        is_token = ids != PAD
        x = self.norm(self.tokens(ids) + self.positions)
        for layer in self.layers:
            x = layer(x, is_token)
        return self.classifier(x[:, 0])
