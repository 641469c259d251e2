"""Networks on which methods are combined: a residual network for images of 28x28, and an encoder for short texts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a strided 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(inputs, channels, 1, stride=stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet8(nn.Module):
    """Scores [n, 10] of images [n, 1, 28, 28], with the layers of the ResNet-8 of MLPerf Tiny and half its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.block1, self.block2, self.block3 = (
            Block(8, 8, stride=1),
            Block(8, 16, stride=2),
            Block(16, 32, stride=2),
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        scores: Tensor = self.fc(self.block3(self.block2(self.block1(x))).mean((2, 3)))
        return scores


class EncoderLayer(nn.Module):
    """Attention and feed-forward layer, each added to its input and normalized."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_token[:, None, None, :])
        x = self.attention_norm(x + self.out(y.transpose(1, 2).reshape(n, length, width)))
        normalized: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return normalized


class Encoder(nn.Module):
    """Tokens [n, 48], padded with 0, to scores [n, 2] of the first token: two layers of width 48."""

    def __init__(self, width: int = 48, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(2048, width)
        self.positions = nn.Parameter(torch.randn(48, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.classifier = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids) * 0.1 + self.positions)
        for layer in self.layers:
            x = layer(x, ids != 0)
        scores: Tensor = self.classifier(x[:, 0])
        return scores
