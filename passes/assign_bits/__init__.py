"""The pass `assign_bits`: the bits of each layer by an integer program over choices, costs and losses."""

from .assignment import assign_bits
from .bit_program import BitProgram, Choice, LayerChoices, Limit, solve_bits

__all__ = ["BitProgram", "Choice", "LayerChoices", "Limit", "assign_bits", "solve_bits"]
