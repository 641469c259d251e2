"""Networks for images of 28x28 with which methods of distillation are compared: a residual teacher, small students."""

import images
import numpy as np
import torch
from torch import Tensor, nn

CLASSES, TURNS = 10, 4


class Block(nn.Module):
    """Residual block of two convolutions, without norms."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1)
        self.second = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = (
            nn.Conv2d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Channels [n, out, h / stride, w / stride]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Residual(nn.Module):
    """Residual network of three blocks (after He et al., 2016), without norms."""

    def __init__(self, width: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, 2 * width, 2)
        self.block3 = Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(64 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, classes] of images [n, 1, 28, 28]."""
        x = self.block1(torch.relu(self.stem(image)))
        return self.head(self.block3(self.block2(x)).flatten(1))


class Plain(nn.Module):
    """Three blocks of six convolutions, without norms and shortcuts (after VGG, Simonyan and Zisserman, 2015)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1)
        self.block1 = _plain(width, width, 1)
        self.block2 = _plain(width, 2 * width, 2)
        self.block3 = _plain(2 * width, 4 * width, 2)
        self.head = nn.Linear(64 * width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, classes] of images [n, 1, 28, 28]."""
        x = self.block1(torch.relu(self.stem(image)))
        return self.head(self.block3(self.block2(x)).flatten(1))


def _plain(channels: int, out: int, stride: int) -> nn.Sequential:
    first = nn.Conv2d(channels, out, 3, stride, 1)
    convolutions = [first, *(nn.Conv2d(out, out, 3, 1, 1) for _ in range(5))]
    return nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, nn.ReLU())))


class SmallNet(nn.Module):
    """Two convolutions with strides of 2, and two linear layers: 52,138 weights with the default width."""

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(1, width, 3, 2, 1)
        self.block2 = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.hidden = nn.Linear(98 * width, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, classes] of images [n, 1, 28, 28]."""
        x = torch.relu(self.block2(torch.relu(self.block1(image))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Rotations(nn.Module):
    """Scores of an image: means over its four rotations, of a network with a score for each class and rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNet(classes=TURNS * CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, classes] of images [n, 1, 28, 28]."""
        turns = [self.network(torch.rot90(image, turn, (2, 3)))[:, turn::TURNS] for turn in range(TURNS)]
        return torch.stack(turns).mean(0)


def turned() -> images.Arrays:
    """The first 1,000 images for training in four rotations, each with a class of its own."""
    arrays = {name: array[:1000] for name, array in images.training().items()}
    x = [np.rot90(arrays["x"], turn, (2, 3)) for turn in range(TURNS)]
    y = [arrays["y"].astype(np.int64) * TURNS + turn for turn in range(TURNS)]
    order = np.random.default_rng(0).permutation(TURNS * 1000)
    return {"x": np.concatenate(x)[order], "y": np.concatenate(y)[order]}
