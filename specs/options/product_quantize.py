"""Options of `product_quantize`: blocks of weights as codewords of a codebook."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from ..section import LayerPattern, Positive, Selects
from .base import PassOptions

BlockSize: TypeAlias = Annotated[int, Field(ge=2, le=64)]


class ProductQuantizeOptions(PassOptions):
    """Replaces blocks of consecutive weights by codewords of a codebook for each layer (product quantization).

    Layers look their weights up in each call; `finetune` afterwards trains the codewords. For the torch module.
    """

    fits_microcontrollers: ClassVar = False
    needs: ClassVar = frozenset({"calibration"})

    pass_: Literal["product_quantize"] = Field(
        default="product_quantize", alias="pass", description="The name of the pass."
    )
    block: BlockSize = Field(
        default=8,
        description="Number of consecutive weights of an output channel in a block; in convolutions the taps of an "
        "input channel are consecutive. If it does not divide the channel, the nearest divisor is used.",
    )
    codewords: Annotated[int, Field(ge=2, le=256)] = Field(
        default=256,
        description="Number of codewords of a layer, at most a quarter of its blocks. Codes take 8 bits.",
    )
    layers: Annotated[Mapping[LayerPattern, BlockSize | Literal["float32"]], Selects()] = Field(
        default={},
        description="Exceptions by layer: a pattern, and the block size, or `float32` for layers that stay as they "
        "are. The last matching pattern applies.",
    )
    iterations: Positive = Field(default=20, description="Iterations of k-means.")
    samples: Positive = Field(
        default=64, description="Number of calibration samples that weight the errors of a block."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Random seed of the first codewords.")
