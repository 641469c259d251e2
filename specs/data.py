"""The section `data`: the files that a network is calibrated and measured with, and the way from file to input."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .errors import near_miss
from .model import ArrayOrigin, FileSource, ModuleSource, Source
from .section import FilePath, Name, Positive, Section, fault

Metric: TypeAlias = Literal["top1", "agreement", "mse", "snr"]

_LAYOUT = re.compile(r"\s*(n[a-z]*)\s*->\s*(n[a-z]*)\s*")


def _layout(value: str) -> str:
    match = _LAYOUT.fullmatch(value.lower())
    hint = "write the axes of the file, then those of the model, samples first: `nhwc->nchw`"
    if not match:
        raise fault("S207", "is not a layout", hint=hint)
    before, after = match.groups()
    if sorted(before) != sorted(after) or len(set(before)) != len(before):
        raise fault("S207", "names different axes on the two sides, or one of them twice", hint=hint)
    return f"{before}->{after}"


class Transform(Section):
    """From what a file holds to what a model input takes: `layout`, then `reshape`, then `value * scale + offset`.

    An input of whole numbers takes the values as they are: `scale` and `offset` are for float inputs.
    """

    layout: Annotated[str, AfterValidator(_layout)] | None = Field(
        default=None,
        description="A permutation of axes by letters, samples first.",
        examples=["nhwc->nchw"],
    )
    reshape: tuple[Positive, ...] | None = Field(
        default=None, description="The shape of one sample, without the batch.", examples=[[1, 49, 10]]
    )
    scale: float = Field(default=1.0, description="Factor on every value, for float inputs.")
    offset: float = Field(default=0.0, description="Added after the factor, for float inputs.")

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """`layout` as numpy's transpose takes it; None where there is none."""
        if self.layout is None:
            return None
        before, after = self.layout.split("->")
        return tuple(before.index(axis) for axis in after)

    @property
    def keeps_values(self) -> bool:
        """Whether every value of the file is one of the input."""
        return (self.scale, self.offset) == (1.0, 0.0)

    @model_validator(mode="after")
    def _scale_is_not_zero(self) -> Self:
        if self.scale == 0:
            raise fault("S205", "scale must not be 0, which would make every input equal")
        return self


class Dataset(Section):
    """Samples: arrays whose first axis is the sample, from an npz file or from a function that makes them."""

    file: FilePath | None = Field(default=None, description="An .npz file; it must not hold pickles.")
    source: Source | None = Field(
        default=None,
        description="In place of `file`: a function without arguments that gives numpy arrays by name, as "
        "`samples.py:calibration`.",
    )
    inputs: Mapping[Name, Name] = Field(
        default={},
        description="The array of each model input; an input left out takes the array of its own name.",
    )
    samples: Positive | None = Field(
        default=None, description="How many to use, from the first; all when left out."
    )

    labels: Name | None = Field(default=None, description="The array of labels.")

    @model_validator(mode="after")
    def _file_or_source(self) -> Self:
        if (self.file is None) == (self.source is None):
            raise fault(
                "S205", "give either file or source", hint="`file: samples.npz`, or `source: samples.py:make`"
            )
        return self

    @property
    def origin(self) -> ArrayOrigin:
        """Origin of the arrays, as text."""
        origin = self.source if self.file is None else self.file
        assert origin is not None
        return origin

    def array(self, model_input: str) -> str:
        """The name of the array that feeds a model input."""
        return self.inputs.get(model_input, model_input)


class Calibration(Dataset):
    """Samples that show the ranges of activations; no labels, except where a pass asks for them."""

    samples: Positive | None = Field(
        default=256,
        description="How many to use, from the first; `null` for all. Left out, passes that train take all of them.",
    )
    exclude: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="Positions, from 0, of samples among those to leave out, such as outliers that the report names. "
        "Of a model with states they are positions of sequences.",
        examples=[[7, 31]],
    )
    labels: Name | None = Field(default=None, description="The array of labels.")

    @property
    def is_limited(self) -> bool:
        """Whether the user says how many samples to use."""
        return "samples" in self.model_fields_set


def _metric(value: Any) -> Any:  # any: whatever the user wrote, checked here
    if isinstance(value, str) and ":" not in value and value not in get_args(Metric):
        near = near_miss(value, get_args(Metric))
        raise fault("S204", "is not a metric", hint=f"{near}; a metric of your own is `file.py:function`")
    return value


class Evaluation(Dataset):
    """Samples that measure a network."""

    metric: Annotated[Metric | Source, BeforeValidator(_metric)] | None = Field(
        default=None,
        description="`top1`: share of samples whose largest output is at the label. `mse`: mean squared error "
        "against the labels. `agreement`: share of samples decided as the original network decides them. `snr`: the "
        "original network's output over the difference from it, in dB. `file.py:function`: a number that your function "
        "makes of the output and the labels, tensors with samples first. Left out: `top1` with labels, `snr` without.",
    )
    output: Name | None = Field(
        default=None, description="The output that is measured; the first when left out."
    )

    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Dimension of the measured output along which class scores lie, for `top1` and `agreement`, which "
        "then count each position. Left out: the only one that has more than one element, or the only one beside "
        "which the others are those of the labels.",
    )

    @property
    def measured(self) -> Metric | FileSource | ModuleSource:
        """The metric, its default resolved."""
        return self.metric or ("top1" if self.labels else "snr")


class Data(Section):
    """Data for calibration and evaluation."""

    calibration: Calibration | None = Field(
        default=None, description="What the ranges of activations are taken from."
    )
    evaluation: Evaluation | None = Field(default=None, description="What the network is measured with.")
    transform: Mapping[Name, Transform] = Field(
        default={},
        description="For each model input the way from file to input; the emitted C tells its user the same.",
    )
