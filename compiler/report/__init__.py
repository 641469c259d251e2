"""The report of a compilation: `Report`, written as report.json and as one self-contained report.html."""

from .html import render_html
from .model import Decision, Layer, Measurement, MemoryBlock, PassSection, Report, Resource, Table

__all__ = [
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
