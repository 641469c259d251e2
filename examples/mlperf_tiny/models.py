"""The networks of the MLPerf Tiny benchmark as torch modules: logits out, softmax left to the caller.

    C. Banbury et al., MLPerf Tiny Benchmark, NeurIPS Datasets and Benchmarks, 2021.

Their reference implementations are in TensorFlow, which shows in two places: batch norms have eps = 1e-3, and padding
is "SAME", which puts the odd row and column at the bottom and at the right.
"""

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding of one dimension before and after for "SAME", for an output of ceil(size / stride)."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """`x` [n, c, h, w] padded for a square kernel."""
    top, bottom = same_padding(x.shape[2], kernel, stride)
    left, right = same_padding(x.shape[3], kernel, stride)
    return F.pad(x, (left, right, top, bottom))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a strided 1x1 convolution if the shape changes."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels, eps=EPS)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels, eps=EPS)
        if stride > 1:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(pad_same(x, 3, self.stride))))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (self.shortcut(x) if self.stride > 1 else x))


class ResNet8(nn.Module):
    """Image classification: [n, 3, 32, 32] pixels from 0 to 255 to 10 classes of CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16, eps=EPS)
        self.block1 = ResidualBlock(16, 16, stride=1)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 64, stride=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, channels_in: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.dw = nn.Conv2d(channels_in, channels_in, 3, stride=stride, groups=channels_in)
        self.dw_bn = nn.BatchNorm2d(channels_in, eps=EPS)
        self.pw = nn.Conv2d(channels_in, channels, 1)
        self.pw_bn = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.dw_bn(self.dw(pad_same(x, 3, self.stride))))
        return F.relu(self.pw_bn(self.pw(x)))


class MobileNet(nn.Module):
    """Visual wake words, MobileNetV1 at a quarter of its width: [n, 3, 96, 96] from 0 to 1 to (no person, person)."""

    BLOCKS = (
        (8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1),
        (128, 128, 1), (128, 128, 1), (128, 128, 1), (128, 128, 1), (128, 256, 2), (256, 256, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(8, eps=EPS)
        self.blocks = nn.Sequential(*(SeparableBlock(n, m, stride=stride) for n, m, stride in self.BLOCKS))
        self.fc = nn.Linear(256, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pad_same(image, 3, 2))))
        return self.fc(F.avg_pool2d(self.blocks(x), 3).flatten(1))


class KeywordNet(nn.Module):
    """Keyword spotting, a DS-CNN: [n, 1, 49, 10] of 49 frames with 10 MFCCs to 12 words, or other `classes`."""

    def __init__(self, *, classes: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, (10, 4), stride=2)
        self.bn1 = nn.BatchNorm2d(64, eps=EPS)
        self.blocks = nn.Sequential(*(SeparableBlock(64, 64) for _ in range(4)))
        self.fc = nn.Linear(64, classes)

    def forward(self, mfcc: Tensor) -> Tensor:
        top, bottom = same_padding(49, 10, 2)
        left, right = same_padding(10, 4, 2)
        x = F.relu(self.bn1(self.conv1(F.pad(mfcc, (left, right, top, bottom)))))
        x = self.blocks(x)
        return self.fc(x.mean((2, 3)))


class Autoencoder(nn.Module):
    """Anomaly detection: [n, 640], five frames of 128 log-mel values in dB, to its reconstruction."""

    WIDTHS = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)

    def __init__(self) -> None:
        super().__init__()
        for i, (width_in, width) in enumerate(zip(self.WIDTHS, self.WIDTHS[1:], strict=False), start=1):
            self.add_module(f"fc{i}", nn.Linear(width_in, width))
            if i < 10:
                self.add_module(f"bn{i}", nn.BatchNorm1d(width, eps=EPS))

    def forward(self, spectrum: Tensor) -> Tensor:
        x = spectrum
        for i in range(1, 10):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"fc{i}")(x)))
        return self.get_submodule("fc10")(x)


class TimeBlock(nn.Module):
    """A depthwise convolution over time without padding, a pointwise one, batch norm and ReLU."""

    def __init__(self, channels_in: int, channels: int, *, frames: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels_in, channels_in, (frames, 1), groups=channels_in, bias=False)
        self.pw = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.pw(self.dw(x))))


class WakeWordNet(nn.Module):
    """Streaming wake word: [n, 40, 30, 1], 40 filter-bank energies over 30 frames, to (Marvin, silence, unknown)."""

    def __init__(self) -> None:
        super().__init__()
        widths, frames = (40, 128, 128, 128, 32), (3, 5, 10, 15)
        self.blocks = nn.Sequential(
            *(TimeBlock(n, m, frames=k) for n, m, k in zip(widths, widths[1:], frames, strict=False))
        )
        self.fc = nn.Linear(32, 3)

    def forward(self, energies: Tensor) -> Tensor:
        return self.fc(self.blocks(energies).flatten(1))
