"""Rows of inputs of a layer, in contiguous memory: the pixels of an image, or windows that are gathered into rows."""

from __future__ import annotations

from dataclasses import dataclass

from .....ir.ops.conv import Conv
from ...plan.layout import Layout
from ..base import Site
from ..layouts import image_layouts, row_layouts
from ..window import MAX_SPATIAL, POINT, Image, Window, followed, image, window


@dataclass(frozen=True, slots=True)
class Row:
    """Names of one row in the C: its pointer, the index of its results, its two accumulators."""

    pointer: str
    place: str
    even: str
    odd: str


ROWS = (Row("p", "at", "even", "odd"), Row("q", "next", "even_next", "odd_next"))
"""Two rows that are multiplied together."""


@dataclass(frozen=True)
class Gather:
    """Template context of the windows of a convolution, each of which is copied to one row."""

    x: Image
    y: Image
    window: Window
    padded: bool
    zero_point: int
    element_bytes: int

    @property
    def fills_bytes(self) -> bool:
        """True if the zero point is one byte, repeated."""
        return self.element_bytes == 1 or self.zero_point == 0

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return self.element_bytes * self.x.c

    @property
    def row_elements(self) -> int:
        """Elements of a row of the window."""
        return self.window.kernel[1] * self.x.c

    @property
    def contiguous(self) -> bool:
        """True if a row of the window is contiguous."""
        return self.window.dilation[1] == 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the window."""
        return self.element_bytes * self.row_elements

    @property
    def instructions(self) -> float:
        """Instructions of a window on a Cortex-M4."""
        height, width = self.window.kernel
        return 60.0 + height * width * self.x.c * 0.6 + 35.0 * height


@dataclass(frozen=True)
class LayerRows:
    """Rows of `depth` inputs of a layer, and how many results are next to each other, so that rows can be paired."""

    title: str
    count: int
    depth: int
    channels: int
    together: int
    gather: Gather | None = None

    @property
    def template(self) -> str:
        """End of the name of the template that computes the rows."""
        return "linear" if self.gather is None else "conv"

    @staticmethod
    def layouts(site: Site) -> tuple[Layout, Layout]:
        """Layouts of input and result."""
        return image_layouts(site) if isinstance(site.node.op, Conv) else row_layouts(site)

    def follows(self, site: Site, together: int) -> dict[int, int]:
        """`Offer.follows` of a kernel that computes `together` rows at a time."""
        if self.gather is not None:
            return followed(site, self.gather.window, self.gather.x, self.gather.y, is_gathered=True)
        rows = Image(1, 1, self.count, self.depth), Image(1, 1, self.count, self.channels)
        return followed(site, POINT, *rows, together=together)


def rows_of(site: Site) -> LayerRows | str:
    """The rows of a linear layer or a convolution, or the reason why it has none."""
    op, weight = site.node.op, site.type("weight")
    channels, depth = weight.shape[0], weight.numel // weight.shape[0]
    if not isinstance(op, Conv):
        count = site.output.numel // channels
        return LayerRows(f"Linear layer, {count} x {depth} to {channels}", count, depth, channels, count)
    if op.groups != 1 or op.rank > MAX_SPATIAL:
        return "products of rows are for one group, in one or two spatial dimensions"
    x, y = image(site.type("x").shape), image(site.output.shape)
    seen = window(weight.shape[2:], op.stride, op.padding, op.dilation)
    padded = seen.reaches_out(x, y)
    title, count = f"Convolution {seen.kernel[0]}x{seen.kernel[1]}, {x.text} to {y.text}", y.n * y.h * y.w
    if seen.kernel == (1, 1) and seen.stride == (1, 1) and not padded:
        return LayerRows(title, count, depth, channels, count)
    zero_point, element_bytes = site.quantization("x").zero_point[0], site.type("x").dtype.bytes
    gather = Gather(x, y, seen, padded, zero_point, element_bytes)
    return LayerRows(title, count, depth, channels, y.w, gather)


def row_parameters(rows: tuple[Row, ...], element: str, result: str) -> str:
    """The C parameters for rows and results."""
    pointers = [f"const {element} *{row.pointer}" for row in rows]
    return ", ".join([*pointers, f"{result} *y", *(f"int32_t {row.place}" for row in rows)])
