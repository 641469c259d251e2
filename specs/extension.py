"""Base classes and types for the options that packages add; see docs/plugins.md.

Their modules are imported while `fxpress.specs` is, so that they cannot take these names from there.
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
