"""Options of distillation: the teacher, and the losses between its results and those of the network in training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

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


NamedTeacher: TypeAlias = Literal["captured", "virtual", "peers", "exits", "stochastic_precision"]


def _teacher(value: Any) -> Any:  # any: whatever the user wrote, checked by the union
    if not isinstance(value, str) or value in get_args(NamedTeacher):
        return value
    if ":" not in value:
        hint = f"write {', '.join(f'`{name}`' for name in get_args(NamedTeacher))}, or `file.py:Model`"
        raise fault("S204", "is not a teacher", hint=hint)
    return {"source": value}


FeatureKind: TypeAlias = Literal["mse", "cosine", "attention", "relation", "adversarial"]


class FeaturePair(Section):
    """A feature loss: a module, that of the teacher, and how their results are compared."""

    layer: Name = Field(description="Module of the network in training.")
    teacher: Name | None = Field(default=None, description="Module of the teacher. Default: the same path.")
    loss: FeatureKind = Field(
        default="mse",
        description="Mean squared error relative to the teacher's mean square (FitNets), or 1 - cosine of the channels "
        "of each position (DistilBERT), both through a trained linear regressor if the numbers of channels differ; "
        "squared distance of the normalized maps of mean squares over channels (`attention`, Zagoruyko and Komodakis, "
        "2017); of the normalized products between the samples of a batch (`relation`, Tung and Mori, 2019); or the "
        "loss of a discriminator, trained in the same steps, that tells both apart (`adversarial`, Belagiannis et al., "
        "2018).",
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
        "another one; `virtual`, a distribution that gives the label `correct` and shares the rest among the other "
        "classes (Yuan et al., 2020); `peers`, networks trained together, of which each learns from the others (Anil "
        "et al., 2018); `exits`: the final output is the teacher of classifiers after the modules `exits` (Be Your "
        "Own Teacher, Zhang et al., 2019), which are not exported; or, for integer graphs, `stochastic_precision`, the "
        "network in training with activations of more bits at random places (SPEQ, Boo et al., 2021).",
        examples=["teacher.py:Wide"],
    )
    correct: Percent = Field(
        default=0.9,
        json_schema_extra={"default": "90 %"},
        description="Probability of the label for `teacher: virtual`.",
    )
    peers: Annotated[int, Field(ge=2, le=16)] = Field(
        default=2,
        description="Number of networks for `teacher: peers`. The first one starts from the given weights and is "
        "exported; in the others, the elements of each weight start in random order.",
    )
    peer_weights: Literal["mean", "attention"] = Field(
        default="mean",
        description="Each peer learns from the mean of the others; or, with `attention`, the first one from their "
        "mean, and each of them from a mean with learned weights (OKDDip, Chen et al., 2020).",
    )
    exits: tuple[Name, ...] = Field(
        default=(),
        description="Modules with a linear classifier of their mean over positions, for `teacher: exits`.",
        examples=[["block1", "block2"]],
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
    matching: Literal["pairs", "attention"] = Field(
        default="pairs",
        description="Feature losses of the pairs in `layers`; or, with `attention`, of all modules in `layers` with "
        "all teacher modules there, with learned weights for each sample (SemCKD, Chen et al., 2021).",
    )
    layer_weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="Weight of the mean of the feature losses."
    )

    @model_validator(mode="after")
    def _teacher_without_features(self) -> Self:
        if self.teacher == "virtual" and (self.layers or self.outputs != "kl"):
            what = "layers" if self.layers else "outputs"
            hint = f"leave `{what}` out, or name another teacher"
            raise fault("S205", f"`teacher: virtual` has class scores alone, no `{what}`", hint=hint)
        if self.teacher in ("peers", "exits", "stochastic_precision") and self.layers:
            hint = "leave `layers` out, or name another teacher"
            raise fault("S205", f"`teacher: {self.teacher}` has no `layers`", hint=hint)
        return self

    @model_validator(mode="after")
    def _settings_of_the_teacher(self) -> Self:
        if (self.teacher == "exits") != bool(self.exits):
            fact = "`teacher: exits` needs `exits`" if not self.exits else "`exits` needs `teacher: exits`"
            raise fault("S205", fact, hint="name modules in `exits`, such as [block1, block2]")
        given = self.model_fields_set & {"peers", "peer_weights"}
        if given and self.teacher != "peers":
            name = min(given)
            raise fault("S205", f"`{name}` needs `teacher: peers`", hint=f"leave `{name}` out")
        if self.peer_weights == "attention" and self.peers == 2:
            raise fault("S205", "`peer_weights: attention` needs at least 3 `peers`")
        if self.matching == "attention" and len(self.layers) < 2:
            raise fault("S205", "`matching: attention` needs at least 2 `layers`")
        return self

    @property
    def is_own_teacher(self) -> bool:
        """True if no other model is the teacher, so that labels are needed."""
        return self.teacher in ("virtual", "peers", "exits", "stochastic_precision")
