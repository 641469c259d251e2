"""Moves the stories model with weights of four bits to Shakespeare, and runs the result as a torch module and as C.

    python examples/language_model/adapt.py            # a minute

Prints the loss on unseen text before and after, the bytes of the training, and whether the stored weights have kept
their bytes. The network takes windows of a fixed length here, since C has fixed sizes.
"""

from pathlib import Path

import torch
from shakespeare import evaluation, loss

from fxpress.compiler import Compiled, compile_model

SPEC = Path(__file__).resolve().parent / "shakespeare.yaml"
FIXED = [
    "model.inputs.tokens={shape: [1, 128], dtype: int64}",
    "target={name: host}",
    "outputs={torch: {}, c: {name: shakespeare, weights_file: binary}}",
]
BASE = [*FIXED, "passes=[{pass: clean}, {pass: weight_only, weights: int4, group_size: 32}]"]
STATE = 4 * 4  # bytes of a trained number: itself, its gradient and two moments of AdamW


def main() -> None:
    """Compiles without and with adapters, and compares both."""
    torch.set_num_threads(1)
    base, adapted = (compile_model(SPEC, overrides=overrides) for overrides in (BASE, FIXED))
    added = adapted.graph.params.keys() - base.graph.params.keys()
    trained = sum(adapted.graph.params[name].numel() for name in added)
    weights = sum(tensor.numel() for name, tensor in base.graph.params.items() if name.endswith("weight"))
    is_same = all(
        torch.equal(base.graph.params[name], adapted.graph.params[name]) for name in base.graph.params
    )
    stored = _stored_bytes(base)
    print(f"loss before       {_losses(base, 'torch'):.3f} nats a token, weights of 4 bits")
    print(f"loss after        {_losses(adapted, 'torch'):.3f}, torch module")
    print(f"                  {_losses(adapted, 'host'):.3f}, C on this computer")
    print(f"trained           {trained:,} numbers, {100 * trained / weights:.1f} % of {weights:,}")
    print(
        f"training state    {stored + STATE * trained:,} bytes; {STATE * weights:,} for all weights in float32"
    )
    print(f"stored weights    {'unchanged byte for byte' if is_same else 'CHANGED'}")


def _stored_bytes(compiled: Compiled) -> int:
    """Bytes of the stored weights with their scales."""
    (section,) = (found for found in compiled.report.passes if found.name == "weight_only")
    (summary,) = (table for table in section.tables if table.name == "summary")
    (size,) = (int(value or 0) for name, value in summary.rows if name == "weight_bytes_after")
    return size


def _losses(compiled: Compiled, on: str) -> float:
    """Loss on the evaluation windows."""
    data = evaluation()
    tokens = torch.from_numpy(data["tokens"])
    (scores,) = compiled.run(tokens, on=on).outputs
    return loss(scores, torch.from_numpy(data["next"]))


if __name__ == "__main__":
    main()
