"""The chunked cross-entropy is the plain one, with its gradients, however the arrays are cut."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uner_jax.training import cross_entropy
from uner_jax.training.cross_entropy import cross_entropy_sum

ROOT = Path(__file__).parent.parent


def plain(hidden_BAD, table_VD, targets_BA, weights_BA):
    logits_BAV = jnp.einsum("bad,vd->bav", hidden_BAD, table_VD, precision="highest")
    chosen_BA = jnp.take_along_axis(logits_BAV, targets_BA[..., None], axis=-1)[..., 0]
    return jnp.sum((jax.nn.logsumexp(logits_BAV, axis=-1) - chosen_BA) * weights_BA)


def arrays(rows, answers, width, vocab, seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (rows, answers, width)).astype(dtype)
    table = jax.random.normal(keys[1], (vocab, width))
    targets = jax.random.randint(keys[2], (rows, answers), 0, vocab)
    return hidden, table, targets, (jax.random.uniform(keys[3], (rows, answers)) > 0.3).astype(jnp.float32)


def assert_same(found, wanted, tolerance):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape and np.max(np.abs(x - y)) <= tolerance * np.max(np.abs(y))


def both(function, given):
    return jax.jit(jax.value_and_grad(function, (0, 1)))(*given)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 60), st.integers(1, 64), st.integers(0, 99))
def test_loss_and_gradients_are_the_plain_ones(rows, answers, vocab, chunk, seed):
    given_arrays = arrays(rows, answers, 8, vocab, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK", chunk)
        found = both(cross_entropy_sum, given_arrays)
        value = jax.jit(cross_entropy_sum)(*given_arrays)
    loss, gradients = both(plain, given_arrays)
    # a vocabulary of one word has a loss of 0, up to the rounding of the logits.
    np.testing.assert_allclose([found[0], value], loss, rtol=1e-6, atol=1e-5)
    if vocab > 1 and np.sum(given_arrays[3]) > 0:
        assert_same(found[1], gradients, 1e-6)


def test_large_logits_do_not_overflow():
    hidden, table, targets, weights = arrays(2, 9, 8, 40)
    loss, gradients = both(cross_entropy_sum, (hidden * 1e3, table, targets, weights))
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in gradients)


def test_the_upstream_gradient_scales_it():
    given_arrays = arrays(2, 9, 8, 40)
    scaled = both(lambda *x: 3.0 * cross_entropy_sum(*x), given_arrays)
    once = both(cross_entropy_sum, given_arrays)
    assert_same(scaled, jax.tree.map(lambda x: 3.0 * x, once), 1e-6)


def test_bfloat16_activations_give_gradients_in_their_own_dtypes():
    given_arrays = arrays(3, 20, 32, 50, dtype=jnp.bfloat16)
    loss, (hidden, table) = both(cross_entropy_sum, given_arrays)
    assert (loss.dtype, hidden.dtype, table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    exact = both(plain, (given_arrays[0].astype(jnp.float32), *given_arrays[1:]))
    assert_same((loss, (hidden, table)), exact, 2e-2)


def test_the_logits_of_all_tokens_are_never_there():
    hidden, table, targets, weights = arrays(4, 1024, 8, 512)
    step = jax.jit(jax.value_and_grad(cross_entropy_sum, (0, 1)))
    memory = step.lower(hidden, table, targets, weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 1024 * 512 * 4 / 2


MESHES = """
import itertools, json, sys
sys.path.insert(0, "tests")
import jax
from test_cross_entropy import arrays, assert_same, both, plain
from uner_jax.mesh import make_mesh
from uner_jax.training import cross_entropy
from uner_jax.training.cross_entropy import cross_entropy_sum
# several slices of the vocabulary, the last not whole; the last mesh has too many tokens a device for slices.
cross_entropy.SLICE = 24
shapes = [(2, 2, 2), (1, 1, 8), (1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 2, 4)]
# what does not divide the mesh stays whole: of the vocabulary, of the width and of the rows.
sizes = [(8, 11, 32, 64), (8, 11, 32, 61), (8, 11, 30, 64), (6, 11, 32, 64)]
for shape, (rows, answers, width, vocab) in zip(shapes, itertools.cycle(sizes)):
    given = arrays(rows, answers, width, vocab)
    with jax.set_mesh(make_mesh(*shape)):
        found = both(cross_entropy_sum, given)
    assert_same(found, both(plain, given), 1e-6)
    print(shape, rows, answers, width, vocab)
"""


def test_cut_over_a_mesh_it_is_the_same():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", MESHES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("\n") == 6, done.stderr
