"""Options of `finetune`: training of a float graph, or quantization-aware training of an integer graph."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..model import FileSource, ModuleSource, Source
from ..section import FilePath, LayerPatterns, Positive, Section, fault
from ..tree import Location
from ..units import Decibel, Percent
from .base import Need, PassOptions
from .distillation import Distillation

NamedLoss: TypeAlias = Literal["cross_entropy", "mse"]
_Rate = Annotated[float, Field(gt=0, le=10)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]


def _loss(value: Any) -> Any:  # any: a value from a spec, checked by the union
    if isinstance(value, str) and ":" not in value and value not in ("cross_entropy", "mse"):
        hint = "write `cross_entropy`, `mse`, or `file.py:function` for one of your own"
        raise fault("S204", "is not a loss", hint=hint)
    return value


class Lora(Section):
    """Low-rank adapters (LoRA, Hu et al., 2022): weights W + alpha / rank * B A, of which only A and B are trained."""

    rank: Positive = Field(default=8, description="Rows of A [rank, in] and columns of B [out, rank].")
    alpha: Annotated[float, Field(gt=0, le=10_000)] | None = Field(
        default=None, description="Factor of the product, over `rank`. Default: `rank`, a factor of 1."
    )
    layers: LayerPatterns = Field(default=(), description="Layers with adapters. Default: all linear layers.")


class LowRank(Section):
    """Weights of layers change by a product of two small matrices."""

    lora: Lora = Field(description="Rank and layers of the adapters.")


class PromptTuning(Section):
    """Trained vectors before the embeddings of a sequence (Lester et al., 2021)."""

    count: Positive = Field(default=20, description="Number of prompts: the sequence is longer by it.")
    start: Literal["vocabulary", "random"] = Field(
        default="vocabulary",
        description="Initial prompts: random rows of the embedding's table, or normal numbers.",
    )


class Prompts(Section):
    """Only prompts are trained."""

    prompts: PromptTuning = Field(description="Prompts before the embeddings.")


class GatedPrompts(Section):
    """Trained keys and values in attention layers, with a gate for each head (LLaMA-Adapter, Zhang et al., 2024)."""

    count: Positive = Field(default=10, description="Number of prompts of each layer.")
    gate: Annotated[float, Field(ge=-1, le=1)] = Field(
        default=0.0, description="Initial gates; with 0 the network starts as it is."
    )
    layers: LayerPatterns = Field(
        default=(),
        description="Layers with prompts, such as the last ones. Default: all that contain attention.",
    )


class Adapter(Section):
    """Only gated prompts are trained."""

    adapter: GatedPrompts = Field(description="Prompts in attention layers.")


class Augmentation(Section):
    """Random augmentation of samples, anew in each epoch and for each sample."""

    flip: bool = Field(
        default=False, description="Horizontal flip of images [n, c, h, w] with probability 1/2."
    )
    shift: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="Largest shift of images [n, c, h, w] in pixels, in both directions; the border is repeated.",
    )
    time_shift: Annotated[int, Field(ge=0, le=65_536)] = Field(
        default=0,
        description="Largest shift along `time_axis`, in steps; the first or last step is repeated.",
    )
    time_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Dimension of `time_shift`. Default: 1 of [n, t] and [n, t, c], 2 of [n, c, t, f].",
    )
    noise: Decibel | None = Field(
        default=None,
        json_schema_extra={"examples": ["20 dB"]},
        description="Ratio of the variance of a sample to that of normal noise that is added to it.",
    )
    mask: Percent | None = Field(
        default=None, description="Share of the integers of a sample, such as tokens, that become `mask_id`."
    )
    mask_id: _Count | None = Field(default=None, description="Integer of masked positions.")
    inputs: tuple[str, ...] = Field(
        default=(),
        description="Inputs that are augmented. Default: all that an augmentation applies to.",
    )

    @model_validator(mode="after")
    def _masks_with_an_integer(self) -> Self:
        if (self.mask is None) != (self.mask_id is None):
            raise fault("S205", "`mask` and `mask_id` belong together", hint="write `mask: 15 %, mask_id: 3`")
        if self.time_axis is not None and not self.time_shift:
            raise fault("S205", "`time_axis` is the dimension of `time_shift`", hint="give a `time_shift`")
        return self


class FinetuneOptions(PassOptions):
    """Trains weights and biases on `data.calibration`, with its labels and by distillation from the captured model.

    After `quantize` this is quantization-aware training of the integer graph, with learned step sizes; after
    `weight_only` the rounding and the scales of stored weights are trained.
    """

    repeatable: ClassVar[bool] = True
    predicted: ClassVar[bool] = False
    needs: ClassVar = frozenset({"calibration"})
    written: ClassVar = frozenset({"checkpoint"})

    pass_: Literal["finetune"] = Field(default="finetune", alias="pass", description="The name of the pass.")
    epochs: _Count = Field(default=5, description="Number of epochs; 0 only evaluates.")
    batch: Positive = Field(default=64, description="Batch size.")
    loss: Annotated[NamedLoss | Source, BeforeValidator(_loss)] = Field(
        default="cross_entropy",
        description="Task loss: `cross_entropy`, `mse`, or `file.py:function`, which takes the outputs (a tuple if "
        "there are several) and the labels and returns a scalar tensor.",
    )
    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Class dimension of the first output, for labels and distillation. Default: the last one of [n, c] "
        "and [n, t, c], dimension 1 of [n, c, h, w]; if labels per position fit only the other one, that. Without "
        "labels, outputs of more than two dimensions are class scores only if this is set.",
    )
    ignore_index: int = Field(
        default=-100, description="Label of positions that the loss ignores, such as padding (as in torch)."
    )
    optimizer: Literal["sgd", "adamw", "sign_sgd"] = Field(
        default="adamw",
        description="SGD with momentum 0.9, AdamW, or sign descent (steps by the signs of gradients).",
    )
    learning_rate: _Rate = Field(
        default=1e-3, description="Maximum learning rate; cosine decay to zero after the warm-up."
    )
    warmup: _Count = Field(default=0, description="Epochs of linear warm-up from zero.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="Weight decay; biases are exempt."
    )
    distill: Distillation | None = Field(
        default=Distillation(),
        description="Distillation from the captured model; `null` trains with labels only.",
    )
    augment: Augmentation | None = Field(default=None, description="Random augmentation of samples.")
    learn_steps: bool = Field(
        default=True,
        description="For an integer graph: also train the step sizes of weights and activations (LSQ, Esser et al., "
        "2020).",
    )
    keep_zeros: bool = Field(
        default=True,
        description="Keep zeros of sparse float weights at zero, as after `sparsify`.",
    )
    validation: Percent = Field(
        default=0.1,
        json_schema_extra={"default": "10 %"},
        description="Share of the samples held back for validation; the weights of the best epoch are kept.",
    )
    patience: Positive | None = Field(
        default=None, description="Early stopping: epochs without improvement. Default: off."
    )
    checkpoint: FilePath | None = Field(
        default=None,
        description="Checkpoint file, written after each epoch. A training that finds its own checkpoint resumes "
        "from it, with the same result bit for bit. Each training between `steps` has a file of its own, `state.2.pt`.",
    )
    trains: Literal["all", "norms_and_biases"] | LowRank | Prompts | Adapter = Field(
        default="all",
        description="Constants that are trained: all weights and biases; weights of norms and all biases; low-rank "
        "adapters, `lora`; `prompts` before the embeddings of a sequence of dynamic length; or gated prompts in "
        "attention layers, `adapter`. Low-rank adapters of float weights are added to them at the end. After "
        "`weight_only` the stored weights keep their bytes, and the adapters become two small linear layers beside "
        "each (QLoRA, Dettmers et al., 2023). Prompts change no constant of the network.",
        examples=["norms_and_biases", {"lora": {"rank": 8}}, {"prompts": {"count": 20}}],
    )
    keep: LayerPatterns = Field(default=(), description="Layers that are not trained.")
    seed: _Count = Field(default=0, description="Random seed of the sample order and of `augment`.")
    samples: Positive | None = Field(
        default=None,
        description="Number of samples to train on. Default: `data.calibration.samples`, or all in its file.",
    )

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> Self:
        if self.warmup and self.warmup >= self.epochs:
            raise fault("S205", f"a `warmup` of {self.warmup} must be below {self.epochs} `epochs`")
        return self

    @property
    def takes_all_samples(self) -> bool:
        """True: the pass trains."""
        return True

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Need of samples, and of labels for a user's loss or without distillation."""
        yield from super().needed()
        if self.own_loss is not None:
            yield "labels", ("loss",)
        elif self.distill is None:
            yield "labels", ("distill",)
        elif self.distill.is_own_teacher:
            yield "labels", ("distill", "teacher")

    def of_step(self, step: int, steps: int) -> Self:
        """The options of one of several trainings, from 1 on: each has a checkpoint of its own, `state.2.pt`."""
        if self.checkpoint is None or steps == 1:
            return self
        file = self.checkpoint
        return self.model_copy(update={"checkpoint": file.with_name(f"{file.stem}.{step}{file.suffix}")})

    @property
    def own_loss(self) -> FileSource | ModuleSource | None:
        """The user's loss function; None for a built-in loss."""
        return None if isinstance(self.loss, str) else self.loss
