"""The pass `assign_bits`: the bits of each layer by an integer program over choices, costs and losses."""

from .assignment import assign_bits, make_program
from .bit_costs import BitCosts, bit_costs, bit_layers
from .bit_program import BitProgram, Choice, LayerChoices, Limit, solve_bits
from .mix_loss import mix_losses

__all__ = [
    "BitCosts",
    "BitProgram",
    "Choice",
    "LayerChoices",
    "Limit",
    "assign_bits",
    "bit_costs",
    "bit_layers",
    "make_program",
    "mix_losses",
    "solve_bits",
]
