"""Options of distillation: the teacher, and the losses between its results and those of the network in training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from ..model import Source, as_json
from ..section import FilePath, Name, Section, fault
from ..units import Percent


class Teacher(Section):
    """Another model as the teacher: it takes the inputs of the captured model and has outputs of the same shapes."""

    source: Source = Field(
        description="File or module, then a class, a function or a torch module, as in `model`."
    )
    args: Mapping[Name, Annotated[JsonValue, BeforeValidator(as_json)]] = Field(
        default={}, description="Keyword arguments of the class or function."
    )
    weights: FilePath | None = Field(
        default=None,
        description="State dict: a .safetensors file or a .pt file that contains only tensors. Default: the weights "
        "that the source sets.",
    )


NamedTeacher: TypeAlias = Literal["captured", "virtual"]


def _teacher(value: Any) -> Any:  # any: whatever the user wrote, checked by the union
    if not isinstance(value, str) or value in ("captured", "virtual"):
        return value
    if ":" not in value:
        hint = "write `captured`, `virtual`, or `file.py:Model` for another model"
        raise fault("S204", "is not a teacher", hint=hint)
    return {"source": value}


FeatureKind: TypeAlias = Literal["mse", "cosine", "attention", "relation"]


class FeaturePair(Section):
    """A feature loss: a module, that of the teacher, and how their results are compared."""

    layer: Name = Field(description="Module of the network in training.")
    teacher: Name | None = Field(default=None, description="Module of the teacher. Default: the same path.")
    loss: FeatureKind = Field(
        default="mse",
        description="Mean squared error relative to the teacher's mean square (FitNets), or 1 - cosine of the channels "
        "of each position (DistilBERT), both through a trained linear regressor if the numbers of channels differ; "
        "squared distance of the normalized maps of mean squares over channels (`attention`, Zagoruyko and Komodakis, "
        "2017); or of the normalized products between the samples of a batch (`relation`, Tung and Mori, 2019).",
    )
    weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="Weight among the feature losses."
    )


def _pair(value: Any) -> Any:  # any: whatever the user wrote, checked by the section
    return {"layer": value} if isinstance(value, str) else value


class Distillation(Section):
    """Distillation from a teacher: its outputs (Hinton et al., 2015) and features (FitNets, 2015)."""

    teacher: Annotated[NamedTeacher | Teacher, BeforeValidator(_teacher)] = Field(
        default="captured",
        description="The captured model; `file.py:Model`, or a mapping with `source`, `args` and `weights`, for "
        "another one; or `virtual`, a distribution that gives the label `correct` and shares the rest among the other "
        "classes (Yuan et al., 2020).",
        examples=["teacher.py:Wide"],
    )
    correct: Percent = Field(
        default=0.9,
        json_schema_extra={"default": "90 %"},
        description="Probability of the label for `teacher: virtual`.",
    )
    outputs: Literal["kl", "mse", "cosine"] = Field(
        default="kl",
        description="Loss between the outputs: KL divergence of class scores, mean squared error, or 1 - cosine of the "
        "scores of each position. Outputs that are not class scores have mean squared error.",
    )
    weight: Percent = Field(
        default=0.7,
        json_schema_extra={"default": "70 %"},
        description="Weight of the distillation loss; the task loss has the remaining weight.",
    )
    temperature: Annotated[float, Field(ge=1, le=100)] = Field(
        default=4.0, description="Softmax temperature: divisor of the logits of student and teacher."
    )
    layers: tuple[Annotated[FeaturePair, BeforeValidator(_pair)], ...] = Field(
        default=(),
        description="Modules with a feature loss: a path, or a mapping with `layer`, `teacher`, `loss` and `weight`.",
        examples=[["block2", {"layer": "block3", "teacher": "blocks.5", "loss": "attention"}]],
    )
    layer_weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="Weight of the mean of the feature losses."
    )

    @model_validator(mode="after")
    def _virtual_teacher_has_scores_alone(self) -> Self:
        if self.teacher == "virtual" and (self.layers or self.outputs != "kl"):
            what = "layers" if self.layers else "outputs"
            hint = f"leave `{what}` out, or name another teacher"
            raise fault("S205", f"`teacher: virtual` has class scores alone, no `{what}`", hint=hint)
        return self
