"""The bits of each layer: choices, costs, losses, and the integer program over them."""
