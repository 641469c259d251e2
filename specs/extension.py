"""Base classes and types for the options that packages add; see docs/plugins.md.

Modules of packages are imported while `fxpress.specs` is being imported. So they import these names from here, not
from `fxpress.specs`.
"""

from .options.base import PassOptions
from .options.observer import OwnObserver
from .section import FilePath, LayerPattern, LayerPatterns, Name, Positive, Section, fault

__all__ = [
    "FilePath",
    "LayerPattern",
    "LayerPatterns",
    "Name",
    "OwnObserver",
    "PassOptions",
    "Positive",
    "Section",
    "fault",
]
