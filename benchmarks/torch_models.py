"""The networks of the torch benchmark, with seeded random weights: ResNet-18, MobileNetV2 and a BERT-like encoder.

Sources: He et al., Deep Residual Learning, CVPR 2016; Sandler et al., MobileNetV2, CVPR 2018; Devlin et al., BERT,
NAACL 2019. Batch statistics are set from one random batch, so that activations stay in range through the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(*, classes: int = 1000) -> nn.Module:
    """ResNet-18, as for images of 224x224."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def resnet20(*, classes: int = 10) -> nn.Module:
    """ResNet-20 for 32x32 images, with a convolution in the shortcuts that change shape."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        layers.append(BasicBlock(inputs, outputs, stride))
        layers += [BasicBlock(outputs, outputs, 1) for _ in range(2)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


def mobilenet_v2() -> nn.Module:
    """MobileNetV2, width 1, for 224x224 images and 1000 classes."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    inputs = 32
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, outputs, repeats, stride in stages:
        for index in range(repeats):
            layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
            inputs = outputs
    layers += [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a shortcut and layer norm after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        query, key, value = (
            project(x).view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).reshape(n, length, width)))
        y: Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return y


def bert_encoder() -> nn.Module:
    """Four layers of BERT-base on embedded tokens."""
    return nn.Sequential(*(EncoderLayer(768, 12) for _ in range(4)))


@dataclass(frozen=True)
class Network:
    """A network of the benchmark and the shape of its input, batch 1."""

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def module(self, *, seed: int = 0) -> nn.Module:
        """The network with random weights and statistics of a random batch, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self.build()
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            with torch.no_grad():
                module.train()(torch.randn((4, *self.input_shape[1:])))
        return module.eval()

    def inputs(self, count: int, *, seed: int = 1) -> list[Tensor]:
        """`count` random inputs."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(self.input_shape, generator=generator) for _ in range(count)]


NETWORKS = (
    Network("resnet18", resnet18, (1, 3, 224, 224)),
    Network("mobilenet_v2", mobilenet_v2, (1, 3, 224, 224)),
    Network("bert_encoder", bert_encoder, (1, 128, 768)),
)
