"""The engine on several devices answers as on one, and with 8-bit weights nearly so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# 40 questions on 8 contexts, on a mesh of 4 copies with 2 devices each and of 8 copies, and on one device.
PROGRAM = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
from uner_jax.extraction.engine import Engine, Request
from uner_jax.mesh import make_mesh
from uner_jax.model.adapters import freeze
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model, tree_shardings

CONFIG = LlamaConfig(64, 32, 48, 2, 4, 2, 8, max_position_embeddings=120)
random = np.random.default_rng(0)
model = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.3, x.shape), jnp.float32), abstract_model(CONFIG))
ids = lambda count: tuple(random.integers(64, size=count).tolist())
contexts = [ids(20 + 5 * number) for number in range(8)]
requests = [Request(contexts[number % 8], ids(3 + number % 7)) for number in range(40)]

def answers(model, mesh=None):
    found = dict(Engine(model, 5, 4, 20, draft=(3,), batch_tokens=512, mesh=mesh).generate(requests))
    return [found[place] for place in range(len(requests))]

plain = answers(model)
assert len({answer.tokens for answer in plain}) > 20
for tensor in (1, 2):
    mesh = make_mesh(data=-1, fsdp=1, tensor=tensor)
    spread = answers(jax.device_put(model, tree_shardings(model, mesh)), mesh)
    assert [answer.tokens for answer in spread] == [answer.tokens for answer in plain], tensor
    for one, other in zip(spread, plain):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
        np.testing.assert_allclose(one.draft_log_prob, other.draft_log_prob, atol=1e-4)
few = answers(freeze(model, "int8"))
same = sum(one.tokens[:1] == other.tokens[:1] for one, other in zip(few, plain))
close = np.mean([abs(one.draft_log_prob - other.draft_log_prob) for one, other in zip(few, plain)])
assert same > 30 and 0 < close < 0.2, (same, close)
print("done")
"""


@pytest.mark.parametrize("cache", ["programs"])
def test_answers_on_meshes_and_in_eight_bits(cache, tmp_path):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / cache),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr[-3000:]
