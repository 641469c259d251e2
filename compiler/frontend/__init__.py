"""From a torch module to a graph of the IR: the traced program, its calls made into operators."""
