"""Conversion of a torch module to a graph of the IR: tracing, and lowering of the traced calls to operators."""
