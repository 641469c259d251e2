"""Machine properties that the C backend uses."""

from __future__ import annotations

from dataclasses import dataclass

from ...specs.target import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """Name, and what its core has.

    `core` is the core whose sizes of code are measured, or the nearest to it. `few_registers` is true of cores on which
    most instructions reach eight registers only, `aligned_only` of those that read words from multiples of 4 only.
    """

    name: str = "portable"
    core: str = "cortex-m3"
    dsp: bool = False
    fpu: bool = False
    few_registers: bool = False
    aligned_only: bool = False

    @staticmethod
    def of(target: Target) -> Machine:
        """The machine that a target file describes."""
        dsp, fpu = ("dsp" in target.features, "fpu" in target.features)
        few_registers = target.isa == "armv6-m"
        aligned_only = few_registers or target.isa.startswith("rv")
        return Machine(target.name, target.measured, dsp, fpu, few_registers, aligned_only)
