"""Options of `sparsify`: sets single weights to zero."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ..section import LayerPatterns, Positive, fault
from ..tree import Location
from ..units import Percent
from .base import Need, PassOptions
from .finetune import FinetuneOptions

_PATTERN = re.compile(r"(\d{1,3}):(\d{1,3})")
_BLOCKS = "blocks"
_BLOCK = 4  # weights of a block, as C kernels skip them


def _sparse_pattern(value: str) -> str:
    """`blocks`, or N:M with N below M."""
    found = _PATTERN.fullmatch(value)
    if value != _BLOCKS and (found is None or not 0 < int(found[1]) < int(found[2])):
        raise fault(
            "S204",
            f"{value!r} is neither `{_BLOCKS}` nor an N:M pattern",
            hint="for example `2:4`: 2 of 4 weights stay",
        )
    return value


class SparsifyOptions(PassOptions):
    """Sets weights to zero, individually, in blocks or N:M; later training keeps them at zero.

    C for microcontrollers skips blocks of zeros (`pattern: blocks`) where that is faster, and zeros of linear layers
    with `weights: huffman`. Otherwise the network becomes smaller if its files are compressed, but not faster.
    """

    before: ClassVar[tuple[str, ...]] = ("quantize", "product_quantize")
    repeatable: ClassVar[bool] = True
    why: ClassVar[str] = "zero float weights stay zero when quantized"

    pass_: Literal["sparsify"] = Field(default="sparsify", alias="pass", description="The name of the pass.")
    sparsity: Percent | None = Field(
        default=None, description="Share of the weights, or of the blocks, that become zero."
    )
    pattern: Annotated[str, AfterValidator(_sparse_pattern)] | None = Field(
        default=None,
        description="N:M, such as `2:4`: of M consecutive weights along the input channels N are kept. Or `blocks`, "
        "with a `sparsity`: blocks of 4 consecutive weights along the input channels become zero together, by the sum "
        "of the criterion over the block; the last block may be shorter.",
    )
    criterion: Literal["magnitude", "taylor", "wanda", "sparsegpt"] = Field(
        default="magnitude",
        description="Weights that become zero: the smallest; those whose removal changes the loss least, to first "
        "order (`taylor`); in linear layers those with the smallest product of weight and norm of its input "
        "(`wanda`, within each output channel), or with the smallest error of the output, which the remaining weights "
        "compensate (`sparsegpt`). Other layers: the smallest.",
    )
    scope: Literal["layer", "global"] | None = Field(
        default=None,
        description="Apply `sparsity` to each layer, or to all weights of the network together. Default: `global` for "
        "`criterion: magnitude` and `taylor`; the others compare within a layer only.",
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="Number of steps; after step t the sparsity is 1 - (1 - t / steps)^3 of the final one, with "
        "`finetune` after each.",
    )
    schedule: Literal["cubic", "surgery", "learned", "learned_masks"] = Field(
        default="cubic",
        description="`cubic`: in `steps`. Or one training, `finetune`, with zeros that are chosen again in each of its "
        "steps: the smallest weights, of which any can come back (`surgery`, Guo et al., 2016), or those below trained "
        "thresholds of the layers (`learned`, after Kusupati et al., 2020), or of the rows of a weight, without making "
        "the others smaller (`learned_masks`, after Liu et al., 2020). The share of zeros rises within its first half.",
    )
    finetune: FinetuneOptions | None = Field(
        default=None,
        description="Training after each step, with the options of the pass `finetune`; zeros stay zero. Or the one "
        "training of another `schedule`.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers that keep all weights.")
    samples: Positive | None = Field(
        default=None,
        description="Number of calibration samples. Default: all of `data.calibration`.",
    )

    @property
    def by_layer_outputs(self) -> bool:
        """True if the criterion is the change of the output of each linear layer."""
        return self.criterion in ("wanda", "sparsegpt")

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M."""
        found = None if self.pattern is None else _PATTERN.fullmatch(self.pattern)
        return None if found is None else (int(found[1]), int(found[2]))

    @property
    def block(self) -> int:
        """Number of consecutive weights along the input channels that become zero together."""
        return _BLOCK if self.pattern == _BLOCKS else 1

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if self.pattern == _BLOCKS and self.sparsity is None:
            raise fault("S205", "`pattern: blocks` takes a `sparsity`", hint="for example `sparsity: 80 %`")
        if (self.sparsity is None) == (self.kept_of is None):
            raise fault("S205", "takes a `sparsity` or a `pattern` N:M", hint="for example `sparsity: 80 %`")
        if self.kept_of is not None and self.steps > 1:
            raise fault(
                "S205",
                "`steps` apply to `sparsity`; a pattern N:M is applied in one step",
                hint="leave `steps` out",
            )
        if self.schedule != "cubic":
            self._trains_in_one_go()
        if self.by_layer_outputs and self.scope == "global":
            raise fault(
                "S205",
                f"`criterion: {self.criterion}` compares within a layer",
                hint="write `scope: layer`, or remove `scope`",
            )
        return self

    def _trains_in_one_go(self) -> None:
        """Fault S205 for options that cannot be combined with a schedule of one training."""
        what = f"`schedule: {self.schedule}`"
        if self.finetune is None:
            raise fault(
                "S205", f"{what} is a training", hint="add `finetune`, for example `finetune: {epochs: 20}`"
            )
        if self.steps > 1:
            raise fault("S205", f"{what} has no `steps`", hint="leave `steps` out")
        if self.criterion != "magnitude":
            raise fault("S205", f"{what} compares magnitudes", hint="leave `criterion` out")
        if self.schedule != "surgery" and (self.pattern is not None or self.scope == "layer"):
            asked = "`pattern`" if self.pattern is not None else "`scope: layer`"
            raise fault(
                "S205",
                f"{what} learns the shares of the layers: no {asked}",
                hint="take `schedule: surgery`",
            )

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Need of calibration data if the criterion uses it."""
        if self.criterion != "magnitude":
            yield "calibration", ("criterion",)
        yield from super().needed()
