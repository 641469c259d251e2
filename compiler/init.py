"""`fxpress init`: a commented spec for a model, written from its traced graph."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from torch import nn

from ..ir import Graph
from ..specs import FileSource, Input, ModuleSource, SpecError, load_target
from ..specs.model import Source, as_json
from ..specs.reader import read_text
from ..specs.tree import plain
from .arguments import bind_inputs
from .errors import Problem, UserError, shorten
from .frontend.capture import capture
from .loading import check_weights, example_input, load_source, load_weights
from .output import check_file, write_file
from .time_limit import time_limit

_TEMPLATE = """\
# yaml-language-server: $schema=fxpress.schema.json   (write it with: fxpress schema > fxpress.schema.json)
fxpress: 1
extends: preset/int8-mcu            # fuse, quantize, remove dead channels, C; also preset/int8-torch, preset/fuse-only

# {summary}
model:
  source: {source}
{arguments}{weights}  inputs:
{inputs}

data:
  calibration:                      # samples for calibration, .npz
    file: calibration.npz           # arrays [samples, ...]
    inputs: {{{arrays}}}
    # samples: 256                  # the first 256; null: all
  # evaluation: {{file: test.npz, inputs: {{{arrays}}}, labels: y, metric: top1}}
{transform}
target:
  name: {target}                    # see `fxpress targets`; {memory}
  # ram: 64 KiB
  # flash: 256 KiB

outputs:
  c: {{name: {name}}}
  # torch: {{form: qdq}}

# To keep layers in float, replace the preset's passes:
# passes:
#   - pass: clean
#   - pass: fuse
#   - pass: quantize
#     layers: {{{layer}: float32}}
"""


def write_spec(
    source: str,
    inputs: Sequence[str],
    weights: Path | None,
    target: str,
    output: Path,
    *,
    arguments: Sequence[str] = (),
    limit_seconds: float | None = None,
) -> int:
    """Writes the spec to `output` and returns the number of layers with weights. No file is overwritten.

    `inputs` have the form `x=1x3x32x32`, `ids=1x12:int64` or `gain=scalar`, `arguments` the form `hidden=64`, with
    values as in a spec.
    """
    if os.path.lexists(output):
        fact = "exists already"
        raise UserError(Problem("O306", shorten(str(output)), fact, "choose another name with -o"))
    check_file(output)
    load_target(target)
    _refuse_twice("--arg", arguments)
    _refuse_twice("--input", inputs)
    keywords = dict(_argument(text) for text in arguments)
    with time_limit(limit_seconds, source, "construction of the model"):
        model = load_source(_source(source), keywords, folder=Path.cwd())
    if weights is not None:
        load_weights(model, weights)
    check_weights(model, source)
    found = _inputs(model, inputs, source)
    call = bind_inputs(model, list(found), source)
    examples = [example_input(found[n].shape, getattr(torch, found[n].dtype)) for n in call.names]
    with time_limit(limit_seconds, source, "tracing of the model"):
        graph = capture(model, *call.arguments(examples), input_names=call.names).graph
    write_file(output, _text(source, keywords, weights, found, graph, target, output).encode())
    return sum(1 for node in graph.nodes if node.macs)


def _source(text: str) -> FileSource | ModuleSource:
    try:
        found: FileSource | ModuleSource = TypeAdapter(Source).validate_python(text)
    except ValidationError as err:
        fact = err.errors()[0]["msg"]
        raise UserError(Problem("M105", text, fact, "write model.py:Net or package.module:Net")) from err
    return found


def _argument(text: str) -> tuple[str, JsonValue]:
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise UserError(Problem("M105", f"--arg {text}", "is not of the form NAME=VALUE"))
    column = len(name) + 1
    reading = read_text(" " * column + value, name="--arg", folder=Path.cwd(), shown=text)
    if reading.problems:
        raise SpecError(reading.problems)
    found: JsonValue = as_json(plain(reading.root))
    return name, found


def _refuse_twice(option: str, texts: Sequence[str]) -> None:
    names = Counter(text.partition("=")[0] for text in texts)
    problems = [
        Problem("M105", f"{option} {shorten(name)}", "is given twice", "remove one")
        for name, count in names.items()
        if count > 1
    ]
    if problems:
        raise UserError(problems)


def _inputs(model: nn.Module, inputs: Sequence[str], place: str) -> dict[str, Input]:
    found = {}
    for text in inputs:
        name, _, described = text.partition("=")
        sizes, _, dtype = described.partition(":")
        shape = [] if sizes == "scalar" else sizes.split("x")
        try:
            if not name or not all(n.isdecimal() for n in shape):
                raise ValueError
            found[name] = Input.model_validate({"shape": tuple(map(int, shape)), "dtype": dtype or "float32"})
        except ValueError as err:
            hint = "write NAME=1x3x32x32, NAME=1x12:int64 or NAME=scalar"
            fact = "is not an input with its shape and type"
            raise UserError(Problem("M105", f"--input {text}", fact, hint)) from err
    if not found:
        parameters = ", ".join(inspect.signature(model.forward).parameters)
        advice = f"give the shape of each, such as --input {parameters.split(', ')[0]}=1x3x32x32"
        raise UserError(
            Problem(
                "M105", place, f"forward takes {parameters}; shapes cannot be derived from a model", advice
            )
        )
    return found


def _text(
    source: str,
    keywords: Mapping[str, JsonValue],
    weights: Path | None,
    inputs: Mapping[str, Input],
    graph: Graph,
    target: str,
    output: Path,
) -> str:
    folder = output.absolute().parent
    location, _, attribute = source.rpartition(":")
    if location.endswith(".py"):
        source = f"{os.path.relpath(location, folder)}:{attribute}"
    first = next(iter(inputs))
    machine = load_target(target)
    memory = ", ".join(
        f"{size // 1024} KiB {kind}"
        for kind, size in (("RAM", machine.ram), ("flash", machine.flash))
        if size
    )
    layer = next((node.source.module for node in graph.nodes if node.macs), "head")
    ops = ", ".join(
        f"{count} {name}" for name, count in Counter(n.op.name for n in graph.nodes).most_common(6)
    )
    return _TEMPLATE.format(
        summary=f"{graph.macs:,} MACs, {sum(v.type.numel for v in graph.constants):,} parameters: {ops}",
        source=source,
        arguments=f"  args: {json.dumps(keywords)}\n" if keywords else "",
        weights=f"  weights: {os.path.relpath(weights, folder)}\n" if weights else "",
        inputs="\n".join(f"    {name}: {_input_text(found)}" for name, found in inputs.items()),
        arrays=", ".join(f"{name}: x" if name == first else f"{name}: {name}" for name in inputs),
        transform=_transform_text(first, inputs[first]),
        target=target,
        memory=memory or "no limits",
        name=_c_name(attribute),
        layer=layer,
    )


def _input_text(described: Input) -> str:
    dtype = "" if described.dtype == "float32" else f", dtype: {described.dtype}"
    return f"{{shape: {list(described.shape)}{dtype}}}"


def _transform_text(name: str, described: Input) -> str:
    """The commented `data.transform` of an input; empty if the input has no axes to permute and no reals to scale."""
    options = ["layout: nhwc->nchw"] if len(described.shape) == 4 else []
    options += ["scale: 0.0039215686", "offset: 0.0"] if described.is_floating else []
    if not options:
        return ""
    return (
        "  # transform:                      # conversion from the file to the model input\n"
        f"  #   {name}: {{{', '.join(options)}}}\n"
    )


def _c_name(attribute: str) -> str:
    name = "".join(c if c.isalnum() else "_" for c in attribute.lower()).strip("_")
    return name if name[:1].isalpha() else f"net_{name}"
