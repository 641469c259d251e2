"""The combinations of methods: each order is a valid spec, and its row has a place in the results."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from fxpress.specs import load_spec
from fxpress.specs.errors import SpecError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "methods" / "trained"


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:  # any: names of a module
    sys.path.insert(0, str(ROOT / "benchmarks"))
    return runpy.run_path(str(ROOT / "benchmarks" / "combinations.py"))


@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_every_order_is_a_spec_and_pruning_integers_is_refused(name: str, benchmark: dict[str, Any]) -> None:
    network = benchmark["NETWORKS"][name]
    refused = []
    for order in benchmark["ORDERS"]:
        passes = ["{pass: clean}", *(benchmark["_passes"](network, step) for step in order)]
        try:
            found = load_spec(EXAMPLES / f"{network.spec}.yaml", [f"passes=[{', '.join(passes)}]"])
        except SpecError as err:
            refused.append(order)
            assert "prune" in str(err)
            continue
        names = [step.pass_ for step in found.spec.passes]
        assert ("prune" in names) == ("prune" in order) and ("finetune" in names) == bool(
            {"distill", "train"} & set(order)
        )
    assert refused == [("quantize", "prune")]


def test_rows_are_those_of_the_orders(benchmark: dict[str, Any]) -> None:
    rows = json.loads(benchmark["RESULTS"].read_text())["combinations"]
    orders = {", ".join(order) or "nothing" for order in benchmark["ORDERS"]}
    assert {row["order"] for row in rows} <= orders
    assert all(row["refused"] or row["flash_bytes"] for row in rows)
