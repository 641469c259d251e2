"""Planning of a program: selection of kernels and layouts, order of steps, memory and stack."""
