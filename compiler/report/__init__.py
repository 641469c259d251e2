"""The report of a compilation: `Report`, written as report.json and as one self-contained report.html."""

from .html import render_html
from .model import MOVEMENTS, Decision, Layer, Measurement, MemoryBlock, PassSection, Report, Resource, Table

__all__ = [
    "MOVEMENTS",
    "Decision",
    "Layer",
    "Measurement",
    "MemoryBlock",
    "PassSection",
    "Report",
    "Resource",
    "Table",
    "render_html",
]
