"""A layer as a matrix product over places is the layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxpress.ir import TensorType
from fxpress.ir.ops.conv import Conv, ConvTranspose
from fxpress.ir.ops.layer import Layer
from fxpress.ir.ops.linear import Linear
from fxpress.passes.quantize.layer_rows import count_places, pick, taps_of, unfold


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize(
    ("op", "x", "weight"),
    [
        (Conv(padding=(1, 1, 1, 1)), (3, 4, 6, 5), (7, 4, 3, 3)),
        (Conv(stride=(2, 1), padding=(0, 1, 2, 0), dilation=(1, 2)), (2, 3, 7, 9), (4, 3, 2, 3)),
        (Conv(groups=4, padding=(1, 1, 1, 1)), (2, 4, 5, 5), (8, 1, 3, 3)),
        (Conv(groups=2), (2, 6, 5, 5), (4, 3, 1, 1)),
        (Conv(stride=(2,), padding=(1, 2), dilation=(2,)), (2, 3, 11), (4, 3, 3)),
        (Conv(stride=(1, 1, 2), padding=(0,) * 6, dilation=(1, 1, 1)), (2, 2, 3, 4, 5), (3, 2, 2, 2, 2)),
        (ConvTranspose(stride=(2, 2)), (2, 3, 4, 5), (3, 4, 2, 2)),
        (ConvTranspose((2, 1), (1, 0, 2, 1), (1, 0), (1, 2), groups=2), (2, 4, 4, 5), (4, 3, 3, 2)),
        (ConvTranspose((3,), (0, 0), (0,), (1,), groups=4), (2, 4, 5), (4, 1, 2)),
        (ConvTranspose((2,), (3, 3), (1,), (1,)), (2, 3, 6), (3, 2, 2)),
        (Linear(), (8,), (3, 8)),
        (Linear(), (5, 8), (3, 8)),
        (Linear(), (2, 5, 8), (3, 8)),
    ],
)
def test_the_product_over_all_places_is_the_layer(
    op: Layer, x: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    data, w = draw(*x), draw(*weight)
    y = op.reference(data, w)
    places = torch.randperm(count_places(op, y), generator=torch.Generator().manual_seed(0))
    shape = op.infer(TensorType(x), TensorType(weight))[0].shape
    rows = unfold(op, data, weight[2:], shape, places)
    torch.testing.assert_close(rows @ taps_of(op, w).mT, pick(op, y, places), rtol=1e-12, atol=1e-12)
    assert torch.equal(op.weight_of(taps_of(op, w), weight), w)
