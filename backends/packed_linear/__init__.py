"""Products with packed integer weights on a CPU: the kernel in C, which both backends emit, and its packed form."""

from .packing import FOLDER, HEADER, SCALE_TYPES, SOURCE, PackedForm, pack_codes, pack_scales

__all__ = ["FOLDER", "HEADER", "SCALE_TYPES", "SOURCE", "PackedForm", "pack_codes", "pack_scales"]
