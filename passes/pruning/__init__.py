"""Pruning: what units are worth, how many stay, what their removal costs, and repairs."""
