"""NF4 with double quantization (QLoRA, Dettmers et al., NeurIPS 2023) against int4 with the same scales and bytes.

The metric is the divergence of the next token's distribution from that of the float model, in nats.
"""

from story_texts import SPEC, drawn

from fxpress.compiler import compile_model

FORMATS = {"method": "nf4", "baseline": "int4"}


def measure(variant: str, seed: int, on: str) -> float:
    """Mean divergence over texts of the float model."""
    settings = (
        f"weights={FORMATS[variant]}", "scales=double", "group_size=64", "observer=minmax", "activations=float32",
        "layers={tok_embeddings: int8}",
    )  # fmt: skip
    compiled = compile_model(SPEC, overrides=[f"passes[1].{setting}" for setting in settings])
    texts = drawn(on, seed)
    p, q = (compiled.run(texts, on=form).outputs[0].log_softmax(-1) for form in ("reference", "torch"))
    return float((p.exp() * (p - q)).sum(-1).mean())
