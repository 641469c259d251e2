"""Targets: properties of a machine, from a built-in or user file, with the overrides of a spec."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from .plugins import TARGETS
from .root_error import expect
from .section import Name, Section
from .units import Bytes, Hertz

Feature: TypeAlias = Literal["dsp", "fpu"]
Isa: TypeAlias = Literal[
    "armv6-m", "armv7-m", "armv7e-m", "armv8-m.main", "armv8.1-m.main", "rv32imc", "host"
]
Simulated: TypeAlias = Literal[
    "UC_CPU_ARM_CORTEX_M0",
    "UC_CPU_ARM_CORTEX_M3",
    "UC_CPU_ARM_CORTEX_M4",
    "UC_CPU_ARM_CORTEX_M7",
    "UC_CPU_ARM_CORTEX_M33",
    "UC_CPU_RISCV32_ANY",
    "UC_CPU_RISCV32_BASE32",
    "UC_CPU_RISCV32_SIFIVE_E31",
]
Measured: TypeAlias = Literal[
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m4f",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "rv32imc",
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
    flags: tuple[str, ...] = Field(default=(), description="Flags that select the core and the optimization.")
    install: str | None = Field(
        default=None, description="How to install it, for the message if it is missing."
    )


class Timing(Section):
    """Cycles of instructions that take more than one, without wait states and interrupts."""

    source: str = Field(min_length=1, description="Where the figures are published.")
    load: int = Field(ge=1, description="Load.")
    load_after_access: int = Field(ge=1, description="Load directly after a load or a store.")
    store: int = Field(ge=1, description="Store.")
    divide: int = Field(ge=1, description="Integer division.")
    multiply_add: int = Field(default=1, ge=1, description="Integer multiply-accumulate of 32 bits.")
    long_multiply: int = Field(default=1, ge=1, description="Integer multiplication to 64 bits.")
    long_multiply_add: int = Field(default=1, ge=1, description="Integer multiply-accumulate of 64 bits.")
    float_divide: int = Field(ge=1, description="Float division or square root.")
    float_multiply_add: int = Field(ge=1, description="Float multiply-add.")
    taken_branch: int = Field(ge=0, description="Additional cycles of a taken branch.")


class Target(Section):
    """A target machine for C."""

    name: Name = Field(description="Name, as used in `target.name` of a spec.")
    description: str = Field(description="Short description of the machine.")
    core: str | None = Field(
        default=None,
        description="Core that this file is based on: a built-in one, or the path of a file. Missing keys are taken "
        "from it.",
    )
    isa: Isa = Field(description="Instruction set.")
    ram: Bytes | None = Field(default=None, description="Memory for data. Default: unlimited.")
    flash: Bytes | None = Field(
        default=None, description="Memory for code and constants. Default: unlimited."
    )
    stack: Bytes | None = Field(default=None, description="Maximum stack use of the network.")
    clock: Hertz | None = Field(default=None, description="Clock frequency, to convert cycles to time.")
    features: tuple[Feature, ...] = Field(default=(), description=_FEATURES)
    toolchain: Toolchain = Field(description="C compiler of the target.")
    simulator: Simulated | None = Field(
        default=None, description="CPU model of unicorn that runs the code. Default: no simulation."
    )
    measured: Measured = Field(
        default="cortex-m3",
        description="Core whose measured code sizes are used for predictions of flash.",
    )
    timing: Timing | None = Field(
        default=None, description="Cycles of simulated instructions. Default: not published."
    )
    weight_bits: tuple[Literal[2, 4, 8, 16], ...] = Field(
        default=(8,), description="Weight bit widths that integer kernels support."
    )
    activation_bits: tuple[Literal[8, 16], ...] = Field(
        default=(8,), description="Activation bit widths that integer kernels support."
    )


class TargetChoice(Section):
    """The target, and overrides of its properties."""

    name: str = Field(
        default="host", description="A target of `fxpress targets`, or the path of a target file (.yaml)."
    )
    ram: Bytes | None = Field(default=None, description="Memory for data, overrides the target's.")
    flash: Bytes | None = Field(
        default=None, description="Memory for code and constants, overrides the target's."
    )
    stack: Bytes | None = Field(default=None, description="Maximum stack use of the network.")
    clock: Hertz | None = Field(default=None, description="Clock frequency, overrides the target's.")
    features: tuple[Feature, ...] | None = Field(
        default=None, description=f"All features, in place of the target's. {_FEATURES}"
    )
    toolchain: Toolchain | None = Field(default=None, description="C compiler, overrides the target's.")

    def applied_to(self, target: Target) -> Target:
        """The target with the overrides of the choice."""
        changes = {name: getattr(self, name) for name in self.model_fields_set - {"name"}}
        return target.model_copy(update=changes)


def list_targets() -> tuple[str, ...]:
    """The names of the targets that come with fxpress, and of those that packages bring."""
    return tuple(sorted({*(path.stem for path in FOLDER.glob("*.yaml")), *TARGETS.names()}))


def is_target_file(name: str) -> bool:
    """Whether a target is named by the path of its file."""
    expect(name, str, "is_target_file(name)", "the name of a target, a text")
    return name.endswith((".yaml", ".yml", ".json"))
