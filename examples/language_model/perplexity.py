"""Rounding methods of stored weights on a small language model: size, divergence from the float model, perplexity.

    python examples/language_model/perplexity.py
    python examples/language_model/perplexity.py --method gptq --method learned --results benchmarks/results/llm.json

A method is one line of the spec. Groups have 32 weights; the embedding has 8 bits, except with a budget, which
chooses the width of each weight. `bytes` are those of packed weights and scales. `kl` is the mean divergence from the
float model, in nats a token, on 24 texts that it samples, other ones than the 40 for calibration; then perplexities on
the story that the float model writes by itself, and on the first windows of Shakespeare. All are of the emitted torch
module.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from texts import float_model, sampled
from tokenizer import BEGIN, Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import compile_model, text_table

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
SPEC = HERE / "stories.yaml"
WINDOW, WINDOWS = 256, 24
BITS = (8, 4, 3, 2)
METHODS = {  # passes after `clean`; the widths are filled in, and the layer that `rotate` adds has 8 bits
    "nearest": "{{pass: weight_only, {}}}",
    "hqq": "{{pass: weight_only, {}, rounding: hqq}}",
    "rotate": "{{pass: rotate}}, {{pass: weight_only, {}}}",
    "awq": "{{pass: weight_only, {}, rounding: awq}}",
    "gptq": "{{pass: weight_only, {}, rounding: gptq}}",
    "rotate, gptq": "{{pass: rotate}}, {{pass: weight_only, {}, rounding: gptq}}",
    "awq, gptq": "{{pass: weight_only, {}, rounding: {{kind: awq, then: gptq}}}}",
    "auto_round": "{{pass: weight_only, {}, rounding: auto_round}}",
    "learned": "{{pass: weight_only, {}, rounding: learned}}",
}
TABLES = {  # bits, and options of a pass
    "nf4": ("4", "weights: nf4"),
    "nf4, double": ("4", "weights: nf4, scales: double"),
    "mxfp4": ("4", "weights: mxfp4"),
    "fp8_e4m3": ("8", "weights: fp8_e4m3"),
}
UNIFORM = "weights: int{}, layers: {{tok_embeddings: int8{}}}"
BUDGET = "budget: {weights: 136 kB}"
WITHIN_BUDGET = ("nearest", "gptq", "awq, gptq", "learned")
COLUMNS = ("method", "bits", "bytes", "kl", "own_story", "shakespeare")


@dataclass(frozen=True)
class Form:
    """A row: name and bits as they are printed, and the passes of the spec after `clean`."""

    method: str
    bits: str
    passes: str


def forms() -> Iterator[Form]:
    """The float model, every method at every width, and some with a width for each weight."""
    yield Form("float32", "32", "{pass: weight_only, layers: {'**': float32}}")
    for method, passes in METHODS.items():
        for bits in BITS:
            more = ", norm: int8" if "rotate" in method else ""
            yield Form(method, str(bits), passes.format(UNIFORM.format(bits, more)))
    for name, (width, options) in TABLES.items():
        passes = METHODS["nearest"].format(f"{options}, layers: {{tok_embeddings: int8}}")
        yield Form(name, width, passes)
    for method in WITHIN_BUDGET:
        yield Form(method, "mixed", METHODS[method].format(BUDGET))


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and writes its rows to a file of results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", action="append", help="only this method; can be repeated")
    parser.add_argument(
        "--bits", action="append", help="only these: 8, 4, 3, 2, 32 or mixed; can be repeated"
    )
    parser.add_argument("--results", type=Path, help="JSON file in which these rows are renewed")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    story, shakespeare = own_story(), shakespeare_windows()
    model, texts = float_model(), torch.from_numpy(sampled(24, seed=1))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "texts.npz"
        np.savez(data, tokens=sampled(40, seed=0))
        for form in forms():
            if form.method not in (options.method or (form.method,)):
                continue
            if form.bits not in (options.bits or (form.bits,)):
                continue
            module, size = compiled_form(form, data)
            figures = (
                mean_divergence(model, module, texts),
                *(perplexity(module, x) for x in (story, shakespeare)),
            )
            rows.append((form.method, form.bits, size, *(round(figure, 4) for figure in figures)))
            print(*rows[-1], sep="\t", flush=True)
    print(text_table(COLUMNS, [tuple(map(str, row)) for row in rows]))
    if options.results is not None:
        content = json.loads(options.results.read_text())
        renewed = {row[:2] for row in rows}
        kept = [row for row in content.get("methods", []) if (row["method"], row["bits"]) not in renewed]
        content["methods"] = kept + [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        options.results.write_text(json.dumps(content, indent=1) + "\n")


def compiled_form(form: Form, data: Path) -> tuple[nn.Module, int]:
    """The emitted module, and the bytes of its weights."""
    calibration = f"data.calibration={{file: {data}, inputs: {{tokens: tokens}}}}"
    compiled = compile_model(SPEC, overrides=[calibration, f"passes=[{{pass: clean}}, {form.passes}]"])
    assert compiled.torch is not None
    (section,) = (s for s in compiled.report.passes if s.name == "weight_only")
    (summary,) = (table for table in section.tables if table.name == "summary")
    figure = "constant_bytes_after" if form.bits == "32" else "weight_bytes_after"
    (size,) = (int(value or 0) for name, value in summary.rows if name == figure)
    return compiled.torch.build(), size


def mean_divergence(model: nn.Module, module: nn.Module, texts: Tensor) -> float:
    """Kullback-Leibler divergence of the module's next-token distributions from the model's, in nats a token."""
    total = 0.0
    with torch.no_grad():
        for text in texts:
            p, q = (network(text[None]).log_softmax(-1) for network in (model, module))
            total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(texts)


def perplexity(module: nn.Module, windows: Sequence[Tensor]) -> float:
    """exp of the mean cross-entropy, in nats a token, of each token given those before it in its window."""
    total = 0.0
    with torch.no_grad():
        for tokens in windows:
            logits = module(tokens)
            total += float(functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))
    return math.exp(total / len(windows))


def own_story() -> list[Tensor]:
    """Greedy continuation of the float model, one window."""
    with np.load(SHARED / "models" / "stories260k_tokenizer.npz") as arrays:
        return [torch.from_numpy(arrays["greedy_ids"].astype(np.int64))[None]]


def shakespeare_windows() -> list[Tensor]:
    """Windows of the validation part, line by line, each window after a token that begins a text."""
    tokenizer = Tokenizer.load(SHARED / "models" / "stories260k_tokenizer.npz")
    with np.load(SHARED / "data" / "tinyshakespeare.npz") as arrays:
        lines = arrays["val"].tobytes().decode().splitlines()
    numbers: list[int] = []
    for line in lines:
        if len(numbers) >= WINDOWS * (WINDOW - 1):
            break
        numbers += tokenizer.encode(line)
    starts = range(0, WINDOWS * (WINDOW - 1), WINDOW - 1)
    return [torch.tensor([[BEGIN, *numbers[at : at + WINDOW - 1]]]) for at in starts]


if __name__ == "__main__":
    main()
