"""Structured pruning: saliency scores, allocation within budgets, costs, and repairs without training."""
