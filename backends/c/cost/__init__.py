"""Cost prediction before compilation: instructions, cycles, and bytes of flash."""
