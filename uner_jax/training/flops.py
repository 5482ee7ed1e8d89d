"""How much arithmetic a step needs, and how much of the devices' peak it gets: the model FLOPs utilisation (MFU).

Counted are the multiplications and additions of the matrix products that the model needs, forward and backward; what
rematerialisation computes again is not (arXiv 2204.02311, appendix B). A token attends to those before it in its own
segment, and only answer tokens reach the vocabulary, so both are counted as they are in the batch.
"""

import dataclasses

from jax.sharding import Mesh

from uner_jax.model.config import LlamaConfig

# A product costs a multiplication and an addition; the backward pass makes two products for each of the forward pass,
# or one if one of the two factors is frozen.
OPERATIONS = 2
PASSES = 3
FROZEN_PASSES = 2

# Peak of dense bfloat16 products in FLOP/s, by the name of a device as JAX gives it (the makers' data sheets).
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H200": 989.5e12,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of a training step: so much for each token, each pair of tokens that attend, and each answer token."""

    token: float
    pair: float
    answer: float

    @classmethod
    def of(cls, config: LlamaConfig, frozen: bool = False) -> "Work":
        """The work of an architecture; where its weights are frozen, without that of the adapters beside them."""
        width, head = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        projections = width * head * (2 * heads + 2 * kv_heads)
        mlp = 3 * width * config.intermediate_size
        scale = OPERATIONS * (FROZEN_PASSES if frozen else PASSES)
        return cls(
            token=scale * config.num_hidden_layers * (projections + mlp),
            # the score of the pair, and the value that it mixes in.
            pair=OPERATIONS * PASSES * config.num_hidden_layers * 2 * heads * head,
            answer=scale * width * config.vocab_size,
        )

    def flops(self, tokens: float, pairs: float, answers: float) -> float:
        """FLOPs of a step with so many tokens that are no padding, attending pairs and answer tokens."""
        return tokens * self.token + pairs * self.pair + answers * self.answer


def utilisation(flops: float, seconds: float, device_kind: str, devices: int) -> float | None:
    """FLOPs a second over the peak of all devices; None for a device whose peak is not in the table."""
    peak = PEAKS.get(device_kind)
    return None if peak is None else flops / (seconds * peak * devices)


def rates(row: dict[str, float], seconds: float, work: float, mesh: Mesh) -> dict[str, float]:
    """How fast a step was, from its row in the metrics: of `work` FLOPs, in so many seconds on the mesh."""
    device = mesh.devices.flat[0].device_kind
    used = utilisation(work, seconds, device, mesh.size)
    per_second = {f"{name}_per_second": row[name] / seconds for name in ("tokens", "answer_tokens")}
    return {"seconds": seconds} | per_second | ({} if used is None else {"mfu": used})
