"""C kernels for networks with packed integer weights on a CPU, which the backends emit, and the packed form."""

from .packing import FOLDER, HEADER, NORM, SCALE_TYPES, SOURCE, PackedForm, pack_codes, pack_scales

__all__ = ["FOLDER", "HEADER", "NORM", "SCALE_TYPES", "SOURCE", "PackedForm", "pack_codes", "pack_scales"]
