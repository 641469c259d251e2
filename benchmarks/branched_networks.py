"""Networks with branches, for the order of execution: structures as published, narrow, with random weights."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from random import Random

import torch
from torch import Tensor, nn


def conv(taken: int, given: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, and ReLU."""
    layer = nn.Conv2d(taken, given, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(layer, nn.ReLU())


def separable(taken: int, given: int, kernel: int) -> nn.Sequential:
    """Depthwise convolution, then a 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(taken, taken, kernel, 1, kernel // 2, groups=taken), conv(taken, given, 1))


def added(values: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return reduce(operator.add, values)


class Inception(nn.Module):
    """Four branches, joined (Szegedy et al., 2015)."""

    def __init__(self, taken: int, one: int, three: Sequence[int], five: Sequence[int], pooled: int) -> None:
        super().__init__()
        self.one = conv(taken, one, 1)
        self.three = nn.Sequential(conv(taken, three[0], 1), conv(three[0], three[1], 3))
        self.five = nn.Sequential(conv(taken, five[0], 1), conv(five[0], five[1], 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(taken, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The joined branches."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Branches(nn.Module):
    """Branches of different widths that end narrow, in an unfavourable order of the source, and are added."""

    def __init__(self, taken: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.wide = nn.ModuleList(conv(taken, width, 1) for width in widths)
        self.narrow = nn.ModuleList(conv(width, taken, 3) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the branches, all begun before one is finished."""
        begun = [layer(x) for layer in self.wide]
        ended = [layer(y) for layer, y in zip(self.narrow, begun, strict=True)]
        return added(ended)


class UNet(nn.Module):
    """Encoder and decoder with skip connections (Ronneberger et al., 2015)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(conv(3 if i == 0 else width << (i - 1), width << i) for i in range(depth))
        self.bottom = conv(width << (depth - 1), width << depth)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width << (i + 1), width << i, 2, 2) for i in reversed(range(depth))
        )
        self.after = nn.ModuleList(conv(width << (i + 1), width << i) for i in reversed(range(depth)))
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A map of two classes."""
        kept = []
        for layer in self.down:
            x = layer(x)
            kept.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, after in zip(self.up, self.after, strict=True):
            x = after(torch.cat([up(x), kept.pop()], 1))
        found: Tensor = self.head(x)
        return found


class NasCell(nn.Module):
    """Normal cell of NASNet-A (Zoph et al., 2018): five sums of two operations on the two previous cells."""

    def __init__(self, before: int, taken: int, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(taken, width, 1), conv(before, width, 1)
        kernels = (3, 3, 5, 3, 5, 3)
        self.ops = nn.ModuleList(separable(width, width, kernel) for kernel in kernels)
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        """The joined sums."""
        h, p = self.a(x), self.b(before)
        ops = self.ops
        sums = [ops[0](h) + h, ops[1](p) + ops[2](h), self.pool(h) + p, self.pool(p) + self.pool(p)]
        return torch.cat([*sums, ops[3](p) + ops[4](p), p], 1)


class NasNet(nn.Module):
    """Cells, each of which reads the two previous cells."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.stem = conv(3, 6 * width, 3, 2)
        self.cells = nn.ModuleList(NasCell(6 * width, 6 * width, width) for _ in range(cells))
        self.head = nn.Linear(6 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of ten classes."""
        before = x = self.stem(x)
        for cell in self.cells:
            before, x = x, cell(before, x)
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Dense(nn.Module):
    """Block in which each layer reads all previous layers (Huang et al., 2017)."""

    def __init__(self, taken: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(taken + i * growth, growth) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """All results joined."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Wired(nn.Module):
    """Random wiring (Xie et al., 2019): a node adds some of the previous results, and convolves the sum."""

    def __init__(self, width: int, nodes: int, seed: int) -> None:
        super().__init__()
        random = Random(seed)
        self.stem = conv(3, width, 3, 2)
        self.wires = [
            sorted(random.sample(range(i + 1), min(i + 1, random.choice((1, 1, 2, 3))))) for i in range(nodes)
        ]
        self.layers = nn.ModuleList(separable(width, width, 3) for _ in range(nodes))
        self.ends = sorted(set(range(nodes + 1)) - {wire for wires in self.wires for wire in wires})
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of ten classes."""
        made = [self.stem(x)]
        for wires, layer in zip(self.wires, self.layers, strict=True):
            read = [made[wire] for wire in wires]
            made.append(layer(added(read)))
        found: Tensor = self.head(added([made[end] for end in self.ends]).mean((2, 3)))
        return found


def inception() -> nn.Module:
    """Stem and three modules."""
    return nn.Sequential(
        conv(3, 16, 3, 2),
        Inception(16, 8, (8, 16), (4, 8), 8),
        Inception(40, 16, (12, 24), (4, 12), 12),
        Inception(64, 16, (16, 32), (8, 12), 12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "inception": (inception, (1, 3, 64, 64)),
    "branches": (lambda: nn.Sequential(conv(3, 8, 3, 2), Branches(8, (24, 16, 32, 16))), (1, 3, 64, 64)),
    "unet": (lambda: UNet(8, 3), (1, 3, 64, 64)),
    "nasnet, 2 cells": (lambda: NasNet(8, 2), (1, 3, 64, 64)),
    "nasnet, 6 cells": (lambda: NasNet(8, 6), (1, 3, 64, 64)),
    "dense": (lambda: nn.Sequential(conv(3, 16, 3, 2), Dense(16, 8, 6)), (1, 3, 64, 64)),
    **{
        f"random wiring, {nodes} nodes, seed {seed}": (partial(Wired, 8, nodes, seed), (1, 3, 64, 64))
        for nodes, seed in ((8, 0), (16, 1), (16, 2), (32, 3), (32, 4))
    },
}
"""Networks by name: the function that creates each, and the shape of its input."""
