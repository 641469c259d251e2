"""Compilers and simulated cores: builds emitted C, runs it, and counts its instructions and its stack."""

from .elf import Elf, Footprint, read_elf
from .simulate import SimulatedModel, Simulator
from .stack import stack_by_function, worst_case_stack
from .toolchain import (
    SANITIZERS,
    Compiler,
    build_image,
    compile_objects,
    find_compiler,
    link_program,
    link_shared,
    target_compiler,
)

__all__ = [
    "SANITIZERS",
    "Compiler",
    "Elf",
    "Footprint",
    "SimulatedModel",
    "Simulator",
    "build_image",
    "compile_objects",
    "find_compiler",
    "link_program",
    "link_shared",
    "read_elf",
    "stack_by_function",
    "target_compiler",
    "worst_case_stack",
]
