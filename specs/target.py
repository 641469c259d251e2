"""Targets: what a machine has, from a file of `targets/` or of the user, and what a spec changes about it."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from .section import Name, Section
from .units import Bytes, Hertz

Feature: TypeAlias = Literal["dsp", "fpu"]
Isa: TypeAlias = Literal[
    "armv6-m", "armv7-m", "armv7e-m", "armv8-m.main", "armv8.1-m.main", "rv32imc", "host"
]

FOLDER = Path(__file__).parent / "targets"
"""Where the targets that come with fxpress lie."""

CORES = FOLDER / "cores"
"""Where the cores that they build on lie."""

_FEATURES = "`dsp`: the SIMD instructions of Cortex-M (SMLAD, SMMLAR, SXTB16). `fpu`: float in hardware."


class Toolchain(Section):
    """The C compiler of a target."""

    commands: tuple[Name, ...] = Field(
        min_length=1, description="Names of the compiler; the first one found is used."
    )
    flags: tuple[str, ...] = Field(default=(), description="Flags that choose the core and the optimisation.")
    install: str | None = Field(
        default=None, description="How to get it, for the message where it is missing."
    )


class Timing(Section):
    """Cycles of the instructions of a core that take other than one, without wait states and interrupts."""

    source: str = Field(min_length=1, description="Where the figures are published.")
    load: int = Field(ge=1, description="A load.")
    load_after_access: int = Field(ge=1, description="A load right after another load or a store.")
    store: int = Field(ge=1, description="A store.")
    divide: int = Field(ge=1, description="A division of integers.")
    float_divide: int = Field(ge=1, description="A division or square root of floats.")
    float_multiply_add: int = Field(ge=1, description="A multiplication of floats with an addition.")
    taken_branch: int = Field(ge=0, description="What a taken branch adds.")


class Target(Section):
    """A machine that C is compiled for."""

    name: Name = Field(description="The name, as `target.name` of a spec gives it.")
    description: str = Field(description="What the machine is, in a few words.")
    core: str | None = Field(
        default=None,
        description="The core that this file builds on: one that comes with fxpress, or the path of a file. "
        "Keys that are left out are those of the core.",
    )
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
    measured: Name = Field(
        default="cortex-m3",
        description="The core whose measured sizes of code stand for this one's, in predictions of flash.",
    )
    timing: Timing | None = Field(
        default=None, description="Cycles of simulated instructions; left out where they are not published."
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


def is_target_file(name: str) -> bool:
    """Whether a target is named by the path of its file."""
    return name.endswith((".yaml", ".yml", ".json"))
