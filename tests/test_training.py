"""A run does what its recipe says: its loss, its optimizer, its mesh, its files, and its refusals."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds

import train
from uner_jax.command import run_command
from uner_jax.data.batches import PackedRows
from uner_jax.data.builder import Example, build, dataset_directory
from uner_jax.mesh import make_mesh
from uner_jax.model import attention
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.kernels import Attention
from uner_jax.model.parameters import abstract_model, flatten, parameter_axes
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training import loop
from uner_jax.training import step as step_module
from uner_jax.training.ahead import compile_ahead
from uner_jax.training.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from uner_jax.training.optimizer import make_optimizer, make_schedule
from uner_jax.training.step import TrainState, make_step
from uner_jax.weights.checkpoint import config_of, read_metadata

tfds.disable_progress_bar()

# B rows, T tokens, V vocabulary

ROOT = Path(__file__).parent.parent
ROW_LENGTH = 176
ROWS = 24
FEW = 4
ARCHITECTURE = LlamaConfig(
    vocab_size=0,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SHAPES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]


@pytest.fixture(scope="module", autouse=True)
def short_rows(quick_compilation):
    """Rows as short as these are one block of queries: smaller programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", 2 * ROW_LENGTH)
        yield


def strict_make_optimizer(config, steps):
    """The optimizer, under which only optax's own arithmetic, which is not strict about dtypes, may promote them."""
    optimizer = make_optimizer(config, steps)

    def update(*args):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(*args)

    return optax.GradientTransformation(optimizer.init, update)


@pytest.fixture(scope="module", autouse=True)
def strict_dtypes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", strict_make_optimizer)
        yield


@pytest.fixture(scope="module")
def examples(shared_data):
    """Short real conversations of one question, so that a row holds one of them."""
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    conversations = {}
    for _, row in read_rows(shared_data / "eval" / "mit-restaurant.json"):
        passage, answer = row["conversations"][0]["value"], row["conversations"][3]["value"]
        if len(passage) >= 24 and answer != "[]":
            conversations.setdefault(passage, row)
    shortest = sorted(conversations, key=len)[: ROWS + FEW]
    rows = [conversations[passage] for passage in shortest]
    return tokenizer, [Example(row["id"], *encode_conversation(row, tokenizer)) for row in rows]


@pytest.fixture(scope="module")
def data_dir(examples, tmp_path_factory):
    tokenizer, rows = examples
    directory = tmp_path_factory.mktemp("data")
    build(rows[:ROWS], tokenizer, directory, "restaurant", {})
    build(rows[ROWS:], tokenizer, directory, "few", {})
    # the same name in another directory holds something else.
    shutil.copytree(dataset_directory(directory, "few"), dataset_directory(directory / "other", "restaurant"))
    return directory


@pytest.fixture(scope="module")
def recipe(data_dir, tmp_path_factory):
    """An epoch: six steps of four rows."""
    return TrainConfig(
        run_dir=str(tmp_path_factory.mktemp("runs") / "base"),
        epochs=1.0,
        model=ModelConfig(architecture=ARCHITECTURE),
        data=DataConfig(dir=str(data_dir), name="restaurant", batch_size=4, row_length=ROW_LENGTH),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.34),
        checkpoint=CheckpointConfig(every=2, keep=2),
    )


def changed(config, **fields):
    """The config with other values of fields of it and of its parts: `data__name="few"`."""
    for name, value in fields.items():
        first, _, rest = name.partition("__")
        config = dataclasses.replace(
            config, **{first: changed(getattr(config, first), **{rest: value}) if rest else value}
        )
    return config


class Seen(NamedTuple):
    """What a run shows to the outside."""

    rows: list[dict]
    losses: list[float]
    rates: list[float]
    checkpoints: set[int]
    memory: int  # bytes of a step beside its arguments


def quick_loss(model, batch):
    """Stands in for the model where what is asked lies outside of it: it depends on parameters and batch."""
    chosen_BAD = jnp.take(model.embedding[...], batch["answer_targets"], axis=0)
    return jnp.sum(jnp.sum(jnp.cos(20 * chosen_BAD), axis=-1) * batch["answer_weights"])


def observed_run(config, quick=False) -> Seen:
    """Run a recipe, and see what comes of it; `quick` with another loss than the model's."""
    memory = []

    def compile_measured(*args):
        compiled = compile_ahead(*args)
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        return compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_ahead", compile_measured)
        if quick:
            patch.setattr(step_module, "answer_loss_sum", quick_loss)
        loop.train(config)
    rows = metrics_of(config.run_dir)
    return Seen(
        rows,
        [row["loss"] for row in rows],
        [row["learning_rate"] for row in rows],
        {int(path.name) for path in Path(config.run_dir, "checkpoints").iterdir()},
        *memory,
    )


def metrics_of(run_dir):
    return [row for _, row in read_rows(Path(run_dir, "metrics.jsonl"))]


@pytest.fixture(scope="module")
def base(recipe):
    return observed_run(recipe)


@pytest.fixture(scope="module")
def quick_base(recipe):
    return observed_run(changed(recipe, run_dir=recipe.run_dir + "_quick"), quick=True)


def leave(arguments, capsys):
    """Exit status and standard error of train.py."""
    with pytest.raises(SystemExit) as exit:
        run_command(train.main, [str(argument) for argument in arguments])
    return exit.value.code, capsys.readouterr().err


# ---- meshes: eight simulated devices, in a process that works while the tests below run

MESHES = """
import dataclasses, json, shutil, sys
from pathlib import Path
import jax
from uner_jax.model import attention
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import flatten
from uner_jax.training import config as c, loop
assert jax.device_count() == 8
data_dir, row_length, output, architecture, shapes = sys.argv[1:]
recipe = c.TrainConfig(
    steps=20, model=c.ModelConfig(architecture=LlamaConfig(**json.loads(architecture))),
    data=c.DataConfig(dir=data_dir, name="restaurant", batch_size=8, row_length=int(row_length)),
    optimizer=c.OptimizerConfig(learning_rate=3e-3), checkpoint=c.CheckpointConfig(every=10, keep=2),
)
attention.BLOCK = 512
last, compile_ahead = {}, loop.compile_ahead

def watched(*args):
    step = compile_ahead(*args)
    def run(state, batch):
        last["state"], metrics = step(state, batch)
        last["batch"] = batch
        return last["state"], metrics
    return run

def cut(tree):
    return {name: (x.shape, x.addressable_shards[0].data.shape) for name, x in flatten(tree).items()}

def run(name, shape):
    run_dir = Path(output, name)
    mesh = c.MeshConfig(*shape)
    loop.train(dataclasses.replace(recipe, run_dir=str(run_dir), mesh=mesh))
    losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    state = last["state"]
    found = {"losses": losses, "batch": cut(last["batch"]), "model": cut(state.model),
             "moments": [cut(state.optimizer[1][0].mu), cut(state.optimizer[1][0].nu)]}
    Path(output, name + ".json").write_text(json.dumps(found))

loop.compile_ahead = watched
for shape in json.loads(shapes):
    run("x".join(map(str, shape)), shape)
# a checkpoint that was written on one mesh goes on upon another.
shutil.copytree(Path(output, "1x2x4"), Path(output, "resumed"))
shutil.rmtree(Path(output, "resumed", "checkpoints", "20"))
run("resumed", (4, 2, 1))
"""


@pytest.fixture(scope="module", autouse=True)
def mesh_process(request, data_dir, tmp_path_factory):
    if not any("every_mesh" in item.name for item in request.session.items):
        yield None
        return
    output = tmp_path_factory.mktemp("meshes")
    architecture = json.dumps(dataclasses.asdict(ARCHITECTURE))
    arguments = [str(data_dir), str(ROW_LENGTH), str(output), architecture, json.dumps(SHAPES)]
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    with (
        (output / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", MESHES, *arguments], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
        ) as process,
    ):
        yield process, output
        process.kill()


# ---- schedule and optimizer


@pytest.mark.parametrize("ratio", [0.0, 0.04, 0.25, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_follows_its_formula(schedule, ratio):
    peak, steps = 2e-5, 200
    rate = make_schedule(OptimizerConfig(learning_rate=peak, warmup_ratio=ratio, schedule=schedule), steps)
    warmup = round(ratio * steps)
    assert warmup == ratio * steps
    falls = {
        "cosine": lambda part: 0.5 * (1 + math.cos(math.pi * part)),
        "linear": lambda part: 1 - part,
        "constant": lambda part: 1.0,
    }
    for step in range(steps):
        expected = peak * (step / warmup if step < warmup else falls[schedule]((step - warmup) / (steps - warmup)))
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-12), step
    if ratio < 1:
        assert float(rate(warmup)) == pytest.approx(peak, rel=1e-6)
        assert float(rate(steps)) == pytest.approx(peak if schedule == "constant" else 0.0, abs=1e-12)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_optimizer_is_adamw(weight_decay, clip_norm):
    config = OptimizerConfig(1e-2, warmup_ratio=0.0, weight_decay=weight_decay, clip_norm=clip_norm)
    optimizer, rate = strict_make_optimizer(config, 10), make_schedule(config, 10)
    random = np.random.default_rng(0)
    ours = {"a": random.normal(size=(3, 4)).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
    by_hand = {name: x.astype(np.float64) for name, x in ours.items()}
    first, second = ({name: np.zeros(x.shape) for name, x in by_hand.items()} for _ in range(2))
    state = optimizer.init(ours)
    for step in range(1, 4):
        gradients = {name: random.normal(size=x.shape).astype(np.float32) for name, x in ours.items()}
        updates, state = optimizer.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
        assert 1.0 < norm < 100.0
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for name, gradient in gradients.items():
            g = gradient.astype(np.float64) * scale
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            direction = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            by_hand[name] -= float(rate(step - 1)) * (direction + weight_decay * by_hand[name])
        for name in ours:
            np.testing.assert_allclose(ours[name], by_hand[name], rtol=2e-5, atol=1e-7)


# ---- the step


@pytest.fixture(scope="module")
def batch(data_dir):
    """Eight rows whose microbatches hold very different numbers of answers, however they are split."""
    packed = PackedRows(data_dir, "restaurant", ROW_LENGTH)
    rows = [packed[number] for number in range(8)]
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    kept = np.random.default_rng(0).random(stacked["answer_weights"].shape) < np.array([[0.1], [1], [0.3], [0.6]] * 2)
    stacked["answer_weights"] = stacked["answer_weights"] * kept.astype(np.float32)
    counts = stacked["answer_weights"].sum(axis=1)
    assert all(max(x) > 2 * min(x) > 0 for parts in (2, 4) if (x := [counts[k::parts].sum() for k in range(parts)]))
    return stacked


def fresh_state(optimizer):
    """A state that does not depend on anything; the parameters are not small, so that gradients are not."""
    random = np.random.default_rng(0)
    config = dataclasses.replace(ARCHITECTURE, vocab_size=512)
    model = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.2, x.shape), jnp.float32), abstract_model(config))
    return TrainState(model, jax.jit(optimizer.init)(model))


@pytest.fixture(scope="module")
def stepped(batch):
    """The program of a step, its result and its argument afterwards, for each number of microbatches."""
    optimizer = strict_make_optimizer(OptimizerConfig(1e-3, warmup_ratio=0.0), 10)
    results, mesh = {}, make_mesh()
    with jax.set_mesh(mesh):
        for accumulation in (1, 2, 4):
            state = fresh_state(optimizer)
            program = make_step(optimizer, accumulation, mesh, state).lower(state, batch).compile()
            results[accumulation] = program, *program(state, batch), state
    return results


def test_loss_is_the_mean_over_the_answer_tokens_of_the_whole_step(stepped, batch):
    model = fresh_state(optax.identity()).model
    logits_BTV = jax.jit(lambda *x: model(*x))(batch["tokens"], batch["positions"], batch["segment_ids"])
    logits_BTV = np.asarray(logits_BTV, np.float64)
    losses = []
    for row, place in zip(*np.nonzero(batch["answer_weights"]), strict=True):
        logits_V = logits_BTV[row, batch["answer_index"][row, place]]
        target = batch["tokens"][row, batch["answer_index"][row, place] + 1]
        losses.append(np.log(np.sum(np.exp(logits_V - logits_V.max()))) + logits_V.max() - logits_V[target])
    for _, _, measured, _ in stepped.values():
        assert float(measured.loss) == pytest.approx(np.mean(losses), rel=1e-5)
        assert int(measured.answer_tokens) == len(losses)
        assert int(measured.tokens) == np.sum(batch["segment_ids"] > 0)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_changes_nothing(accumulation, stepped):
    _, expected, expected_measured, _ = stepped[1]
    _, found, measured, _ = stepped[accumulation]
    assert [float(x) for x in measured] == pytest.approx([float(x) for x in expected_measured], rel=1e-5)
    expected_leaves, leaves = flatten(expected), flatten(found)
    assert leaves.keys() == expected_leaves.keys()
    for name, leaf in leaves.items():
        # the first moments are a tenth of the gradients: they are compared too.
        scale = max(1e-30, float(np.abs(expected_leaves[name]).max()))
        np.testing.assert_allclose(leaf, expected_leaves[name], rtol=0, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_takes_over_the_memory_of_its_state(accumulation, stepped):
    program, new, _, old = stepped[accumulation]
    size = sum(x.nbytes for x in jax.tree.leaves(new))
    assert program.memory_analysis().alias_size_in_bytes >= 0.95 * size
    assert all(x.is_deleted() for x in jax.tree.leaves(old))


def test_no_answer_in_a_batch_leaves_the_parameters_as_they_are(stepped, batch):
    optimizer = strict_make_optimizer(OptimizerConfig(1e-3, warmup_ratio=0.0), 10)
    before = flatten(fresh_state(optimizer).model)
    silent = batch | {"answer_weights": np.zeros_like(batch["answer_weights"])}
    after, measured = stepped[1][0](fresh_state(optimizer), silent)
    assert (float(measured.loss), float(measured.answer_tokens), float(measured.grad_norm)) == (0, 0, 0)
    assert all(np.array_equal(leaf, before[name]) for name, leaf in flatten(after.model).items())


# ---- every field of the recipe changes something

# another value for every field, and what it must change; a new field fails the tests until it stands here.
OTHER = {
    "run_dir": (None, "files"),  # see its own test
    "seed": (1, "losses"),
    "steps": (4, "steps"),
    "epochs": (0.5, "steps"),
    "dtype": ("bfloat16", "losses"),
    "gradient_accumulation": (2, "memory"),
    "max_bad_steps": (None, "error"),  # see test_survival.py
    "allow_drift": (None, "error"),
    "model.source": (None, "losses"),  # a checkpoint of the base
    "model.remat": ("none", "memory"),
    "model.strict_kernels": (None, "error"),
    # they need a model to adapt: see test_adapters.py
    "adapter.rank": (4, "adapter"),
    "adapter.alpha": (8.0, "adapter"),
    "adapter.dropout": (0.1, "adapter"),
    "adapter.targets": (("q_proj",), "adapter"),
    "adapter.base": ("nf4", "adapter"),
    "data.dir": ("other", "losses"),
    "data.name": ("few", "losses"),
    "data.batch_size": (8, "losses"),
    "data.row_length": (2 * ROW_LENGTH, "losses"),
    "optimizer.learning_rate": (1e-3, "rates"),
    "optimizer.warmup_ratio": (0.0, "rates"),
    "optimizer.schedule": ("linear", "rates"),
    "optimizer.weight_decay": (1.0, "losses"),
    "optimizer.first_moment_dtype": ("bfloat16", "losses"),
    "optimizer.clip_norm": (1e-9, "losses"),
    "mesh.data": (None, "error"),
    "mesh.fsdp": (None, "error"),
    "mesh.tensor": (None, "error"),
    "checkpoint.every": (3, "checkpoints"),
    "checkpoint.keep": (1, "checkpoints"),
    # what they do is seen in test_run.py
    "evaluation.data": ("few", "measures"),
    "evaluation.questions": ("questions.json", "measures"),
    "evaluation.sample": (7, "measures"),
    "evaluation.every": (3, "measures"),
    "evaluation.max_new_tokens": (7, "measures"),
    "profile": ("2:3", "files"),
    "wandb": ("project", "files"),
    "export": ("directory", "files"),
}
# that each of these changes what the model computes is shown in test_model.py; here, that they reach the model.
OTHER_ARCHITECTURE = LlamaConfig(
    vocab_size=520,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=6,
    max_position_embeddings=300,
    rms_norm_eps=1e-3,
    rope_theta=100.0,
    rope_scaling=RopeScaling("llama3", 4.0, 2.0, 8.0, 128),
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
    family="qwen3",
    sliding_window=280,
    layers_without_rope=(0,),
)


def leaf_fields(config, prefix=""):
    """The dotted names of all fields of a config and of its parts."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaf_fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_field_has_another_value():
    fields = {name for name in leaf_fields(TrainConfig()) if not name.startswith("model.architecture.")}
    assert fields == OTHER.keys()
    plain = LlamaConfig(**dataclasses.asdict(ARCHITECTURE))
    for name in (field.name for field in dataclasses.fields(LlamaConfig)):
        assert getattr(plain, name) != getattr(OTHER_ARCHITECTURE, name), name
    for field in dataclasses.fields(RopeScaling):
        if field.default is not dataclasses.MISSING:
            assert getattr(OTHER_ARCHITECTURE.rope_scaling, field.name) != field.default, field.name


ELSEWHERE = ("files", "error", "adapter", "measures")
INSIDE_THE_MODEL = ("dtype", "gradient_accumulation", "model.remat")


@pytest.mark.parametrize("field", [name for name in OTHER if OTHER[name][1] not in ELSEWHERE])
def test_every_field_changes_what_a_run_does(field, recipe, base, quick_base, tmp_path):
    value, effect = OTHER[field]
    if field == "model.source":
        value = str(Path(recipe.run_dir, "checkpoints", "6"))
    elif field == "data.dir":
        value = str(Path(recipe.data.dir, value))
    quick = field not in INSIDE_THE_MODEL
    before = quick_base if quick else base
    after = observed_run(changed(recipe, run_dir=str(tmp_path), **{field.replace(".", "__"): value}), quick)
    if effect == "losses":
        found = after.losses[: len(before.losses)]
        assert found != pytest.approx(before.losses[: len(found)], rel=1e-5)
    elif effect == "steps":
        assert len(after.rows) == (4 if field == "steps" else 3) < len(before.rows) == 6
    elif effect == "rates":
        assert after.rates != pytest.approx(before.rates, rel=1e-3) and after.losses != before.losses
    elif effect == "checkpoints":
        assert before.checkpoints == {4, 6}
        assert after.checkpoints == ({3, 6} if field == "checkpoint.every" else {6})
        assert after.losses == before.losses
    else:
        # another number of activations is kept at once; what is computed is the same.
        assert abs(after.memory - before.memory) > 0.3 * before.memory
        assert (after.memory < before.memory) == (field == "gradient_accumulation")
        assert after.losses == pytest.approx(before.losses, rel=1e-4)


def test_run_dir_is_where_the_files_are(recipe, base):
    names = {path.name for path in Path(recipe.run_dir).iterdir()}
    (events,) = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "loss.png", "checkpoints", events}
    assert Path(recipe.run_dir, events).stat().st_size > 1000


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_a_mesh_that_does_not_fit_the_devices(axis, recipe, tmp_path):
    # what the sizes do where they fit is seen on eight devices, below.
    size = jax.device_count() + 1
    with pytest.raises(InputError, match=rf"mesh .*{axis}={size} .*does not fit {jax.device_count()} device"):
        loop.train(changed(recipe, run_dir=str(tmp_path), **{f"mesh__{axis}": size}))
    assert not list(tmp_path.iterdir())


def test_every_field_of_the_architecture_reaches_the_model(recipe, tmp_path):
    run_dir = tmp_path / "run"
    other = changed(recipe, run_dir=str(run_dir), steps=1, model__architecture=OTHER_ARCHITECTURE)
    loop.train(other)
    assert config_of(read_metadata(run_dir / "checkpoints" / "1")) == OTHER_ARCHITECTURE
    # and 0 takes the tokenizer's.
    base = config_of(read_metadata(Path(recipe.run_dir, "checkpoints", "6")))
    assert base == dataclasses.replace(ARCHITECTURE, vocab_size=512)


# ---- the record of a run


def test_metrics_have_a_row_a_step(base, examples):
    names = ["step", "loss", "answer_tokens", "tokens", "learning_rate", "grad_norm", "skipped", "packing", "seconds"]
    names += ["tokens_per_second", "answer_tokens_per_second"]
    assert all(list(row) == names for row in base.rows)
    assert [row["step"] for row in base.rows] == [1, 2, 3, 4, 5, 6]
    rows = examples[1][:ROWS]
    # an epoch sees every conversation once.
    assert sum(row["answer_tokens"] for row in base.rows) == sum(sum(row.loss_mask) for row in rows)
    assert sum(row["tokens"] for row in base.rows) == sum(len(row.tokens) for row in rows)
    assert len({row["answer_tokens"] for row in base.rows}) > 1
    assert all(row["seconds"] > 0 and row["grad_norm"] > 0 for row in base.rows)
    warm = [0, 0.5, 1, *(0.5 * (1 + math.cos(math.pi * part / 4)) for part in (1, 2, 3))]
    assert base.rates == pytest.approx([3e-3 * part for part in warm], rel=1e-5, abs=1e-12)


def test_config_json_is_the_resolved_recipe(recipe, base):
    written = json.loads(Path(recipe.run_dir, "config.json").read_text())
    versions = written.pop("versions")
    assert written == json.loads(json.dumps(dataclasses.asdict(recipe)))  # whose tuples are lists
    assert versions == {"jax": jax.__version__, "python": sys.version.split()[0]}


def test_few_rows_are_learnt_by_heart(recipe, tmp_path):
    few = changed(recipe, run_dir=str(tmp_path), steps=40, data__name="few", checkpoint__every=40)
    losses = observed_run(changed(few, optimizer__learning_rate=1e-2, optimizer__warmup_ratio=0.1)).losses
    assert losses[0] == pytest.approx(math.log(512), rel=0.05)
    assert losses[-1] < 0.25 * losses[0] and min(losses) == min(losses[-5:])


def snapshot(directory):
    files = [path for path in sorted(Path(directory).rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_complete_run_says_so_and_changes_nothing(recipe, base, capsys):
    before = snapshot(recipe.run_dir)
    for config in (recipe, changed(recipe, steps=2, checkpoint__keep=1)):
        loop.train(config)
        assert f"{recipe.run_dir}: already complete at step 6\n" in capsys.readouterr().err
        assert snapshot(recipe.run_dir) == before


# ---- refusals


@pytest.fixture(scope="module")
def recipe_file(recipe, tmp_path_factory):
    """A file whose `config()` is the base recipe."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.py"
    imports = "from uner_jax.model.config import *\nfrom uner_jax.training.config import *\n"
    path.write_text(f"{imports}def config():\n    return {recipe!r}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.batch-size", "3", "--gradient-accumulation", "2"], "data.batch_size 3 must be a multiple of "
         "mesh.data x mesh.fsdp x gradient_accumulation"),
        (["--data.name", "none"], "none/1.0.0: no data set here; build it with python -m data_prep.tfrecords"),
        (["--data.row-length", "100"], "24 conversation(s) are longer than data.row_length 100"),
        (["--mesh.tensor", "3"], "does not fit"),
        (["--model.source", "nowhere"], "nowhere: expected a directory with tokenizer.json"),
        (["--model.architecture.vocab-size", "511"], "the model has 511 ids, its tokenizer 512"),
        (["--model.architecture.max-position-embeddings", "175"], "data.row_length 176 exceeds the model's "
         "max_position_embeddings 175"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(flags, words, recipe_file, tmp_path, capsys):
    code, err = leave([recipe_file, "--run-dir", tmp_path / "run", *flags], capsys)
    assert code == 1 and words in err and err.startswith("error: ") and err.count("\n") == 1
    # what has not begun can be mended: nothing of it stays.
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--steps", "0", "steps must be at least 1, found 0"),
        ("--seed", "-1", "seed must be at least 0, found -1"),
        ("--epochs", "0", "epochs must be greater than 0, found 0.0"),
        ("--epochs", "nan", "epochs must be greater than 0, found nan"),
        ("--gradient-accumulation", "-2", "gradient_accumulation must be at least 1, found -2"),
        ("--data.batch-size", "0", "data.batch_size must be at least 1, found 0"),
        ("--data.row-length", "-5", "data.row_length must be at least 2, found -5"),
        ("--checkpoint.every", "0", "checkpoint.every must be at least 1, found 0"),
        ("--checkpoint.keep", "-1", "checkpoint.keep must be at least 1, found -1"),
        ("--optimizer.learning-rate", "-1e-3", "optimizer.learning_rate must be at least 0, found -0.001"),
        ("--optimizer.learning-rate", "nan", "optimizer.learning_rate must be at least 0, found nan"),
        ("--optimizer.weight-decay", "-0.1", "optimizer.weight_decay must be at least 0, found -0.1"),
        ("--optimizer.clip-norm", "-1", "optimizer.clip_norm must be at least 0, found -1"),
        ("--optimizer.warmup-ratio", "1.5", "optimizer.warmup_ratio must be in 0..1, found 1.5"),
        ("--optimizer.schedule", "step", "step"),
        ("--dtype", "float16", "float16"),
        ("--no-such-field", "1", "no-such-field"),
    ],
)
def test_a_wrong_value_is_refused(flag, value, words, recipe_file, tmp_path, capsys):
    code, err = leave([recipe_file, "--run-dir", tmp_path / "run", flag, value], capsys)
    assert code in (1, 2)
    assert words in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_recipe_is_refused(tmp_path, capsys):
    missing = tmp_path / "none.py"
    assert leave([missing], capsys) == (1, f"error: {missing}: no such recipe; see configs/\n")
    path = tmp_path / "empty.py"
    for text in ("", "config = 3\n", "def config():\n    return {}\n"):
        path.write_text(text)
        message = f"error: {path}: must define a function config() that returns a TrainConfig\n"
        assert leave([path], capsys) == (1, message)
    code, err = leave([], capsys)
    assert code == 2 and "python train.py CONFIG.py" in err


def test_a_model_with_another_tokenizer_is_refused(recipe_file, llama_tokenizer_path, tmp_path, capsys):
    code, err = leave([recipe_file, "--run-dir", tmp_path / "run", "--model.source", llama_tokenizer_path], capsys)
    assert code == 1 and err.startswith("error: the data set restaurant in ") and err.count("\n") == 1
    assert f"has another tokenizer than {llama_tokenizer_path}; build it with --tokenizer {llama_tokenizer_path}" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optimizer.learning-rate", "0.5"], "optimizer.learning_rate 0.003 -> 0.5"),
        (["--seed", "3", "--data.batch-size", "2"], "data.batch_size 4 -> 2; seed 0 -> 3"),
        (["--model.architecture.no-mlp-bias"], None),
    ],
)
def test_a_run_does_not_go_on_with_another_recipe(flags, words, recipe_file, recipe, base, capsys):
    before = snapshot(recipe.run_dir)
    code, err = leave([recipe_file, *flags], capsys)
    assert snapshot(recipe.run_dir) == before
    if words is None:
        assert code == 0 and "already complete" in err
        return
    assert code == 1 and err.count("\n") == 1
    assert f"config.json: this run was begun with another recipe ({words}); give another run_dir" in err


def test_a_rotary_scaling_that_is_gone_is_another_recipe(recipe, base, tmp_path):
    shutil.copytree(recipe.run_dir, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    written["model"]["architecture"]["rope_scaling"] = dataclasses.asdict(RopeScaling("linear", 2.0))
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=r"another recipe .*rope_scaling.factor 2\.0 -> None"):
        loop.train(changed(recipe, run_dir=str(tmp_path / "run"), steps=8))


def test_a_run_does_not_go_on_with_other_data(recipe, base, data_dir, tmp_path):
    # as if the data set had been built anew, of other conversations, under the same name.
    shutil.copytree(recipe.run_dir, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    written["data"]["dir"] = str(data_dir / "other")
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    other = changed(recipe, run_dir=str(tmp_path / "run"), data__dir=str(data_dir / "other"), steps=8)
    with pytest.raises(InputError, match=r"checkpoint 6 of .* was trained on other data \(fingerprint \w+ -> \w+\)"):
        loop.train(other)


def test_a_run_that_made_no_checkpoint_may_be_mended(recipe, tmp_path):
    def out_of_memory(*args):
        raise MemoryError

    config = changed(recipe, run_dir=str(tmp_path), steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", out_of_memory)
        with pytest.raises(MemoryError):
            loop.train(changed(config, data__batch_size=8))
    assert json.loads((tmp_path / "config.json").read_text())["data"]["batch_size"] == 8
    observed_run(config, quick=True)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["batch_size"] == 4
    assert len(metrics_of(tmp_path)) == 2


# ---- recipes and their flags


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_recipe_of_the_project_loads_and_begins_with_its_command(path):
    assert isinstance(train.load_recipe(str(path)), TrainConfig)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f'"""python train.py configs/{path.name}')
    parsed = train.load_recipe(str(path))
    assert dataclasses.replace(parsed) == parsed  # frozen, and its values are allowed


def test_help_lists_every_field(recipe_file, recipe, tmp_path, capsys):
    with_scaling = changed(recipe, model__architecture__rope_scaling=RopeScaling("linear", 2.0))
    path = tmp_path / "scaled.py"
    path.write_text(recipe_file.read_text().replace("rope_scaling=None", "rope_scaling=RopeScaling('linear', 2.0)"))
    assert train.load_recipe(str(path)) == with_scaling
    with pytest.raises(SystemExit) as exit:
        run_command(train.main, [str(path), "--help"])
    assert exit.value.code == 0
    shown = set(capsys.readouterr().out.replace(",", " ").split())
    fields = set(leaf_fields(with_scaling))
    assert len(fields) == len(OTHER) + len(dataclasses.fields(LlamaConfig)) + len(dataclasses.fields(RopeScaling)) - 1
    assert {f"--{name.replace('_', '-')}" for name in fields} <= shown


def test_every_field_is_taken_from_the_command_line(recipe, recipe_file, monkeypatch):
    given = {
        name: value if value is not None else {"str": "x", "int": 7, "bool": True}[type(leaf_of(recipe, name)).__name__]
        for name, (value, _) in OTHER.items()
    }
    taken = []
    monkeypatch.setattr(train, "train", lambda config, score: taken.append(config))
    monkeypatch.setattr(train, "_score", lambda config: None)
    train.main([str(recipe_file), *(word for name, value in given.items() for word in flag(name, value))])
    assert {name: leaf_of(taken[0], name) for name in given} == given
    assert all(leaf_of(recipe, name) != value for name, value in given.items())


def flag(name, value):
    values = {bool: [], tuple: value}.get(type(value), [str(value)])
    return [f"--{name.replace('_', '-')}", *values]


def leaf_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("strict", [False, True])
def test_a_slow_kernel_is_said_or_with_strict_kernels_refused(recipe, tmp_path, monkeypatch, capsys, strict):
    monkeypatch.setattr(
        "uner_jax.training.shapes.choose_attention", lambda *_: (Attention(), "no such thing as a fused one here")
    )
    config = changed(recipe, run_dir=str(tmp_path / "run"), steps=1, model__strict_kernels=strict)
    if strict:
        with pytest.raises(InputError, match=r"model\.strict_kernels: no such thing"):
            loop.train(config)
        return
    loop.train(config)
    shown = capsys.readouterr().err
    assert "the reference, which is slow and takes memory: no such thing" in shown and "attention reference" in shown


# ---- meshes


@pytest.fixture(scope="module")
def meshes(mesh_process):
    """What the runs on eight devices left, by mesh shape; and all that they said."""
    process, output = mesh_process
    code = process.wait(timeout=600)
    log = (output / "log").read_text()
    assert code == 0, log[-3000:]
    return {path.stem: json.loads(path.read_text()) for path in output.glob("*.json")}, log


@pytest.fixture(scope="module")
def one_device_losses(recipe, tmp_path_factory):
    config = changed(recipe, run_dir=str(tmp_path_factory.mktemp("one")), steps=20, data__batch_size=8)
    return observed_run(changed(config, optimizer=OptimizerConfig(learning_rate=3e-3), mesh=MeshConfig())).losses


def test_every_mesh_shape_is_run(meshes):
    assert len(SHAPES) == 10 and all(math.prod(shape) == 8 for shape in SHAPES)
    assert meshes[0].keys() == {"resumed", *("x".join(map(str, shape)) for shape in SHAPES)}
    assert "Involuntary full rematerialization" not in meshes[1]


@pytest.mark.parametrize("name", ["resumed", *("x".join(map(str, shape)) for shape in SHAPES)])
def test_every_mesh_gives_the_losses_of_one_device(name, meshes, one_device_losses):
    assert meshes[0][name]["losses"] == pytest.approx(one_device_losses, rel=1e-4)
    assert len(one_device_losses) == 20 and one_device_losses[-1] < 0.8 * one_device_losses[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_mesh_axis_cuts_what_it_should(shape, meshes):
    data, fsdp, tensor = shape
    found = meshes[0]["x".join(map(str, shape))]
    parts = {"embed": fsdp, **dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), tensor)}
    axes = parameter_axes(abstract_model(dataclasses.replace(ARCHITECTURE, vocab_size=512)))
    for leaves in (found["model"], *found["moments"]):
        assert leaves.keys() == axes.keys()
        for name, (whole, own) in leaves.items():
            cuts = [parts.get(axis, 1) for axis in axes[name]]
            # an axis that does not divide stays whole: two key-value heads on four devices.
            expected = [size // cut if size % cut == 0 else size for size, cut in zip(whole, cuts, strict=True)]
            assert own == expected, name
    for whole, own in found["batch"].values():
        assert own == [8 // (data * fsdp), *whole[1:]] and whole[0] == 8
    size = {kind: sum(map(math.prod, pair)) for kind, pair in sizes(found["model"])}
    assert size["own"] < size["whole"] or data == 8


def sizes(leaves):
    return (("whole", [whole for whole, _ in leaves.values()]), ("own", [own for _, own in leaves.values()]))
