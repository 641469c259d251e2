"""Targets: what a machine has, from a file of `targets/` or of the user, and what a spec changes about it."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from .section import Name, Section
from .units import Bytes, Hertz

Feature: TypeAlias = Literal["dsp", "fpu", "fpu64", "mve", "unaligned"]
Isa: TypeAlias = Literal[
    "armv6-m", "armv7-m", "armv7e-m", "armv8-m.main", "armv8.1-m.main", "rv32imc", "host"
]

FOLDER = Path(__file__).parent / "targets"
"""Where the targets that come with fxpress lie."""

_FEATURES = (
    "`dsp`: the SIMD instructions of Cortex-M (SMLAD, SMMLAR, SXTB16). `fpu`: float in hardware. `fpu64`: double too. "
    "`mve`: the vector instructions of Cortex-M55. `unaligned`: words may be read at any address."
)


class Toolchain(Section):
    """The C compiler of a target."""

    commands: tuple[Name, ...] = Field(
        min_length=1, description="Names of the compiler; the first one found is used."
    )
    flags: tuple[str, ...] = Field(default=(), description="Flags that choose the core and the optimisation.")


class Target(Section):
    """A machine that C is compiled for."""

    name: Name = Field(description="The name, as `target.name` of a spec gives it.")
    description: str = Field(description="What the machine is, in a few words.")
    isa: Isa = Field(description="The instruction set.")
    ram: Bytes | None = Field(default=None, description="Memory for data; left out where it does not bind.")
    flash: Bytes | None = Field(
        default=None, description="Memory for code and constants; left out where it does not bind."
    )
    stack: Bytes | None = Field(default=None, description="Most that the network may take of the stack.")
    clock: Hertz | None = Field(default=None, description="Clock frequency, for times from cycles.")
    features: tuple[Feature, ...] = Field(default=(), description=_FEATURES)
    toolchain: Toolchain = Field(description="How C is compiled for it.")
    simulator: Name | None = Field(
        default=None, description="The CPU model of unicorn that runs its code; left out where there is none."
    )
    weight_bits: tuple[Literal[2, 4, 8], ...] = Field(
        default=(8,), description="Weights that integer kernels take."
    )
    activation_bits: tuple[Literal[8, 16], ...] = Field(
        default=(8,), description="Activations that integer kernels take."
    )


class TargetChoice(Section):
    """The machine that is compiled for, and what differs from its description."""

    name: str = Field(
        default="host", description="A target of `fxpress targets`, or the path of a target file (.yaml)."
    )
    ram: Bytes | None = Field(default=None, description="Memory for data, in place of the target's.")
    flash: Bytes | None = Field(
        default=None, description="Memory for code and constants, in place of the target's."
    )
    stack: Bytes | None = Field(default=None, description="Most that the network may take of the stack.")
    clock: Hertz | None = Field(default=None, description="Clock frequency, in place of the target's.")
    features: tuple[Feature, ...] | None = Field(
        default=None, description=f"All features, in place of the target's. {_FEATURES}"
    )
    toolchain: Toolchain | None = Field(default=None, description="The C compiler, in place of the target's.")

    def applied_to(self, target: Target) -> Target:
        """The target with what the choice changes."""
        changes = {name: getattr(self, name) for name in self.model_fields_set - {"name"}}
        return target.model_copy(update=changes)


def list_targets() -> tuple[str, ...]:
    """The names of the targets that come with fxpress."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
