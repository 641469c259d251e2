"""The spec language: loading with source positions, validation, explanation.

loaded = load_spec("kws.yaml", ["passes[2].samples=64"])
loaded.spec.passes, loaded.target, loaded.origin("passes[2].samples")
"""

from .data import Calibration, Data, Dataset, Evaluation, Metric, Transform
from .errors import CODES, ErrorCode, Place, Problem, SpecError, render
from .load import Loaded, Origin, Setting, check_spec, list_presets, load_spec, load_target, parse_spec
from .model import ArrayOrigin, FileSource, Input, Model, ModuleSource
from .model_folder import FolderSource
from .options import (
    PASSES,
    CleanOptions,
    FuseOptions,
    MinMax,
    MovingAverage,
    MseSearch,
    OwnObserver,
    Pass,
    PassOptions,
    Percentile,
    QuantizeOptions,
    RemoveDeadChannelsOptions,
)
from .order import working_order
from .outputs import COutput, Outputs, TorchOutput
from .schema import json_schema
from .section import Section
from .selectors import layer_matches, match_layers
from .spec import VERSION, Spec
from .target import RamRegion, Target, TargetChoice, Timing, Toolchain, is_target_file, list_targets

__all__ = [
    "CODES",
    "PASSES",
    "VERSION",
    "ArrayOrigin",
    "COutput",
    "Calibration",
    "CleanOptions",
    "Data",
    "Dataset",
    "ErrorCode",
    "Evaluation",
    "FileSource",
    "FolderSource",
    "FuseOptions",
    "Input",
    "Loaded",
    "Metric",
    "MinMax",
    "Model",
    "ModuleSource",
    "MovingAverage",
    "MseSearch",
    "Origin",
    "Outputs",
    "OwnObserver",
    "Pass",
    "PassOptions",
    "Percentile",
    "Place",
    "Problem",
    "QuantizeOptions",
    "RamRegion",
    "RemoveDeadChannelsOptions",
    "Section",
    "Setting",
    "Spec",
    "SpecError",
    "Target",
    "TargetChoice",
    "Timing",
    "Toolchain",
    "TorchOutput",
    "Transform",
    "check_spec",
    "is_target_file",
    "json_schema",
    "layer_matches",
    "list_presets",
    "list_targets",
    "load_spec",
    "load_target",
    "match_layers",
    "parse_spec",
    "render",
    "working_order",
]
