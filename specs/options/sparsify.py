"""Options of `sparsify`: single weights become zero."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ..section import LayerPatterns, Positive, fault
from ..units import Percent
from .base import PassOptions
from .finetune import FinetuneOptions

_PATTERN = re.compile(r"(\d{1,3}):(\d{1,3})")


def _sparse_pattern(value: str) -> str:
    """N:M with N below M."""
    found = _PATTERN.fullmatch(value)
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise fault("S204", f"{value!r} is no N:M pattern", hint="for example `2:4`: 2 of 4 weights stay")
    return value


class SparsifyOptions(PassOptions):
    """Sets the smallest weights to zero, alone or N of M; a training after it keeps them there.

    No kernel skips zeros: the network becomes smaller where its files are compressed, not faster.
    """

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    repeatable: ClassVar[bool] = True
    why: ClassVar[str] = "zeros of the float weights are zeros on every grid"

    pass_: Literal["sparsify"] = Field(default="sparsify", alias="pass", description="The name of the pass.")
    sparsity: Percent | None = Field(
        default=None, description="Share of the weights that become zero, of all layers together or of each."
    )
    pattern: Annotated[str, AfterValidator(_sparse_pattern)] | None = Field(
        default=None,
        description="N:M, such as `2:4`: of M weights beside each other along the input channels N stay.",
    )
    scope: Literal["layer", "global"] = Field(
        default="global",
        description="Whether `sparsity` holds for each layer, or for all: the smallest weights anywhere.",
    )
    steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1,
        description="Steps to the sparsity, as 1 - (1 - step / steps)^3 of it, with `finetune` after each.",
    )
    finetune: FinetuneOptions | None = Field(
        default=None, description="Training after each step, as in the pass `finetune`; zeros stay zeros."
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose weights all stay.")
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of `pattern`."""
        found = None if self.pattern is None else _PATTERN.fullmatch(self.pattern)
        return None if found is None else (int(found[1]), int(found[2]))

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise fault("S205", "takes a `sparsity` or a `pattern`", hint="for example `sparsity: 80 %`")
        if self.pattern is not None and self.steps > 1:
            raise fault(
                "S205", "`steps` are of a `sparsity`; a pattern is reached at once", hint="leave `steps` out"
            )
        return self
