"""Generators of images of 28x28 from images of 7x7, their data, and the peak signal-to-noise ratio as a metric."""

import images
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SCALE = 4

Arrays = dict[str, NDArray[np.generic]]


class Generator(nn.Module):
    """Three convolutions of the small image; the last one gives the 16 pixels of each position."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, 1, 1)
        self.middle = nn.Conv2d(width, width, 3, 1, 1)
        self.last = nn.Conv2d(width, SCALE * SCALE, 3, 1, 1)

    def forward(self, small: Tensor) -> Tensor:
        """Images [n, 1, 28, 28] of images [n, 1, 7, 7]."""
        x = torch.relu(self.middle(torch.relu(self.first(small))))
        return functional.pixel_shuffle(self.last(x), SCALE)


def training() -> Arrays:
    """Pairs of images: `small` [n, 1, 7, 7] and `large` [n, 1, 28, 28]."""
    return _pairs(images.training())


def validation() -> Arrays:
    """Pairs for choosing recipes."""
    return _pairs(images.validation())


def evaluation() -> Arrays:
    """Pairs of the test set."""
    return _pairs(images.evaluation())


def psnr(output: Tensor, large: Tensor | None) -> float:
    """Peak signal-to-noise ratio in dB of pixels between 0 and 1."""
    assert large is not None
    return float(-10 * (output - large).square().mean().log10())


def _pairs(arrays: Arrays) -> Arrays:
    large = arrays["x"].astype(np.float32)
    blocks = large.reshape(len(large), 1, 28 // SCALE, SCALE, 28 // SCALE, SCALE)
    return {"small": blocks.mean((3, 5)), "large": large}
