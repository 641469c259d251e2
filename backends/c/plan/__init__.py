"""From a graph to a program: the choice of kernels and layouts, the order of steps, memory and stack."""
