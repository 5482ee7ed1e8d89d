"""The counted FLOPs are those that the compiler counts, and the published ones of LLaMA-7B."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.training.flops import PASSES, PEAKS, Work, utilisation

SMALL = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
LLAMA_7B = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)


def compiled_flops(config: LlamaConfig, length: int) -> float:
    """What XLA counts of a forward pass over a row whose every token reaches the vocabulary."""
    model = jax.eval_shape(lambda: Llama(config, nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return jax.jit(lambda model, tokens: model(tokens)).lower(model, tokens).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    "change", [{}, {"intermediate_size": 384}, {"num_key_value_heads": 4}, {"vocab_size": 4096}, {"hidden_size": 128}]
)
def test_products_of_the_forward_pass_are_those_that_the_compiler_counts(change):
    config = LlamaConfig(**vars(SMALL) | change)
    length = 128
    # the reference computes the whole square of scores of a block of queries, not only what is behind a token.
    counted = Work.of(config).flops(length, length * length, length) / PASSES
    # beside the products: norms, rotary angles, softmax, each a few operations for each channel or score.
    assert counted <= compiled_flops(config, length) <= 1.35 * counted


def test_each_part_grows_with_what_it_is_of():
    work = Work.of(SMALL)
    assert work.flops(2, 0, 0) == 2 * work.flops(1, 0, 0) > 0
    assert work.flops(0, 2, 0) == 2 * work.flops(0, 1, 0) > 0
    assert work.flops(0, 0, 2) == 2 * work.flops(0, 0, 1) > 0


def test_llama_7b_needs_what_is_published():
    # 6 FLOPs a parameter outside the embedding and token, and causal attention: 41.3 GFLOP at 2,048 tokens.
    length = 2048
    flops = Work.of(LLAMA_7B).flops(length, length * (length + 1) / 2, length) / length
    assert flops == pytest.approx(41.3e9, rel=0.01)


def test_utilisation_is_of_the_peak_of_all_devices():
    assert utilisation(PEAKS["TPU v5e"] * 8, 2.0, "TPU v5e", 8) == 0.5
    assert utilisation(1e12, 1.0, "cpu", 1) is None
