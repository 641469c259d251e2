"""Options of `assign_bits`: bits for each layer from measured sensitivity, within a budget."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..section import FilePath, LayerPatterns, Positive, Section, fault
from ..tree import Location
from ..units import Bytes, BytesOrShare, CountOrShare
from .base import Need, PassOptions
from .target_budget import TargetInSchema, in_full

SensitivityMethod: TypeAlias = Literal["gauss_newton", "quadratic", "kl", "hawq", "hawq_v2", "fisher", "norm"]


class BitBudget(Section):
    """Budgets of the network; all of them apply. A percentage is relative to int8 for all layers."""

    weights: BytesOrShare | None = Field(default=None, description="Bytes of the weights as packed integers.")
    bit_operations: CountOrShare | None = Field(
        default=None,
        description="Bits of the weight x bits of the activation, over all multiply-accumulates.",
    )
    flash: BytesOrShare | None = Field(default=None, description="Predicted flash on the target.")
    ram: Bytes | None = Field(default=None, description="Predicted arena on the target.")
    cycles: CountOrShare | None = Field(default=None, description="Predicted cycles of a run on the target.")
    latency: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Sum over the table `latency`, in its unit."
    )
    loss: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="How much the predicted loss may rise, in nats for classes: the smallest network that keeps to it "
        "is looked for.",
    )

    target: bool = Field(
        default=False,
        description="Whether it has to fit the flash and the RAM of the target. `budget: target` is short for this.",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.target and all(
            getattr(self, name) is None for name in type(self).model_fields.keys() - {"target"}
        ):
            raise fault("S205", "a budget names at least one resource", hint="for example `weights: 50 %`")
        return self


Budget: TypeAlias = Annotated[BitBudget, BeforeValidator(in_full), TargetInSchema()]


class AssignBitsOptions(PassOptions):
    """Decides how many bits each layer gets, from measured sensitivity, by an integer program; `quantize` obeys."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    followed_by: ClassVar[tuple[str, ...]] = ("quantize",)
    why: ClassVar[str] = "bits are decided on the float graph, and quantize obeys them"
    needs: ClassVar = frozenset({"calibration"})
    predicted: ClassVar[bool] = False

    pass_: Literal["assign_bits"] = Field(
        default="assign_bits", alias="pass", description="The name of the pass."
    )
    budget: Budget = Field(
        description="What the network may take; the word `target` for the flash and RAM of the target."
    )
    minimize: Literal["weights", "bit_operations", "flash", "cycles", "latency"] = Field(
        default="weights", description="What is to be least where the budget is one of the `loss`."
    )
    weights: Annotated[tuple[Literal[2, 4, 8], ...], Field(min_length=1)] = Field(
        default=(2, 4, 8), description="Bits that weights may have."
    )
    activations: Annotated[tuple[Literal[8, 16], ...], Field(min_length=1)] = Field(
        default=(8,), description="Bits that the operands of layers may have."
    )
    sensitivity: SensitivityMethod = Field(
        default="gauss_newton",
        description="How the loss of each width is predicted: the Gauss-Newton form along the rounding error "
        "(`gauss_newton`, to second order in the outputs too: `quadratic`), measured divergence (`kl`), or from "
        "curvature (`hawq`, `hawq_v2`, `fisher`) or size (`norm`) alone.",
    )
    table: FilePath | None = Field(
        default=None,
        description="Sensitivity of an earlier run, `sensitivity.json`, for this graph and these samples.",
    )
    latency: FilePath | None = Field(
        default=None,
        description='Measured latencies as JSON, `{"layer": {"int4": 1.5, "int8 x int16": 2.5}}`: weights alone, or '
        "weights and activations. Layers that it leaves out take none.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose weights stay at 8 bits.")
    labels: bool = Field(
        default=False,
        description="Predict the change of the loss against the labels of the calibration data.",
    )
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Samples, and their labels where the loss is that against labels."""
        yield from super().needed()
        if self.labels:
            yield "labels", ("labels",)

    @model_validator(mode="after")
    def _latencies_have_a_table(self) -> Self:
        wants = self.budget.latency is not None or self.minimize == "latency"
        if wants and self.latency is None:
            raise fault("S202", "latencies need the file `latency`", hint="add `latency: latencies.json`")
        return self
