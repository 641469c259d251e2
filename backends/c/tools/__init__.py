"""Compilers and simulated cores: building emitted C, running it, counting its instructions and its stack."""
