"""What a program costs before anything is compiled: instructions, cycles, and bytes of flash."""
