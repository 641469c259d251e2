"""The command `sensitivity`: the table of a spec's network, measured just before its bits are decided.

Under torchrun the processes share the shards of the samples; the table is the same to the last bit for any number of
processes. Therefore each computes on one thread: more processes use more cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from ..passes import PassError
from ..passes.progress_callback import Progress
from ..passes.sensitivity import (
    Method,
    Objective,
    SensitivityTable,
    digest_of,
    measure_sensitivity,
)
from ..specs import Loaded
from .errors import Problem, UserError
from .output import check_file, write_file
from .pipeline import calibration_batches, open_session, run_passes
from .process_group import process_group
from .session import Session, final_graph
from .table import text_table

DECIDING = ("assign_bits", "quantize", "stream", "weight_only")
"""Passes that decide about bits: the graph before the first of them is measured."""

Origin = Literal["measured", "read"]


def measure(
    loaded: Loaded,
    *,
    method: Method,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    limit_seconds: float | None = None,
    samples: int | None = None,
    class_axis: int | None = None,
    output: Path | None = None,
    progress: Progress,
) -> tuple[SensitivityTable, Origin]:
    """The table of a spec, on its calibration data; read from `output` if it is there and up to date.

    With `class_axis`, the dimension of class scores of the first output, the table is always measured. The first
    process writes `output`. UserError for errors that the user can correct.
    """
    earlier = None if output is None else _read(output)
    with _one_thread(), process_group() as workers:
        session = open_session(loaded, limit_seconds=limit_seconds)
        graph = final_graph(session, run_passes(session, before=DECIDING, progress=progress))
        batches, labels = calibration_batches(session, samples)
        if not batches:
            raise UserError(
                Problem("D108", str(loaded.path), "sensitivity needs data", "see `data.calibration`")
            )
        if (
            earlier is not None
            and class_axis is None
            and earlier.digest == digest_of(graph, batches, labels)
            and earlier.covers(method=method, weight_bits=weight_bits, activation_bits=activation_bits)
        ):
            return earlier, "read"
        try:
            table = measure_sensitivity(
                graph,
                batches,
                method=method,
                weight_bits=weight_bits,
                activation_bits=activation_bits,
                labels=labels,
                objective="classes" if class_axis is not None else _objective(session),
                class_axis=class_axis,
                workers=workers,
                progress=progress,
            )
        except PassError as err:
            raise UserError(Problem("P602", f"{loaded.path} (sensitivity)", err.message)) from err
        if output is not None and workers.rank == 0:
            write_file(output, table.to_json().encode())
        return table, "measured"


def table_text(table: SensitivityTable) -> str:
    """The table for the terminal: a row for each layer and kind, a column for each width."""
    widths = sorted({score.bits for score in table.scores})
    cells = {(s.layer, s.kind, s.bits): f"{s.loss:.3g} ± {s.error:.1g}" for s in table.scores}
    rows = [
        (layer, kind, *(cells.get((layer, kind, bits), "-") for bits in widths))
        for kind in ("weight", "activation")
        for layer in dict.fromkeys(s.layer for s in table.scores if s.kind == kind)
    ]
    unit = "nats" if table.objective == "classes" else "half the mean squared change"
    lines = [text_table(("layer", "kind", *(f"{bits} bits" for bits in widths)), rows), ""]
    lines.append(
        f"{table.method}, {table.samples} samples; loss added by rounding the layer alone, in {unit}"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in table.notes)])


def _objective(session: Session) -> Objective | None:
    """Meaning of the outputs, if the data define it: labels or accuracy imply classes."""
    calibration, evaluation = session.spec.data.calibration, session.spec.data.evaluation
    metric = None if evaluation is None else evaluation.metric
    if (calibration is not None and calibration.labels) or metric == "top1":
        return "classes"
    return "values" if metric == "mse" else None


def _read(path: Path) -> SensitivityTable | None:
    """The table of an earlier run; None if there is none. UserError if the path cannot be written."""
    check_file(path)
    if not path.exists():
        return None
    try:
        return SensitivityTable.from_json(path.read_text(errors="replace"))
    except PassError as err:
        raise UserError(
            Problem("O307", str(path), f"exists and is {err.message}", "choose another name with -o")
        ) from err


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
