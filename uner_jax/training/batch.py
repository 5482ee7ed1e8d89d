"""A batch of all hosts, from what each of them has read."""

import jax
import numpy as np
from jax.sharding import Mesh

from uner_jax.data.batches import Batch
from uner_jax.mesh import sharding_of


def on_mesh(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows as its part of global arrays."""
    hosts = jax.process_count()

    def place(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * hosts, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding_of(mesh, shape, ("batch", None)), x, shape)

    return {name: place(x) for name, x in batch.items()}
