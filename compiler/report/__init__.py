"""The report of a compilation: `Report`, written as report.json and as one self-contained report.html."""

from .html import render_html
from .model import (
    MOVEMENTS,
    Decision,
    Effect,
    FloatLayer,
    Layer,
    LowLayer,
    Measurement,
    MemoryBlock,
    Noise,
    NoiseSource,
    OutputRatio,
    PassSection,
    RamPoint,
    Report,
    Resource,
    RowRun,
    Table,
    TriedChange,
)
from .noise_text import lines_about, noise_lines, noise_problems
from .ram_picture import ram_columns, ram_rows

__all__ = [
    "MOVEMENTS",
    "Decision",
    "Effect",
    "FloatLayer",
    "Layer",
    "LowLayer",
    "Measurement",
    "MemoryBlock",
    "Noise",
    "NoiseSource",
    "OutputRatio",
    "PassSection",
    "RamPoint",
    "Report",
    "Resource",
    "RowRun",
    "Table",
    "TriedChange",
    "lines_about",
    "noise_lines",
    "noise_problems",
    "ram_columns",
    "ram_rows",
    "render_html",
]
