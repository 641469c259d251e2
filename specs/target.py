"""Targets: properties of a machine, from a built-in or user file, with overrides from a spec."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from .outputs import C_IDENTIFIER, PLATFORM_WORDS, is_c_name
from .plugins import TARGETS
from .root_error import expect
from .section import Name, Section, fault
from .units import BYTES, Bytes, Hertz

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
"""Folder of the built-in targets."""

CORES = FOLDER / "cores"
"""Folder of the built-in cores."""

_FEATURES = "`dsp`: the SIMD instructions of Cortex-M (SMLAD, SMMLAR, SXTB16). `fpu`: float in hardware."


_TAKEN_TEXT = """
arguments buffer constants count error expected failures file magnitude main memcpy memory memset past progress result
stack state states status steps steps_done weights words
"""
_TAKEN = frozenset(_TAKEN_TEXT.split())
_TAKEN_FORMS = re.compile(
    r"[a-z]|[twx][0-9]+(_[0-9]+)?|(input|output|result|expected|check)_.*|fxp_.*|.*_(t|memory)"
)
"""Names in the emitted C: parameters, variables, macros and types."""


def _region_name(value: str) -> str:
    if not is_c_name(value) or len(value) > 24:
        hint = "use at most 24 lower-case letters, digits and _, a letter first, and no word of C or C++"
        raise fault("S207", "cannot be the name of a region, which is a parameter in C", hint=hint)
    if value in _TAKEN | PLATFORM_WORDS or _TAKEN_FORMS.fullmatch(value):
        raise fault(
            "S207",
            "cannot be the name of a region: the emitted C uses it",
            hint="choose a name such as `dtcm` or `sram_2`",
        )
    return value


RegionName = Annotated[
    str,
    AfterValidator(_region_name),
    WithJsonSchema({"type": "string", "pattern": C_IDENTIFIER.pattern, "maxLength": 24}),
]
"""Name of a region of RAM: a parameter of the emitted function."""


class RamRegion(Section):
    """A region of RAM with its speed."""

    bytes: Bytes = Field(description="Size.")
    wait_states: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Average additional core cycles of each load and each store in the region, compared with the "
        "fastest memory.",
    )


def _form(value: Any) -> str:  # any: a value from a spec, checked by the annotated type
    return "region" if isinstance(value, Mapping | RamRegion) else "bytes"


BytesOrRegion = Annotated[
    Annotated[Bytes, Tag("bytes")] | Annotated[RamRegion, Tag("region")], Discriminator(_form)
]
"""Size in bytes of a region without wait states, or a full region."""


def _regions(value: Mapping[str, int | RamRegion] | None) -> Mapping[str, int | RamRegion] | None:
    if value is not None and not value:
        hint = "name at least one, as in `{dtcm: 64 KiB, sram: 256 KiB}`, or remove `regions`"
        raise fault("S205", "must have at least one region", hint=hint)
    return value


Regions = Annotated[Mapping[RegionName, BytesOrRegion] | None, AfterValidator(_regions)]
"""Regions of RAM by name."""

_REGIONS = (
    "Regions of RAM by name, such as tightly coupled memory and external RAM. The emitted function takes a pointer "
    "to each. If `wait_states` are equal, earlier regions are preferred."
)
_ROOMY = 1 << 40
"""Bytes of a region without a limit."""
_EXAMPLES: list[Any] = [{"dtcm": "64 KiB", "psram": {"bytes": "8 MiB", "wait_states": 4}}]  # any: JSON


def region_bytes(region: int | RamRegion) -> int:
    """Size of a region in bytes."""
    return region if isinstance(region, int) else region.bytes


def region_waits(region: int | RamRegion) -> int:
    """The wait states of a region."""
    return 0 if isinstance(region, int) else region.wait_states


def _their_sum(ram: int | None, info: ValidationInfo) -> int | None:
    """RAM in bytes, by default the sum of the regions; a fault if the two differ."""
    regions: Mapping[str, int | RamRegion] | None = info.data.get("regions")
    if regions is None:
        return ram
    total = sum(map(region_bytes, regions.values()))
    if ram not in (None, total):
        raise fault(
            "S307",
            f"contradicts `regions`, whose sum is {BYTES.write(total)}",
            hint="remove `ram`, or change the sizes of the regions",
        )
    return total


class Toolchain(Section):
    """The C compiler of a target."""

    commands: tuple[Name, ...] = Field(
        min_length=1, description="Commands of the compiler; the first one found is used."
    )
    flags: tuple[str, ...] = Field(default=(), description="Flags that select the core and the optimization.")
    install: str | None = Field(
        default=None, description="Installation hint, shown if the compiler is missing."
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
    regions: Regions = Field(
        default=None, description=f"{_REGIONS} Default: one, `arena`.", examples=_EXAMPLES
    )
    ram: Bytes | None = Field(
        default=None,
        validate_default=True,
        description="Memory for data. Default: the sum of `regions`, or unlimited.",
    )
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

    _sum_of_regions = field_validator("ram")(_their_sum)

    def with_ram(self, ram: int | None) -> "Target":
        """The target with one region of RAM of this size."""
        return self.model_copy(update={"ram": ram, "regions": None})

    def with_total_ram(self, ram: int | None) -> "Target":
        """The target with regions of so many bytes together, taken from the slowest first, of equals from the last.

        Without a limit the slowest region is as large as the network needs.
        """
        regions = self.regions
        if regions is None:
            return self.with_ram(ram)
        left, sizes = _ROOMY if ram is None else ram, dict[str, int]()
        fastest = sorted(regions, key=lambda name: region_waits(regions[name]))
        for name in fastest:
            is_open = ram is None and name == fastest[-1]
            sizes[name] = left if is_open else min(region_bytes(regions[name]), left)
            left -= sizes[name]
        resized = {
            name: region.model_copy(update={"bytes": sizes[name]})
            if isinstance(region, RamRegion)
            else sizes[name]
            for name, region in regions.items()
        }
        return self.model_copy(update={"ram": sum(sizes.values()), "regions": resized})


class TargetChoice(Section):
    """The target, and overrides of its properties."""

    name: str = Field(
        default="host", description="A target of `fxpress targets`, or the path of a target file (.yaml)."
    )
    regions: Regions = Field(
        default=None,
        description=f"{_REGIONS} Overrides `ram` and `regions` of the target.",
        examples=_EXAMPLES,
    )
    ram: Bytes | None = Field(
        default=None,
        validate_default=True,
        description="Memory for data, overrides `ram` and `regions` of the target. Default: the sum of `regions`.",
    )
    flash: Bytes | None = Field(
        default=None, description="Memory for code and constants, overrides the target's."
    )
    stack: Bytes | None = Field(default=None, description="Maximum stack use of the network.")
    clock: Hertz | None = Field(default=None, description="Clock frequency, overrides the target's.")
    features: tuple[Feature, ...] | None = Field(
        default=None, description=f"All features, in place of the target's. {_FEATURES}"
    )
    toolchain: Toolchain | None = Field(default=None, description="C compiler, overrides the target's.")

    _sum_of_regions = field_validator("ram")(_their_sum)

    def applied_to(self, target: Target) -> Target:
        """The target with these overrides applied."""
        memory = {"ram", "regions"}
        given = self.model_fields_set | (memory if self.model_fields_set & memory else set())
        return target.model_copy(update={name: getattr(self, name) for name in given - {"name"}})


def list_targets() -> tuple[str, ...]:
    """Names of the built-in targets, and of those that packages add."""
    return tuple(sorted({*(path.stem for path in FOLDER.glob("*.yaml")), *TARGETS.names()}))


def is_target_file(name: str) -> bool:
    """True if the name is the path of a target file."""
    expect(name, str, "is_target_file(name)", "the name of a target, a text")
    return name.endswith((".yaml", ".yml", ".json"))
