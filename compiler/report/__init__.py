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
    Report,
    Resource,
    Table,
    RowRun,
    TriedChange,
)
from .noise_text import lines_about, noise_lines, noise_problems

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
    "Report",
    "Resource",
    "Table",
    "TriedChange",
    "lines_about",
    "RowRun",
    "noise_lines",
    "noise_problems",
    "render_html",
]
