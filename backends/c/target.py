"""Machine properties that the C backend uses."""

from __future__ import annotations

from dataclasses import dataclass

from ...specs.target import Target


@dataclass(frozen=True, slots=True)
class Machine:
    """Name of a machine, and properties of its core.

    `core` is the core whose code sizes are measured, or the nearest one; `counted` are cores whose instruction counts
    may replace this one's, the nearest first. `few_registers`: most instructions can use only eight registers.
    `aligned_only`: words are read only from multiples of 4. `timed`: cycle counts are published. `is_host`: a
    computer, with files, memory without limits and vector instructions.
    """

    name: str = "portable"
    core: str = "cortex-m3"
    counted: tuple[str, ...] = ("cortex-m3",)
    dsp: bool = False
    fpu: bool = False
    few_registers: bool = False
    aligned_only: bool = False
    timed: bool = False
    is_host: bool = False

    @staticmethod
    def of(target: Target) -> Machine:
        """The machine that a target file describes."""
        dsp, fpu = ("dsp" in target.features, "fpu" in target.features)
        few_registers = target.isa == "armv6-m"
        aligned_only = few_registers or target.isa.startswith("rv")
        nearest = ("cortex-m33" if fpu else "cortex-m4") if dsp else "cortex-m3"
        counted, timed = (target.core or target.name, target.measured, nearest), target.timing is not None
        return Machine(
            target.name,
            target.measured,
            counted,
            dsp,
            fpu,
            few_registers,
            aligned_only,
            timed=timed,
            is_host=target.isa == "host",
        )
