"""Steps compiled by the compilers of TPUs and GPUs, which the extra `plan` brings; no device, no network."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import train
from uner_jax.mesh import make_mesh
from uner_jax.records import InputError
from uner_jax.training import hlo
from uner_jax.training.compiled import Compiled, compile_step
from uner_jax.training.config import TrainConfig
from uner_jax.training.plan import Rows
from uner_jax.training.topologies import MEMORY_GIB, parse_topology

ROOT = Path(__file__).parent.parent.parent
HARDWARE = re.compile(r"^Hardware: ([\w:]+)", re.MULTILINE)
RECIPES = {
    path.stem: HARDWARE.findall(path.read_text("utf-8"))[0]
    for path in sorted((ROOT / "configs").glob("*.py"))
    if HARDWARE.search(path.read_text("utf-8"))
}
ROWS = Rows(segments_per_row=32, answers_per_row=512)


@pytest.fixture(scope="module", autouse=True)
def standard_dtypes():
    # optax counts in Python numbers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def recipe(name: str) -> TrainConfig:
    return train.load_recipe(str(ROOT / "configs" / f"{name}.py"))


def compiled(config: TrainConfig, topology: str, layers: int = 2) -> Compiled:
    """The step of the recipe's model with so many of its layers: how long it takes to compile does not change much."""
    architecture = dataclasses.replace(config.model.architecture, num_hidden_layers=layers)
    return compile_step(config, architecture, ROWS, parse_topology(topology))


def assert_sound(step: Compiled) -> None:
    assert step.fits and not step.error
    assert step.kernel in ("splash", "cudnn") and step.fused
    assert step.donated and not step.rematerialised
    assert step.peak > step.parameters + step.optimizer


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_compiles_for_its_slice(name):
    step = compiled(recipe(name), RECIPES[name])
    assert_sound(step)
    assert bool({"all-gather", "collective-permute"} & step.collectives.keys()) == (step.topology.count > 1)


def test_every_gpu_holds_its_part():
    config = recipe("uniner_7b_type")
    one, eight, nodes = (compiled(config, f"h100x{count}") for count in (1, 8, 16))
    for step in (one, eight, nodes):
        assert_sound(step)
    assert one.collectives == {} and eight.collectives["all-gather"]
    for step, devices in ((eight, 8), (nodes, 16)):
        # all but the norms is cut.
        assert step.parameters * devices == pytest.approx(one.parameters, rel=1e-3)


def test_what_does_not_fit_is_refused_by_the_tpu_compiler():
    config = dataclasses.replace(recipe("uniner_7b_type"), gradient_accumulation=2)
    step = compiled(config, "v5e:2x4", layers=24)
    assert not step.fits and "Ran out of memory" in step.error
    assert step.peak is None or step.peak > MEMORY_GIB["v5e"] * hlo.GIB


@pytest.mark.parametrize("topology", ["v5e:2x4", "h100x8"])
def test_gathering_an_array_whole_is_noticed(topology):
    mesh = make_mesh(2, 2, 2, parse_topology(topology).devices())

    def array(shape, dtype, *axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*axes)))

    # what the model does not do: look up rows of a table that is cut over both of its sides.
    table, places = array((512, 512), jnp.float32, "tensor", "fsdp"), array((16, 64), jnp.int32, ("data", "fsdp"))
    found = NamedSharding(mesh, P(("data", "fsdp")))
    lowered = jax.jit(lambda table, places: table[places], out_shardings=found).lower(table, places)
    with hlo.compiler_log() as log:
        lowered.compile()
    assert any(hlo.REMATERIALISED in line for line in log)


def test_a_slice_that_no_host_has():
    with pytest.raises(InputError, match="the compiler knows no such topology"):
        parse_topology("v5e:3x3").devices()


def test_the_command_prints_the_plan():
    command = [sys.executable, "-m", "uner_jax.cli", "plan", "configs/uniner_7b_type.py", "--topology", "h100x8"]
    ended = subprocess.run(
        [*command, "--gradient-accumulation", "8"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = re.findall(r"^h100x8 .*", ended.stdout, re.MULTILINE)
    assert "1 x 8 x 1" in line and " yes " in line and " cudnn " in line and " all " in line
    assert "6,738.4 M parameters" in ended.stdout and "all-gather" in ended.stdout
