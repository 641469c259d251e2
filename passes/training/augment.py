"""Random flips and shifts of images, by gathering pixels; the border is repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from ...specs.options import Augmentation

_IMAGE_RANK = 4


def augment(x: Tensor, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments each image of [n, c, h, w] independently; other tensors are returned unchanged."""
    if x.ndim != _IMAGE_RANK:
        return x
    count, _, height, width = x.shape
    shifts = torch.randint(-options.shift, options.shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool() & options.flip
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)
    columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(count).view(-1, 1, 1)
    return x.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
