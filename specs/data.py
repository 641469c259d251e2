"""The section `data`: files for calibration and evaluation, and the conversion from a file to a model input."""

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
    """Conversion from a file to a model input: `layout`, then `reshape`, then `value * scale + offset`.

    An input of whole numbers takes the values as they are: `scale` and `offset` are for float inputs.
    """

    layout: Annotated[str, AfterValidator(_layout)] | None = Field(
        default=None,
        description="Permutation of axes as letters, samples first.",
        examples=["nhwc->nchw"],
    )
    reshape: tuple[Positive, ...] | None = Field(
        default=None, description="Shape of one sample, without the batch.", examples=[[1, 49, 10]]
    )
    scale: float = Field(default=1.0, description="Factor, for float inputs.")
    offset: float = Field(default=0.0, description="Offset added after the factor, for float inputs.")

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """`layout` as a permutation for `numpy.transpose`; None if there is no layout."""
        if self.layout is None:
            return None
        before, after = self.layout.split("->")
        return tuple(before.index(axis) for axis in after)

    @property
    def keeps_values(self) -> bool:
        """True if `scale` and `offset` leave the values of the file unchanged."""
        return (self.scale, self.offset) == (1.0, 0.0)

    @model_validator(mode="after")
    def _scale_is_not_zero(self) -> Self:
        if self.scale == 0:
            raise fault("S205", "scale must not be 0, which would make every input equal")
        return self


class Dataset(Section):
    """Samples: arrays whose first dimension counts the samples, from an .npz file or a function."""

    file: FilePath | None = Field(default=None, description="An .npz file without pickles.")
    source: Source | None = Field(
        default=None,
        description="Instead of `file`: a function without arguments that returns numpy arrays by name, such as "
        "`samples.py:calibration`.",
    )
    inputs: Mapping[Name, Name] = Field(
        default={},
        description="Array of each model input. Default: the array with the name of the input.",
    )
    samples: Positive | None = Field(
        default=None, description="Number of samples, from the first. Default: all."
    )

    labels: Name | None = Field(default=None, description="Name of the array of labels.")

    @model_validator(mode="after")
    def _file_or_source(self) -> Self:
        if (self.file is None) == (self.source is None):
            raise fault(
                "S205", "give either file or source", hint="`file: samples.npz`, or `source: samples.py:make`"
            )
        return self

    @property
    def origin(self) -> ArrayOrigin:
        """Description of where the arrays come from, for reports and messages."""
        origin = self.source if self.file is None else self.file
        assert origin is not None
        return origin

    def array(self, model_input: str) -> str:
        """Name of the array that feeds a model input."""
        return self.inputs.get(model_input, model_input)


class Calibration(Dataset):
    """Samples for calibration and training; labels only if a pass needs them."""

    samples: Positive | None = Field(
        default=256,
        description="Number of samples, from the first; `null` for all. Default: 256, or all for passes that train.",
    )
    exclude: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="Indices, from 0, of samples to leave out, such as outliers that the report names. For a model "
        "with states, indices of sequences.",
        examples=[[7, 31]],
    )
    labels: Name | None = Field(default=None, description="Name of the array of labels.")

    @property
    def is_limited(self) -> bool:
        """True if the user set the number of samples."""
        return "samples" in self.model_fields_set


def _metric(value: Any) -> Any:  # any: a value from a spec, checked here
    if isinstance(value, str) and ":" not in value and value not in get_args(Metric):
        near = near_miss(value, get_args(Metric))
        raise fault("S204", "is not a metric", hint=f"{near}; write your own metric as `file.py:function`")
    return value


class Evaluation(Dataset):
    """Samples for measuring the network."""

    metric: Annotated[Metric | Source, BeforeValidator(_metric)] | None = Field(
        default=None,
        description="`top1`: share of samples whose largest output is at the label. `mse`: mean squared error "
        "against the labels. `agreement`: share of samples with the same classification as the original network. "
        "`snr`: signal-to-noise ratio against the original network, in dB. `file.py:function`: the number that your "
        "function returns for the output and the labels, tensors with samples first. Default: `top1` with labels, "
        "`snr` without.",
    )
    output: Name | None = Field(default=None, description="Measured output. Default: the first.")

    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Class dimension of the measured output, for `top1` and `agreement`, which then count each "
        "position. Default: the only dimension with more than one element, or the only one whose removal leaves the "
        "shape of the labels.",
    )

    @property
    def measured(self) -> Metric | FileSource | ModuleSource:
        """The metric, its default resolved."""
        return self.metric or ("top1" if self.labels else "snr")


class Data(Section):
    """Data for calibration and evaluation."""

    calibration: Calibration | None = Field(default=None, description="Samples for calibration and training.")
    evaluation: Evaluation | None = Field(default=None, description="Samples for measuring the network.")
    transform: Mapping[Name, Transform] = Field(
        default={},
        description="Conversion from file to model input, for each input; the header of the emitted C documents it.",
    )
