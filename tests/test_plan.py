"""A plan says what a recipe takes of devices that are not here: topologies, sizes, verdicts, and what was tried."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.data.batches import PackedRows
from uner_jax.data.builder import Example, build
from uner_jax.mesh import make_mesh
from uner_jax.model import llamas
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention
from uner_jax.model.llama import Remat
from uner_jax.model.parameters import abstract_model
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training import hlo, plan
from uner_jax.training.activations import activation_bytes, kept_activations
from uner_jax.training.compiled import Compiled, compile_step
from uner_jax.training.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from uner_jax.training.plan import Rows, architecture_of, make_plans, rows_of
from uner_jax.training.shapes import abstract_batch
from uner_jax.training.topologies import ALL, MEMORY_GIB, SLICES, Topology, parse_topologies, parse_topology

ROOT = Path(__file__).parent.parent
SLICE_RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if "\nHardware: " in path.read_text("utf-8")]
SMALL = LlamaConfig(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
ROWS = Rows(segments_per_row=4, answers_per_row=32)


class Here(Topology):
    """A topology whose devices are those of this machine."""

    def devices(self):
        return jax.devices()[:1]


class Imagined(Topology):
    """A topology of devices that nothing is compiled for."""

    def devices(self):
        return [None] * int(np.prod(self.shape))


def recipe(**fields) -> TrainConfig:
    model = ModelConfig(architecture=SMALL, remat=fields.pop("remat", "full"))
    data = DataConfig(dir="nowhere", batch_size=fields.pop("batch_size", 4), row_length=128)
    return TrainConfig(model=model, data=data, **fields)


# ---- topologies


@pytest.mark.parametrize(
    ("text", "kind", "shape", "name"),
    [
        ("v5e:4x4", "v5e", (4, 4), "v5e:4x4"),
        ("v5e-16", "v5e", (4, 4), "v5e:4x4"),
        ("v5litepod-256", "v5e", (16, 16), "v5e:16x16"),
        (" V6E-8 ", "v6e", (2, 4), "v6e:2x4"),
        # v5p and v4 are counted in cores, two a chip.
        ("v5p-8", "v5p", (2, 2, 1), "v5p:2x2x1"),
        ("v5p:4x4x4", "v5p", (4, 4, 4), "v5p:4x4x4"),
        ("v4-16", "v4", (2, 2, 2), "v4:2x2x2"),
        ("h100x8", "h100", (8,), "h100x8"),
        ("h100x64", "h100", (64,), "h100x64"),
    ],
)
def test_topologies_by_shape_and_by_name(text, kind, shape, name):
    found = parse_topology(text)
    assert (found.kind, found.shape, found.name) == (kind, shape, name)
    assert found.platform == ("cuda" if kind == "h100" else "tpu")
    assert found.limit_gib == MEMORY_GIB[kind]


@given(st.sampled_from(sorted(SLICES)), st.lists(st.integers(1, 32), min_size=3, max_size=3))
def test_a_topology_is_what_its_name_says(kind, sizes):
    topology = Topology(kind, tuple(sizes[: 2 if kind in ("v5e", "v6e") else 3]))
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize("kind", sorted(SLICES))
def test_the_name_of_a_slice_counts_its_chips_or_cores(kind):
    cores = 2 if kind in ("v4", "v5p") else 1
    for number in SLICES[kind]:
        assert np.prod(parse_topology(f"{kind}-{number}").shape) * cores == number


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a slice"),
        ("a100x8", "h100x8"),
        ("v5e", "expected a slice"),
        ("v9z:2x2", "not known"),
        ("v5e:4x4x4", "2 sides, such as v5e:4x4"),
        ("v5p:4x4", "3 sides"),
        ("v5e:0x4", "2 sides"),
        ("v5e-12", "v5e-16"),
        ("h100x0", "not known"),
        ("h100x12", "whole nodes of 8"),
    ],
)
def test_unknown_topologies_are_refused(text, words):
    with pytest.raises(InputError, match=re.escape(words)):
        parse_topologies(text)


def test_several_topologies_and_all():
    assert [t.name for t in parse_topologies("v5e-16,h100x8, v5e:4x4")] == ["v5e:4x4", "h100x8"]
    assert tuple(t.name for t in parse_topologies("all")) == ALL


# ---- what the compilers say

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused_computation.3 (param_0: f32[64,4096]) -> f32[64,4096] {
  %never.1 = f32[9999,9999]{1,0:T(8,128)} add(%param_0, %param_0), metadata={op_name="jit(step)/add"}
}

ENTRY %main.1_spmd (param: f32[8,4]) -> f32[8,4] {
  %param.1 = f32[512,512]{1,0:T(8,128)} parameter(0), metadata={op_name="state.model.head"}
  %while.1 = (f32[4096,4096]{1,0}, s32[]) while(%tuple.1), body=%region
  %fusion.1 = bf16[2,1,2048,4096]{3,2,1,0:T(8,128)(2,1)} fusion(%param.1), kind=kLoop, calls=%fused_computation.3, \
metadata={op_name="jit(step)/transpose(jvp(while))/body/closed_call/checkpoint/silu/mul" stack_frame_id=3}
  %fusion.2 = bf16[2,1,2048,4096]{3,2,1,0:T(8,128)(2,1)} fusion(%param.1), kind=kLoop, calls=%fused_computation.3
  %fast.1 = f32[3000,3000]{1,0:T(8,128)S(1)} copy(%param.1)
  %host.1 = f32[5000,3000]{1,0:T(8,128)S(5)} copy(%param.1)
  %all-gather.1 = f32[64,64]{1,0} all-gather(%param.1), dimensions={0}
  %all-gather-start.1 = (f32[8,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%param.1), dimensions={0}
  %all-gather-done.1 = f32[64,8]{1,0} all-gather-done(%all-gather-start.1)
  %collective-permute-start.1 = (f32[8]{0}, f32[8]{0}) collective-permute-start(%param.1)
  %collective-permute-done.1 = f32[8]{0} collective-permute-done(%collective-permute-start.1)
  %fusion.3 = f32[8,64]{1,0} fusion(%param.1), kind=kCustom, calls=%all-reduce-scatter.2
  %call.1 = bf16[1,32,2048,128]{3,2,1,0} custom-call(%param.1), custom_call_target="tpu_custom_call"
  %call.2 = bf16[1,32,2048,128]{3,2,1,0} custom-call(%param.1), custom_call_target="ConcatBitcast"
  %call.3 = bf16[1,32,2048,128]{3,2,1,0} custom-call(%param.1), custom_call_target="__cudnn$fmhaSoftmaxBackward"
}
"""


def test_collectives_are_counted_where_they_start():
    assert hlo.collectives(PROGRAM) == {"all-gather": 2, "collective-permute": 1, "reduce-scatter": 1}


def test_fused_attention_is_told_from_other_calls():
    assert hlo.kernels(PROGRAM) == {"splash": 1, "cudnn": 1}
    assert hlo.kernels("") == {}


def test_values_are_those_that_lie_in_the_devices_memory():
    first, second, *rest = hlo.values(PROGRAM, most=4)
    assert first == hlo.Buffer("silu/mul (backward)", "bf16[2,1,2048,4096]", 2 * 2 * 2048 * 4096)
    assert (second.shape, len(rest)) == ("bf16[1,32,2048,128]", 2)


def test_what_a_compiler_out_of_memory_says():
    short = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (29.07G) exceeds "
        "available HBM (15.75G)."
    )
    assert hlo.memory_error(short) == (29.07, [])
    long = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.00G of 15.75G hbm. Exceeded by 4.98M.

Largest program allocations in hbm:

  1. Size: 512.00M
     Operator: op_name="jit(step)/while/body/add"
     Shape: bf16[32,1,2048,4096]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 512.00M

  2. Size: 1.50G
     Shape: f32[400,4096]{1,0}
"""
    needed, listed = hlo.memory_error(long)
    assert needed == 16.0
    assert listed == [
        hlo.Buffer("add", "bf16[32,1,2048,4096]", 2**29),
        hlo.Buffer("of the compiler", "f32[400,4096]", 3 * 2**29),
    ]
    assert hlo.memory_error("something else") == (None, [])


def test_the_compilers_log_is_kept_and_standard_error_given_back(capfd):
    with hlo.compiler_log() as log:
        os.write(2, b"one\ntwo\n")
    os.write(2, b"three\n")
    assert log == ["one", "two"]
    assert capfd.readouterr().err == "three\n"


# ---- a step that is really compiled, for this machine


def compiled_here(config) -> Compiled:
    # optax counts in Python numbers.
    with jax.numpy_dtype_promotion("standard"):
        return compile_step(config, SMALL, ROWS, Here("v5e", (1, 1)))


@pytest.mark.parametrize("moment", ["float32", "bfloat16"])
def test_sizes_are_those_of_the_arrays(moment):
    config = recipe(optimizer=OptimizerConfig(first_moment_dtype=moment), mesh=MeshConfig(fsdp=1))
    step = compiled_here(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_model(SMALL)))
    counters = 2 * 4  # AdamW's and the schedule's count of steps
    assert step.parameters == 4 * parameters
    assert step.optimizer == (8 if moment == "float32" else 6) * parameters + counters
    assert step.batch == 4 * (3 * 4 * 128 + 3 * 4 * 32)
    assert step.peak > step.parameters + step.optimizer + step.batch
    assert step.activations == kept("full", rows=4) > 4 * 4 * 128 * SMALL.hidden_size * SMALL.num_hidden_layers
    assert step.fits and step.donated and step.fused and not step.error
    assert (step.mesh, step.rows_a_device, step.kernel) == ({"data": 1, "fsdp": 1, "tensor": 1}, 4, "reference")
    assert [x.size for x in step.buffers] == sorted((x.size for x in step.buffers), reverse=True)
    assert "inputs of all layers, kept for the backward pass" in {buffer.name for buffer in step.buffers}


def kept(remat, tensor=1, dtype="float32", layers=SMALL.num_hidden_layers, rows=2):
    """Bytes that one device keeps of the forward pass."""
    config = recipe(dtype=dtype, remat=remat)
    architecture = dataclasses.replace(SMALL, num_hidden_layers=layers)
    return activation_bytes(kept_activations(config, architecture, Attention(), rows, tensor))


def test_activations_are_what_the_remat_policy_keeps_of_each_layer():
    tokens, width, head = 2 * 128, SMALL.hidden_size, SMALL.head_dim
    heads = SMALL.num_attention_heads + 2 * SMALL.num_key_value_heads
    layer = {remat: kept(remat, layers=5) - kept(remat, layers=4) for remat in get_args(Remat)}
    assert layer["full"] == 4 * tokens * width and layer["offload"] == 0
    assert layer["qkv"] == layer["full"] + 4 * tokens * heads * head
    assert layer["qkv"] < layer["dots"] < layer["none"]
    # bfloat16 halves them, more rows multiply them, tensor cuts the heads and not the inputs.
    assert kept("qkv", layers=5, dtype="bfloat16") - kept("qkv", layers=4, dtype="bfloat16") == layer["qkv"] / 2
    assert kept("qkv", layers=5, rows=6) - kept("qkv", layers=4, rows=6) == 3 * layer["qkv"]
    cut = kept("qkv", tensor=2, layers=5) - kept("qkv", tensor=2, layers=4)
    assert cut == layer["full"] + 4 * tokens * heads * head // 2


def test_a_state_larger_than_a_device_is_not_compiled(monkeypatch):
    monkeypatch.setitem(MEMORY_GIB, "v5e", 1e-4)
    step = compile_step(recipe(), SMALL, ROWS, Here("v5e", (1, 1)))
    assert not step.fits and "alone" in step.error and step.seconds == 0


def test_a_step_over_the_limit_does_not_fit_even_where_the_compiler_says_nothing(monkeypatch):
    step = compiled_here(recipe())
    monkeypatch.setitem(MEMORY_GIB, "v5e", (step.peak - 1) / 2**30)
    assert not step.fits and not step.error


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="must be a multiple of mesh"):
        compile_step(recipe(gradient_accumulation=3), SMALL, ROWS, Here("v5e", (1, 1)))
    with pytest.raises(InputError, match=re.escape("does not fit 1 device(s)")):
        compile_step(recipe(mesh=MeshConfig(tensor=2)), SMALL, ROWS, Here("v5e", (1, 1)))


@pytest.fixture(scope="module")
def data_dir(shared_data, tmp_path_factory):
    """A data set of forty real conversations."""
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    rows = [row for _, row in read_rows(shared_data / "eval" / "mit-restaurant.json")][:40]
    directory = tmp_path_factory.mktemp("data")
    build([Example(row["id"], *encode_conversation(row, tokenizer)) for row in rows], tokenizer, directory, "forty", {})
    return directory


def with_data(data_dir, name="forty") -> TrainConfig:
    return dataclasses.replace(recipe(), data=DataConfig(str(data_dir), name, batch_size=4, row_length=512))


def test_the_planned_batch_is_the_one_that_is_fed(data_dir):
    config = with_data(data_dir)
    rows = PackedRows(data_dir, "forty", 512)
    planned = abstract_batch(config, rows_of(config), make_mesh(1, 1, 1, jax.devices()[:1]))
    fed = {name: np.stack([x] * 4) for name, x in rows[0].items()}
    assert {name: (x.shape, x.dtype) for name, x in planned.items()} == {
        name: (x.shape, x.dtype) for name, x in fed.items()
    }


def test_the_data_set_is_counted_where_there_is_one(data_dir):
    found = rows_of(with_data(data_dir))
    assert found.count == len(PackedRows(data_dir, "forty", 512)) and found.vocab_size == 512
    absent = rows_of(with_data(data_dir, "fifty"))
    assert (absent.count, absent.answers_per_row, absent.segments_per_row) == (None, 128, 8)
    described = plan.describe(with_data(data_dir), SMALL, found)
    assert f"; {-(-found.count // 4)} steps an epoch" in described and "assumed" not in described
    described = plan.describe(with_data(data_dir, "fifty"), SMALL, absent)
    assert "epoch" not in described and "assumed" in described and "fifty is not here" in described


# ---- the architecture


def test_the_recipes_architecture_stands_in_for_weights_that_are_not_here(tmp_path):
    missing = ModelConfig(source=str(tmp_path / "no"), architecture=SMALL)
    assert architecture_of(dataclasses.replace(recipe(), model=missing), ROWS) == SMALL
    unknown = dataclasses.replace(recipe(), model=dataclasses.replace(missing, architecture=ModelConfig().architecture))
    with pytest.raises(InputError, match="no such model here"):
        architecture_of(unknown, ROWS)


def test_weights_that_are_here_come_before_the_recipe(smollm2_path):
    model = ModelConfig(source=str(smollm2_path), architecture=SMALL)
    assert architecture_of(dataclasses.replace(recipe(), model=model), ROWS).hidden_size == 576


def test_a_vocabulary_is_needed():
    config = dataclasses.replace(recipe(), model=ModelConfig())
    with pytest.raises(InputError, match="vocab-size"):
        architecture_of(config, ROWS)
    assert architecture_of(config, dataclasses.replace(ROWS, vocab_size=77)).vocab_size == 77


# ---- what is tried


def imagined(peak_gib):
    """A compiler that only calculates, and what it was asked."""
    asked = []

    def compile(config, architecture, rows, topology) -> Compiled:
        asked.append(config)
        parts = topology.count // config.mesh.tensor * config.gradient_accumulation
        if config.data.batch_size % parts:
            raise InputError("data.batch_size must be a multiple")
        mesh = {"data": 1, "fsdp": topology.count // config.mesh.tensor, "tensor": config.mesh.tensor}
        size = int(peak_gib(config) * 2**30)
        return Compiled(topology, mesh, 1, "reference", size // 4, size // 2, 0, size, size // 8, donated=True)

    return compile, asked


def the_plan(config, peak_gib, shape=(4, 4)):
    compile, asked = imagined(peak_gib)
    (found,) = make_plans(config, SMALL, ROWS, [Imagined("v5e", shape)], compile)
    return found, asked


def test_nothing_is_tried_where_the_recipe_fits():
    found, asked = the_plan(recipe(batch_size=16), lambda config: 15.0)
    assert found.compiled.fits and found.trials == () and len(asked) == 1


def test_each_saving_is_tried_by_itself():
    start = recipe(batch_size=64, remat="none")
    found, asked = the_plan(start, lambda config: 20 - 5 * (config.model.remat == "full"))
    assert {trial.settings: trial.fits for trial in found.trials} == {
        "--model.remat full": True,
        "--gradient-accumulation 4": False,
        "--dtype bfloat16": False,
        "--optimizer.first-moment-dtype bfloat16": False,
    }
    assert_shown_is_compiled(start, found, asked)


def assert_shown_is_compiled(start, found, asked):
    for trial, config in zip(found.trials, asked[1:], strict=True):
        assert train.read_config(start, "x", trial.settings.split()) == config
        # no plan changes how much a step learns from.
        assert config.data == start.data


@pytest.mark.parametrize("remat", ["full", "offload", "dots"])
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=8)])
def test_together_and_then_cut_by_tensor(remat, mesh):
    def peak(config):
        return 30 - 2 * (config.dtype == config.optimizer.first_moment_dtype) - 7 * (config.mesh.tensor - 1)

    start = recipe(batch_size=64, remat=remat, mesh=mesh)
    found, asked = the_plan(start, peak)
    assert [trial.fits for trial in found.trials][-3:] == [False, False, True]
    assert found.trials[-1].settings.endswith("--mesh.data 1 --mesh.fsdp -1 --mesh.tensor 4")
    assert "--gradient-accumulation 16" in found.trials[-1].settings
    assert {config.model.remat for config in asked} == {remat} | ({"full"} if remat == "dots" else set())
    assert_shown_is_compiled(start, found, asked)


def test_a_recipe_of_another_slice_is_tried_with_a_row_a_device():
    start = recipe(batch_size=64, gradient_accumulation=16)
    found, asked = the_plan(start, lambda config: 1.0, (8, 8))
    assert found.compiled is None and "multiple" in found.refusal
    assert [(trial.settings, trial.fits) for trial in found.trials] == [("--gradient-accumulation 1", True)]
    assert_shown_is_compiled(start, found, asked)
    assert plan.table([found]) == [list(plan.COLUMNS)]
    assert "refused" in plan.details(found) and "--gradient-accumulation 1: fits, peak 1.00 GiB" in plan.details(found)


def test_more_devices_than_rows():
    start = recipe(batch_size=8)
    found, asked = the_plan(start, lambda config: 1.0)
    (trial,) = found.trials
    assert trial.settings == "--mesh.data 1 --mesh.fsdp -1 --mesh.tensor 2 --gradient-accumulation 1" and trial.fits
    assert_shown_is_compiled(start, found, asked)


def test_the_table_adds_up():
    found, _ = the_plan(recipe(batch_size=16), lambda config: 8.0)
    line = dict(zip(plan.COLUMNS, plan.table([found])[1], strict=True))
    parts = ("parameters", "optimizer", "batch", "activations", "temporary")
    assert sum(float(line[part]) for part in parts) == float(line["peak"]) == 8.0
    assert (line["fits"], line["topology"], line["mesh"], line["limit"]) == ("yes", "v5e:4x4", "1 x 16 x 1", "15.75")
    header, row = plan.aligned(plan.table([found])).splitlines()
    assert header.index("fits") == row.index("yes") and not row.endswith(" ")


def test_what_is_wrong_is_seen():
    found, _ = the_plan(recipe(batch_size=16), lambda config: 8.0)
    bad = dataclasses.replace(found.compiled, kernel="splash", donated=False, rematerialised=True)
    line = dict(zip(plan.COLUMNS, plan.table([dataclasses.replace(found, compiled=bad)])[1], strict=True))
    assert "not in the program" in line["attention"] and line["donated"] == "not all!"
    assert "rematerialisation" in plan.details(dataclasses.replace(found, compiled=bad))
    refused = dataclasses.replace(found.compiled, error="Ran out of memory", peak=30 * 2**30)
    line = dict(zip(plan.COLUMNS, plan.table([dataclasses.replace(found, compiled=refused)])[1], strict=True))
    assert (line["fits"], line["peak"], line["temporary"]) == ("no", "over 30.00", "-")


# ---- the command


def leave(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, list(map(str, arguments)))
    return exit.value.code, *capsys.readouterr()


def test_overrides_reach_the_plan(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(plan, "print_plan", lambda *arguments: seen.append(arguments))
    arguments = ["plan", ROOT / "configs" / "tiny.py", "--topology", "v5e-16,h100x8", "--data.batch-size", "32"]
    code, _, error = leave([*arguments, "--model.remat", "dots"], capsys)
    assert (code, error) == (0, "")
    ((config, topologies),) = seen
    assert (config.data.batch_size, config.model.remat, config.steps) == (32, "dots", 20)
    assert [topology.name for topology in topologies] == ["v5e:4x4", "h100x8"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan"], 2, "CONFIG.py"),
        (["plan", "configs/tiny.py"], 2, "topology"),
        (["plan", "configs/tiny.py", "--topology", "v5e-16", "--no-such-field", "1"], 2, "no-such-field"),
        (["plan", "configs/tiny.py", "--topology", "v5e-16", "--data.batch-size", "many"], 2, "batch-size"),
        (["plan", "configs/none.py", "--topology", "v5e-16"], 1, "no such recipe"),
        (["plan", "configs/tiny.py", "--topology", "v5e-17"], 1, "v5e-16"),
    ],
)
def test_wrong_arguments(arguments, code, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    found, out, error = leave(arguments, capsys)
    assert (found, out) == (code, "") and words in error and "Traceback" not in error


@pytest.mark.parametrize("topology", ["v5e:2x4", "h100x8"])
def test_without_the_extra_it_says_so(topology):
    # whoever runs this with the compilers installed has none either.
    hidden = "import sys; sys.modules.update(libtpu=None, jax_plugins=None); import importlib.metadata as m; "
    hidden += "m.entry_points = lambda **_: (); from uner_jax.cli import main; main()"
    command = [sys.executable, "-c", hidden, "plan", "configs/uniner_7b_type.py", "--topology", topology]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and f"error: compiling for {topology} needs the extra plan" in ended.stderr


# ---- recipes


@pytest.mark.parametrize("path", SLICE_RECIPES, ids=lambda path: path.stem)
def test_a_recipe_for_a_slice_names_it_and_deals_its_batch_out(path):
    config = train.load_recipe(str(path))
    (name,) = re.findall(r"^Hardware: ([\w:]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    topology = parse_topology(name)
    devices = int(np.prod(topology.shape))
    assert config.data.batch_size % (devices // config.mesh.tensor * config.gradient_accumulation) == 0
    assert config.model.architecture.vocab_size and config.model.source and config.dtype == "bfloat16"


# What the model cards say: 6.74, 13.02, 68.98 and 8.03 billion parameters.
PUBLISHED = {
    "LLAMA_7B": 6_738_415_616,
    "LLAMA_13B": 13_015_864_320,
    "LLAMA2_7B": 6_738_415_616,
    "LLAMA2_70B": 68_976_648_192,
    "LLAMA3_8B": 8_030_261_248,
}


def test_the_published_sizes():
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(abstract_model(getattr(llamas, name)))) for name in PUBLISHED
    }
    assert counts == PUBLISHED
