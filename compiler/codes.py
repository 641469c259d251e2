"""Registry of error codes with meaning and remedy, for `fxpress explain CODE` and docs/errors.md.

python -m fxpress.compiler.codes > docs/errors.md

A code is defined in the package that reports it: S in `specs.errors`, C in `backends.errors`, all others in this
module, which joins the registries. This module does not import torch, so that an explanation is printed at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from textwrap import fill

from ..backends.errors import CODES as BACKEND_CODES
from ..specs import CODES as SPEC_CODES
from ..specs import ErrorCode
from .errors import Problem, UserError, shorten

FAMILIES = {
    "A1": "arguments of Python functions",
    "S1": "reading of spec files",
    "S2": "single values of a spec",
    "S3": "consistency between values of a spec",
    "S4": "layer patterns",
    "M1": "the model and its weights",
    "M2": "capture of the model",
    "D1": "data, labels and metrics",
    "G1": "graphs",
    "P6": "passes",
    "B6": "emitted artifacts",
    "C7": "the C backend",
    "L5": "lock files",
    "O3": "output files, disk and memory",
    "R4": "compiled networks and options of commands",
    "T5": "compilers and simulators",
}
"""Subjects of the codes by their first letter and digit, in the order of the page."""

_LOCK_ADVICE = (
    "Restore the file or version in the message, or compile without `--locked`, which writes a new lock."
)

COMPILER_CODES: Mapping[str, ErrorCode] = {
    "A101": ErrorCode(
        "an argument of a Python function is of the wrong type, missing, unknown, or excludes another one",
        "Correct the argument in the message. docs/python.md describes the arguments, and `help(FUNCTION)` prints "
        "them.",
    ),
    "M100": ErrorCode(
        "a Python file or package that the spec names is not found",
        "Check the path or the name. A path is relative to the spec; a package must be installed, or be in the folder "
        "of the spec.",
    ),
    "M101": ErrorCode(
        "the user's Python code raises an error when it is imported or called",
        "Correct the line that the message names, and check `model.args`. Running the file with `python` shows the "
        "whole traceback.",
    ),
    "M102": ErrorCode(
        "a Python file or package does not define the attribute that the spec names",
        "Correct the name after the colon; the message has the nearest name, or those that exist.",
    ),
    "M103": ErrorCode(
        "`model.source` does not give a module",
        "Name a `torch.nn.Module`, or a class or function that returns one.",
    ),
    "M104": ErrorCode(
        "the inputs do not fit the arguments of `forward`",
        "Name each input of `model.inputs`, or of `--input`, after the argument of `forward` that takes "
        "it, and give one to each argument without a default. Where `forward` takes `**kwargs`, wrap the model in one "
        "whose `forward` names them.",
    ),
    "M105": ErrorCode(
        "an argument of `fxpress init MODEL` is missing or has the wrong form",
        "Write the model as `model.py:Net`, each input as `--input x=1x3x32x32` and each argument of its constructor "
        "as `--arg NAME=VALUE`.",
    ),
    "M106": ErrorCode(
        "`model.state` does not fit the outputs of the model",
        "Let each state name an existing output that has the shape and the type of the input.",
    ),
    "M107": ErrorCode(
        "the user's code ends the program",
        'Remove the call of `sys.exit`, or put it below `if __name__ == "__main__":`.',
    ),
    "M108": ErrorCode(
        "the user's code takes longer than the time limit",
        "Look for an endless loop, or raise `--time-limit`.",
    ),
    "M110": ErrorCode(
        "the weights file does not exist",
        "Check `model.weights`; the path is relative to the spec.",
    ),
    "M111": ErrorCode(
        "the weights file cannot be read, or is no state dict",
        "Write it with `safetensors.torch.save_model(model, path)` or `torch.save(model.state_dict(), path)`. A pickle "
        "that holds more than tensors is not opened, because opening one runs code.",
    ),
    "M112": ErrorCode(
        "the weights file lacks a tensor of the model",
        "Check that the file belongs to this model, and that `model.args` builds the saved network.",
    ),
    "M113": ErrorCode(
        "the weights file has an unexpected key",
        "Check that the file belongs to this model. Remove prefixes of wrappers, such as `module.`, before saving.",
    ),
    "M114": ErrorCode(
        "a tensor of the weights file has another shape than the model's, or is complex",
        "Check that the file belongs to this model, and that `model.args` builds the saved network.",
    ),
    "M115": ErrorCode(
        "a tensor of the weights file has more elements than the file stores",
        "Call `.contiguous()` on expanded tensors before saving. If the file is damaged, write it again.",
    ),
    "M116": ErrorCode(
        "a tensor of the weights file is sparse, quantized, lazy or on the meta device",
        "Store dense tensors with values: use `.to_dense()` or `.dequantize()`, and initialize before saving.",
    ),
    "M117": ErrorCode(
        "a parameter of the model is sparse, quantized or lazy",
        "Convert it with `.to_dense()` or `.dequantize()`; run the model once to initialize lazy parameters.",
    ),
    "M118": ErrorCode(
        "tied parameters have different values in the weights file",
        "Save the file from the model with its ties, or build the model without them.",
    ),
    "M120": ErrorCode(
        "a parameter is on the meta device and has no values",
        "Name `model.weights`, or build the model on the CPU.",
    ),
    "M121": ErrorCode(
        "a weight is NaN or infinite", "Load the weights of an earlier checkpoint, or train the model again."
    ),
    "M122": ErrorCode(
        "an output is NaN or infinite in every element",
        "Run the model in PyTorch on the same samples. Check the weights, and `data.transform`, which may give "
        "inputs in a range other than that of the training data.",
    ),
    "M123": ErrorCode(
        "the model raises an error on the data",
        "Run the model in PyTorch on the same samples. Check that indices are within the range of its embeddings and "
        "tables.",
    ),
    "M130": ErrorCode(
        "config.json of a model folder cannot be read",
        "Name a local folder, as written by `save_pretrained`, with config.json and safetensors files. Nothing is "
        "downloaded.",
    ),
    "M131": ErrorCode(
        "transformers is not installed, or too old",
        "Install the extra: `pip install 'fxpress[hf]'`. Only sources of the form `hf:PATH` need it.",
    ),
    "M132": ErrorCode(
        "the network of a model folder cannot be built",
        "Name a class of transformers under `architectures` in config.json. Code in the folder (`auto_map`, "
        "`trust_remote_code`) is not run: write a class that loads such a model and name it in `model.source`.",
    ),
    "M133": ErrorCode(
        "the weights of a model folder are quantized already",
        "Name the folder of the unquantized model, with weights in float32, bfloat16 or float16.",
    ),
    "M134": ErrorCode(
        "a weights file of a model folder is missing or damaged, or its index lists a tensor that does not exist",
        "Copy the folder again, with all shards that the index file names. Convert .bin files: "
        "`AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)`.",
    ),
    "M135": ErrorCode(
        "a tensor of a model folder has integer elements and that of the model floats, or the reverse",
        "Name the folder of the unquantized model.",
    ),
    "M136": ErrorCode(
        "the model of a folder does not support the caches of `model.cache`",
        "Lower `length` to the positions of the model, or remove `cache`, which is for causal language models of "
        "transformers that work with static caches (`StaticCache`).",
    ),
    "M137": ErrorCode(
        "another file of a model folder, such as tokenizer.json, is damaged",
        "Copy the file again. Without the tokenizer's files, `outputs.gguf` is written with token ids only.",
    ),
    "M200": ErrorCode(
        "tracing or running the module raises an error",
        "Run the module on the example inputs. If it runs, the line in the message cannot be traced by `torch.export`: "
        "write it with tensor operations.",
    ),
    "M201": ErrorCode(
        "a branch, a loop or a slice depends on data",
        "Compute both branches and select with `torch.where`, or move the branch out of the model.",
    ),
    "M202": ErrorCode(
        "the size of a tensor, or a Python number, depends on data",
        "Use a form of fixed size, such as `torch.where` or a multiplied mask, and keep numbers as tensors instead of "
        "calling `.item()`.",
    ),
    "M203": ErrorCode(
        "a normalization layer or dropout is in training mode",
        "Call `model.eval()`, and give functions such as `F.dropout` `training=self.training`.",
    ),
    "M204": ErrorCode(
        "the model draws random numbers, or computes a Python value that differs between calls",
        "Pass the value as an input, or compute it once in `__init__` and keep it in a buffer.",
    ),
    "M205": ErrorCode(
        "`forward` writes to a parameter, a buffer or another tensor of the module",
        "Return the new state as an output, take it as an input, and connect the two with `model.state`.",
    ),
    "M206": ErrorCode(
        "`forward` writes to an input",
        "Write to a copy: `x = x.clone()`, or use the operation without the underscore.",
    ),
    "M207": ErrorCode(
        "the result of `forward` contains an object of an unknown class",
        "Return tensors, lists, tuples or dictionaries, or register the class with "
        "`torch.export.register_dataclass`.",
    ),
    "M208": ErrorCode(
        "a tensor has an element type or a layout that the graph does not support",
        "Convert it: float8 and uint16 to a supported type with `.to()`, sparse tensors with `.to_dense()`, quantized "
        "ones with `.dequantize()`.",
    ),
    "M209": ErrorCode(
        "the result of the module differs from the result of its trace",
        "Look for state in the module, for random numbers, and for code that tests whether it is being traced.",
    ),
    "M210": ErrorCode(
        "an in-place write cannot be traced",
        "Write it without the in-place operation. Not supported are writes to overlapping elements, writes through a "
        "view of another element type, and resizing.",
    ),
    "M211": ErrorCode(
        "a higher-order operator such as `torch.cond`, or autocast, is not supported",
        "Write the branch with `torch.where`, and convert tensors with `.to()` instead of autocast.",
    ),
    "M212": ErrorCode(
        "a weight or an input is on the meta device or on an accelerator",
        "Load the weights, and move model and inputs with `.cpu()`.",
    ),
    "M213": ErrorCode(
        "names of inputs or outputs do not fit the tensors of the model",
        "Give one name for each tensor, in order; all names must differ.",
    ),
    "M214": ErrorCode("`forward` returns None, or no tensor", "Return the result from `forward`."),
    "M215": ErrorCode(
        "a dynamic dimension is not a dimension of an input, or has different sizes in the example",
        "Name tensors that `forward` takes, and their dimensions, counted from 0. A dimension name has the same size "
        "in all inputs.",
    ),
    "M216": ErrorCode(
        "the model fixes the size of a dynamic dimension, or supports fewer sizes than requested",
        "Leave the dimension out of `dynamic`, set `min` and `max` to the sizes that the model supports, or compute "
        "with the sizes of tensors instead of numbers. Dimensions that are always equal need the same name.",
    ),
    "M217": ErrorCode(
        "the graph differs from the model at other sizes of its dynamic dimensions",
        "At that size the model takes another branch, or reads beyond a table. Limit the dimension with `min` and "
        "`max`, or leave it out of `dynamic`.",
    ),
    "M218": ErrorCode(
        "a number is computed from the size of a dynamic dimension in a way that is not supported",
        "Supported are sums, products, floor divisions, minima and maxima. Compute other numbers with tensors, or "
        "leave the dimension out of `dynamic`.",
    ),
    "D100": ErrorCode(
        "a data file does not exist, or the data were in the memory of a Python program",
        "Check the path; in a spec it is relative to the file of the spec. `Compiled.write_spec` writes data in memory "
        "as files.",
    ),
    "D101": ErrorCode(
        "data cannot be read as arrays by name",
        "Write an npz file of numbers with `numpy.savez(path, x=..., y=...)`. A function under `source` returns a "
        "dictionary of numpy arrays.",
    ),
    "D102": ErrorCode(
        "the data lack an array",
        "Correct `inputs` or `labels` of the data set, or `--input NAME=ARRAY` and `--labels` of `fxpress run DIR`. "
        "The message lists the arrays that exist.",
    ),
    "D103": ErrorCode(
        "an array does not have the type, the shape or the values that a model input requires",
        "Store arrays [samples, ...] of numbers, or describe the conversion under `data.transform`: `layout`, "
        "`reshape`, `scale`, `offset`. Labels are numbers.",
    ),
    "D104": ErrorCode(
        "arrays differ in length",
        "Give all inputs and the labels the same number of samples; for a model with states, the same sequences.",
    ),
    "D105": ErrorCode(
        "there are too few samples",
        "Give at least as many samples as the model takes in one call, or compile it for a smaller batch.",
    ),
    "D106": ErrorCode("the data contain NaN or infinity", "Remove the samples that the message lists."),
    "D107": ErrorCode(
        "calibration fails on the data",
        "Run the model in PyTorch on the sample that the message names. If a layer gives NaN or infinity there, "
        "check `data.transform` or remove the sample; if there are too few samples, add more.",
    ),
    "D108": ErrorCode("`fxpress sensitivity SPEC` needs data", "Add `data.calibration` to the spec."),
    "D109": ErrorCode(
        "labels do not fit the output that is measured",
        "For `top1` give each sample, or each position of an output with several, the index of its class, from 0. "
        "For `mse` give one number for each element of the output. Other labels need your own metric, "
        "`file.py:function`.",
    ),
    "D110": ErrorCode(
        "the output that is measured has no score for each class, or several dimensions that could be the classes",
        "Set the class dimension with `class_axis`, choose another `output`, or another metric: `mse`, `snr`, or "
        "`file.py:function`.",
    ),
    "D111": ErrorCode(
        "a metric of the user is not callable, raises an error, or gives NaN",
        "Write a function of the output and the labels, both tensors, that returns a number.",
    ),
    "D112": ErrorCode(
        "the output that is to be measured does not exist",
        "Write a name that the message lists; `model.outputs` renames them.",
    ),
    "G101": ErrorCode(
        "tensors do not fit an operator or a graph: number, shape, element type or encoding",
        "Give tensors of the types in the message; `dump(graph)` prints the type of each value.",
    ),
    "G102": ErrorCode(
        "a text is not a graph",
        "Correct the text at the line and column of the message. `dump(graph)` prints a graph in the form that "
        "`parse` reads.",
    ),
    "G103": ErrorCode(
        "a graph is not valid: a value has no or two definitions, or another type than its operator infers",
        "Correct the source of the graph: your pass, operator or text. The message shows the lines.",
    ),
    "G104": ErrorCode(
        "an operator, an interpreter or a backend does not support this graph",
        "Replace the operator or the element type that the message names.",
    ),
    "G105": ErrorCode(
        "an accumulator or a scale may exceed its range, so that a layer has no integer form",
        "Leave the layer in float, or use fewer bits or smaller weights for it.",
    ),
    "P600": ErrorCode(
        "a pass is unknown, or has no rewrite",
        "Correct the name: `fxpress passes` lists the passes. If a package declares the pass, but no rewrite that can "
        "be loaded, repair or update the package.",
    ),
    "P601": ErrorCode(
        "the options of a pass cannot be applied to this network",
        "Change the options that the message names. `fxpress passes` lists them with their meaning.",
    ),
    "P602": ErrorCode(
        "sensitivity cannot be measured",
        "Follow the message: choose another `--method`, or change labels or data in the spec.",
    ),
    "P604": ErrorCode(
        "quantization leaves less signal-to-noise ratio than `min_snr` requires",
        "Apply one of the changes that the message names; each was tried and measured. Or lower `min_snr`, or set "
        "`on_low_snr: note`.",
    ),
    "P605": ErrorCode(
        "a pass of another package raises an error",
        "Report the error to the package of the pass, or remove the pass from the spec.",
    ),
    "P606": ErrorCode(
        "a pass that is called in Python lacks data",
        "Give it `context=Context(calibration=[(x,), ...])`: a tuple of tensors for each call of the graph. `labels` "
        "has a tensor for each of them.",
    ),
    "B600": ErrorCode(
        "a backend belongs to a package that cannot be loaded",
        "Repair or remove the package; the message has the error of its import.",
    ),
    "B601": ErrorCode(
        "a backend of another package raises an error",
        "Report it to the package of the backend in the message.",
    ),
    "B602": ErrorCode(
        "the torch module cannot be written",
        "Replace the call that the message names by public functions of torch, or remove `torch` from `outputs`.",
    ),
    "B604": ErrorCode(
        "a folder of Hugging Face files cannot hold the network",
        "The model comes from a folder, and the passes are `clean` and `weight_only` with int4 or int8, rounded by "
        "`nearest` or `gptq`. Other layers, such as embeddings, stay as they are: `layers: {PATTERN: float32}`.",
    ),
    "B605": ErrorCode(
        "a GGUF file cannot hold the network",
        "The model is a Llama, Mistral or Qwen2 from a folder, and the passes are `clean` and `weight_only` with int4 "
        "or int8, a multiple of 32 as `group_size`, `scales: float16`, rounded by `nearest` or `gptq`. A weight that "
        "does not fit stays as it is: `layers: {PATTERN: float32}`.",
    ),
    "B606": ErrorCode(
        "the package gguf is not installed",
        "Install the extra: `pip install 'fxpress[hf]'`. Only `outputs.gguf` needs the package.",
    ),
    "B603": ErrorCode(
        "a state has another encoding as an output than as an input",
        "Give both the same entries in `layouts` and `io`, and remove a `finetune` after `quantize`; the message "
        "shows which applies.",
    ),
    "L501": ErrorCode(
        "a lock file cannot be read", "Check the path. Compile without `--locked` to write a new lock."
    ),
    "L502": ErrorCode(
        "a lock file was changed, or is of another version",
        "Compile again without `--locked`, which writes a new lock. Do not edit `spec.lock`.",
    ),
    "L503": ErrorCode("the spec has changed since the lock was written", _LOCK_ADVICE),
    "L504": ErrorCode("an input, an output or the version of a tool differs from the lock", _LOCK_ADVICE),
    "O301": ErrorCode("the output directory is a symbolic link", "Name the directory that it points to."),
    "O302": ErrorCode(
        "the output path exists and is not a directory, or a part of it is a file", "Choose another name."
    ),
    "O303": ErrorCode(
        "the output directory contains files that fxpress did not write",
        "Choose an empty or a new directory. Only a directory with a `spec.lock` is replaced.",
    ),
    "O304": ErrorCode(
        "the output path is in a read-only directory", "Choose another directory, or change its permissions."
    ),
    "O305": ErrorCode(
        "an output could not be written",
        "Check the free space and the permissions. Earlier output was not changed.",
    ),
    "O306": ErrorCode(
        "the output file exists and is not replaced", "Choose another name, or remove the file."
    ),
    "O307": ErrorCode(
        "the file given with `sensitivity -o` exists and is not a sensitivity table",
        "Choose another name, or remove the file.",
    ),
    "O308": ErrorCode(
        "the directory of the output file does not exist", "Create it, or choose another path."
    ),
    "O309": ErrorCode(
        "a file or directory cannot be used",
        "Check the path, its permissions and the free space on the disk.",
    ),
    "O310": ErrorCode(
        "there is too little memory",
        "Use fewer calibration samples (`samples`), shorter inputs or a machine with more memory.",
    ),
    "O311": ErrorCode(
        "a name has a character that UTF-8 cannot encode", "Rename the file, the layer or the array."
    ),
    "O313": ErrorCode(
        "a compilation cannot be written as a spec",
        "Give the torch module from which the graph was captured. A compilation of a spec file has its spec already.",
    ),
    "O312": ErrorCode(
        "an output would replace or remove an input file",
        "Choose another place for the output, or move the file that the message names.",
    ),
    "R403": ErrorCode(
        "a name is not a layer of the report",
        "Write the module path of a layer as `fxpress plan SPEC` lists it; the message has the nearest names.",
    ),
    "R404": ErrorCode(
        "a directory is not an output of `fxpress compile SPEC`",
        "Name the directory that was given with `-o`.",
    ),
    "R405": ErrorCode(
        "`--on` is unknown, or a target without a simulator",
        "Write `host`, `torch`, `integer`, a target that `fxpress targets` lists as simulated, or the file of one.",
    ),
    "R406": ErrorCode(
        "the output directory has no C", "Add `c` to `outputs` in the spec, and compile again."
    ),
    "R407": ErrorCode(
        "the output directory has no torch module",
        "Add `torch` to `outputs` in the spec, and compile again.",
    ),
    "R408": ErrorCode(
        "`--input` of `fxpress run DIR` is not an input and an array",
        "Write `--input NAME=ARRAY` once for each input with another name in the file.",
    ),
    "R409": ErrorCode(
        "`--bits` or `--activation-bits` has an unsupported bit width",
        "Write widths from the message, separated by commas.",
    ),
    "R410": ErrorCode("a file of the output directory cannot be read", "Compile again, or restore the file."),
    "R411": ErrorCode(
        "a file of the output directory was changed",
        "Compile again, or restore the file. Copy files elsewhere before editing them.",
    ),
    "R412": ErrorCode(
        "the output directory was written by another version of fxpress",
        "Compile again, or install the version that the message names.",
    ),
    "R413": ErrorCode(
        "the emitted torch module cannot be loaded",
        "Install the packages that it imports, in the versions with which it was compiled. If a file of its weights is "
        "missing or damaged, compile again.",
    ),
    "R414": ErrorCode(
        "`--dump-after` names a pass that the spec does not have", "Write a pass that the message lists."
    ),
    "R415": ErrorCode(
        "measurement options of `fxpress run DIR` contradict each other",
        "Add `--labels` for `top1` and `mse`. `agreement` and `snr` compare with the captured model: put them under "
        "`data.evaluation` of the spec. `--output` and `--class-axis` select the output and its class dimension for "
        "a metric.",
    ),
    "R416": ErrorCode(
        "`fxpress explain CODE` has a single argument that is not an error code, or a method does not exist",
        "Write a code such as `M123`, as at the end of messages; `method` and a name; a spec and a path in it; or an "
        "output directory and a layer.",
    ),
    "R417": ErrorCode(
        "the constants of a model from a folder are not part of its output directory",
        "Run it with `--on torch`, or load the emitted module. To run the graph itself, load the weights in your own "
        "class, and name it in `model.source`.",
    ),
    "R418": ErrorCode(
        "text generation is requested, but the network does not support it",
        "Compile the folder of a causal language model with `model.cache`, and with `torch` under `outputs`. With a "
        "fixed block of tokens it takes one token per call.",
    ),
    "R419": ErrorCode(
        "a text does not fit a language model: it is empty, longer than the caches, or has unknown tokens",
        "Give a text of at least one token, at most as many as `model.cache.length`, and the tokenizer of the model.",
    ),
    "R420": ErrorCode(
        "the output directory has no tokenizer, or it cannot be read",
        "Give token ids with `--prompt-ids`, or compile a folder with tokenizer.json. The package tokenizers belongs "
        "to the extra: `pip install 'fxpress[hf]'`.",
    ),
    "R421": ErrorCode(
        "options of `fxpress run DIR` exclude each other",
        "Remove one: `--tokens`, `--temperature` and `--seed` are for `--prompt` and `--prompt-ids`, `--tokens` also "
        "for `--perplexity`; all others are for `--data`.",
    ),
    "R422": ErrorCode("a text file cannot be read", "Name a file in UTF-8."),
    "T501": ErrorCode(
        "a compiler or a simulator is missing or fails",
        "Install the tool that the message names; the simulator comes with `pip install 'fxpress[sim]'`. Check the "
        "`toolchain` of your own target file.",
    ),
    "R423": ErrorCode(
        "`--pareto` or `outputs.c.pareto` for a spec without C for a microcontroller",
        "Add `c` to `outputs` in the spec, and name a core as `target`: its cycles are predicted.",
    ),
}
"""Codes that the compiler reports: those of its commands, and those of passes and tools."""

ALL_CODES: Mapping[str, ErrorCode] = {**SPEC_CODES, **BACKEND_CODES, **COMPILER_CODES}

_PAGE = """\
# Error codes

Made by `python -m fxpress.compiler.codes > docs/errors.md`; a test compares it with the code.

Each problem in a spec, a model, its data or an output directory is reported with the place, the fact, what to do, and
a code in brackets at the end of the line; the exit status is 2. `fxpress explain M123` prints the entry of a code.
"""


def explain_code(text: str) -> str:
    """Meaning and remedy of a code; UserError with the most similar codes if it does not exist.

    >>> print(explain_code("m214"))
    M214 (capture of the model): `forward` returns None, or no tensor
      Return the result from `forward`.
    """
    code = text.strip("[] ").upper()
    if code not in ALL_CODES:
        near = get_close_matches(code[:8], ALL_CODES, n=4, cutoff=0.5)
        listed = "; ".join(f"{other}, {ALL_CODES[other].meaning}" for other in near)
        hint = f"near: {listed}" if near else "write a code such as M123, or a spec or a directory and a name"
        raise UserError(Problem("R416", f"explain {shorten(text)}", "is not an error code", hint))
    entry = ALL_CODES[code]
    title = f"{code} ({FAMILIES[code[:2]]}): {entry.meaning}"
    return f"{title}\n{fill(entry.remedy, 100, initial_indent='  ', subsequent_indent='  ')}"


def codes_document() -> str:
    """The page of all codes as Markdown, with a table for each family."""
    return "\n".join([_PAGE, *(_table(prefix, subject) for prefix, subject in FAMILIES.items())])


def _table(prefix: str, subject: str) -> str:
    entries = sorted((code, entry) for code, entry in ALL_CODES.items() if code.startswith(prefix))
    rows = [f"| {code} | {entry.meaning} | {entry.remedy} |" for code, entry in entries]
    head = [f"## {prefix}: {subject}", "", "| code | meaning | what to do |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    print(codes_document(), end="")
