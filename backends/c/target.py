"""Machine properties that the C backend uses."""

from __future__ import annotations

from dataclasses import dataclass

from ...specs.target import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """Name, and what its core has.

    `core` is the core whose sizes of code are measured, or the nearest to it. `few_registers` is true of cores on which
    most instructions reach eight registers only.
    """

    name: str = "portable"
    core: str = "cortex-m3"
    dsp: bool = False
    fpu: bool = False
    few_registers: bool = False

    @staticmethod
    def of(target: Target) -> Machine:
        """The machine that a target file describes."""
        dsp, fpu = ("dsp" in target.features, "fpu" in target.features)
        return Machine(target.name, target.measured, dsp, fpu, target.isa == "armv6-m")
