"""Parameters by name: `layers.attention.query.kernel` and the like, in checkpoints and in tables."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from uner_jax.mesh import sharding_of
from uner_jax.model.llama import Llama

Tree = TypeVar("Tree")


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a model, or of a tree that holds models, by dotted name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def unflatten(template: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The template with the leaves of those names in it."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_name(path)], template)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def parameter_axes(model: Llama) -> dict[str, tuple[str, ...]]:
    """The logical axes of each parameter; those of the stacked blocks begin with "layers"."""
    axes = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if variable.get_value() is None:  # of a model whose other part lies elsewhere
            continue
        own = variable.get_metadata()["axes"]
        stacked = len(variable.get_value().shape) - len(own)
        axes[".".join(map(str, path))] = ("layers",) * stacked + own
    return axes


def tree_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """A sharding for every leaf: parameters, and what mirrors them, by their axes; the rest whole everywhere."""

    def of_node(node: Any) -> Any:
        if not isinstance(node, Llama):
            return NamedSharding(mesh, P())
        axes = parameter_axes(node)
        return unflatten(node, {name: sharding_of(mesh, x.shape, axes[name]) for name, x in flatten(node).items()})

    return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Llama))


def abstract_model(config: Any, **options: Any) -> Llama:
    """A model of shapes only: nothing is computed or allocated."""
    return jax.eval_shape(lambda: Llama(config, nnx.Rngs(0), **options))
