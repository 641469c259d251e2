"""Options of `assign_bits`: bits for each layer from measured sensitivity, within a budget."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..plugins import SENSITIVITY_METHODS, NamedPart
from ..section import FilePath, LayerPatterns, Positive, Section, fault
from ..tree import Location
from ..units import Bytes, BytesOrShare, CountOrShare
from .base import Need, PassOptions
from .target_budget import TargetInSchema, in_full

SENSITIVITY_OWN = ("gauss_newton", "quadratic", "kl", "hawq", "hawq_v2", "fisher", "norm")
"""Sensitivity methods of fxpress."""

SensitivityMethod: TypeAlias = Annotated[str, NamedPart(SENSITIVITY_METHODS, SENSITIVITY_OWN)]
"""Name of a sensitivity method: one of fxpress, or one that a package adds."""


class BitBudget(Section):
    """Budgets of the network; all of them apply. A percentage is relative to int8 for all layers."""

    weights: BytesOrShare | None = Field(default=None, description="Bytes of the weights as packed integers.")
    bit_operations: CountOrShare | None = Field(
        default=None,
        description="Weight bits x activation bits, summed over all multiply-accumulates.",
    )
    flash: BytesOrShare | None = Field(default=None, description="Predicted flash on the target.")
    ram: Bytes | None = Field(default=None, description="Predicted arena on the target.")
    cycles: CountOrShare | None = Field(
        default=None, description="Predicted cycles of a run, on a target whose core has published timing."
    )
    instructions: CountOrShare | None = Field(
        default=None, description="Predicted instructions of a run on the target."
    )
    latency: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Sum over the table `latency`, in its unit."
    )
    loss: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Maximum increase of the predicted loss, in nats for classes; the smallest network within it is "
        "selected.",
    )

    target: bool = Field(
        default=False,
        description="Fit the flash and RAM of the target. `budget: target` is short for this.",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.target and all(
            getattr(self, name) is None for name in type(self).model_fields.keys() - {"target"}
        ):
            raise fault("S205", "a budget needs at least one resource", hint="for example `weights: 50 %`")
        return self


Budget: TypeAlias = Annotated[BitBudget, BeforeValidator(in_full), TargetInSchema()]


class AssignBitsOptions(PassOptions):
    """Chooses the bit width of each layer from measured sensitivity, by an integer program, for `quantize`."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    followed_by: ClassVar[tuple[str, ...]] = ("quantize",)
    why: ClassVar[str] = "bits are decided on the float graph, and quantize uses them"
    needs: ClassVar = frozenset({"calibration"})
    predicted: ClassVar[bool] = False

    pass_: Literal["assign_bits"] = Field(
        default="assign_bits", alias="pass", description="The name of the pass."
    )
    budget: Budget = Field(
        description="Limits of the network; the word `target` for the flash and RAM of the target."
    )
    minimize: Literal["weights", "bit_operations", "flash", "cycles", "instructions", "latency"] = Field(
        default="weights", description="Minimized resource if the budget limits the `loss`."
    )
    weights: Annotated[tuple[Literal[2, 4, 8], ...], Field(min_length=1)] = Field(
        default=(2, 4, 8), description="Allowed bit widths of weights."
    )
    activations: Annotated[tuple[Literal[8, 16], ...], Field(min_length=1)] = Field(
        default=(8,), description="Allowed bit widths of the operands of layers."
    )
    sensitivity: SensitivityMethod = Field(
        default="gauss_newton",
        description="Prediction of the loss at each width: Gauss-Newton form along the rounding error "
        "(`gauss_newton`; to second order in the outputs too: `quadratic`), measured divergence (`kl`), or only "
        "curvature (`hawq`, `hawq_v2`, `fisher`) or size (`norm`).",
    )
    table: FilePath | None = Field(
        default=None,
        description="Sensitivity table of an earlier run, `sensitivity.json`, for this graph and these samples.",
    )
    latency: FilePath | None = Field(
        default=None,
        description='Measured latencies as JSON, `{"layer": {"int4": 1.5, "int8 x int16": 2.5}}`: by weights, or by '
        "weights and activations. Missing layers count as zero.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose weights stay at 8 bits.")
    labels: bool = Field(
        default=False,
        description="Use the labels of the calibration data for the loss.",
    )
    samples: Positive | None = Field(
        default=None,
        description="Number of calibration samples. Default: all of `data.calibration`.",
    )

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Need of samples, and of labels if the loss uses labels."""
        yield from super().needed()
        if self.labels:
            yield "labels", ("labels",)

    @model_validator(mode="after")
    def _latencies_have_a_table(self) -> Self:
        wants = self.budget.latency is not None or self.minimize == "latency"
        if wants and self.latency is None:
            raise fault(
                "S202", "a budget of latency needs the option `latency`", hint="add `latency: latencies.json`"
            )
        return self
