"""The bits of each layer: choices, costs, losses, and the integer program over them."""

from .program import BitProgram, Choice, LayerChoices, Limit, solve_bits

__all__ = ["BitProgram", "Choice", "LayerChoices", "Limit", "solve_bits"]
