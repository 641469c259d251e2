"""Images and the windows that move over them, for convolutions and pools of one and two spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..plan.layout import Shape
from .base import Site

MAX_SPATIAL = 2


@dataclass(frozen=True, slots=True)
class Image:
    """An activation as batch, height, width, channels; a signal of one spatial dimension has height 1."""

    n: int
    h: int
    w: int
    c: int

    @property
    def text(self) -> str:
        """Its sizes, for comments."""
        return f"{self.h}x{self.w}x{self.c}"


@dataclass(frozen=True, slots=True)
class Window:
    """Kernel, stride, padding before (top, left) and dilation, in two dimensions."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)

    def reaches_out(self, x: Image, y: Image) -> bool:
        """True if some window has taps outside the image."""
        last = [
            (n - 1) * s - p + d * (k - 1)
            for n, s, p, d, k in zip(
                (y.h, y.w), self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        ]
        return self.padding != (0, 0) or last[0] >= x.h or last[1] >= x.w

    def covers(self, x: Image) -> bool:
        """True if there is a single window, with each element of the image under one tap."""
        is_dense = all(d == 1 or k == 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return is_dense and self.kernel == (x.h, x.w) and self.padding == (0, 0)

    def taps_inside(self, x: Image, y: Image) -> int:
        """Taps of all windows that are inside the image."""
        rows, columns = self.rows_inside(x, y), self._inside(1, x.w, y.w)
        return rows * columns

    def rows_inside(self, x: Image, y: Image) -> int:
        """Rows of the windows over a column of results that are inside the images."""
        return y.n * self._inside(0, x.h, y.h)

    def distance(
        self, x: Image, y: Image, bytes_each: tuple[int, int], *, is_gathered: bool = False, together: int = 1
    ) -> int:
        """Distance in bytes between the start of results that overwrite an image pixel by pixel, and the start of the
        image.

        Both have their channels last, and elements of `bytes_each`. A kernel writes `together` pixels at a time:
        after it has read their windows if it gathers them, else while it reads them.
        """
        tops = np.maximum(np.arange(y.h) * self.stride[0] - self.padding[0], 0)
        lefts = np.maximum(np.arange(y.w) * self.stride[1] - self.padding[1], 0)
        firsts = (np.arange(y.n)[:, None, None] * x.h + tops[:, None]) * x.w + lefts
        unread = np.minimum.accumulate(firsts.reshape(-1)[::-1])[::-1] * x.c * bytes_each[0]
        written = np.minimum(np.arange(len(unread)) + (1 if is_gathered else together), len(unread))
        gaps = written * y.c * bytes_each[1]
        behind = gaps[:-1] - unread[1:] if is_gathered else gaps - unread
        return max(0, int(behind.max(initial=0)))

    def _inside(self, axis: int, inputs: int, outputs: int) -> int:
        """Taps along an axis that are inside, over all positions."""
        stride, padding, dilation = self.stride[axis], self.padding[axis], self.dilation[axis]
        starts = range(-padding, outputs * stride - padding, stride)
        return sum(
            0 <= start + dilation * tap < inputs for start in starts for tap in range(self.kernel[axis])
        )


POINT = Window((1, 1), (1, 1), (0, 0))
"""The window of a pointwise convolution."""


def followed(
    site: Site, seen: Window, x: Image, y: Image, *, is_gathered: bool = False, together: int = 1
) -> dict[int, int]:
    """`Offer.follows` of a kernel that moves a window over the pixels of `x`, and writes those of `y` in order.

    Empty on computers: their compilers vectorize loops over memory that does not overlap.
    """
    if site.machine.is_host:
        return {}
    each = site.type("x").dtype.bytes, site.output.dtype.bytes
    return {site.index("x"): seen.distance(x, y, each, is_gathered=is_gathered, together=together)}


def image(shape: Shape) -> Image:
    """The image of a shape [n, c, w] or [n, c, h, w]."""
    n, c, *spatial = shape
    h, w = two(spatial, 1)
    return Image(n, h, w, c)


def window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] = ()
) -> Window:
    """A window from the operator's attributes; `padding` lists before and after of each dimension."""
    return Window(
        two(kernel, 1), two(stride, 1), two(padding[::2], 0), two(dilation or (1,) * len(kernel), 1)
    )


def two(numbers: Sequence[int], fill: int) -> tuple[int, int]:
    """One number for height and one for width; `fill` is the height of a signal."""
    first, second = (fill, *numbers)[-2:]
    return first, second
