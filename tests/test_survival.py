"""A run survives what befalls it: signals, batches that are not finite, damaged checkpoints, changed recipes."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uner_jax.cli import dispatch
from uner_jax.command import run_command
from uner_jax.data.batches import PackedRows, batches, record_ids
from uner_jax.data.builder import Example, build
from uner_jax.mesh import make_mesh, start_distributed
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training import loop
from uner_jax.training import step as step_module
from uner_jax.training.checkpoint import restore
from uner_jax.training.config import TINY, CheckpointConfig, DataConfig, MeshConfig, ModelConfig, OptimizerConfig
from uner_jax.training.config import TrainConfig as Config
from uner_jax.training.shapes import abstract_state
from uner_jax.weights import load_model
from uner_jax.weights.integrity import digests_of

ROOT = Path(__file__).parent.parent
STEPS = 6
pytestmark = pytest.mark.usefixtures("quick_compilation", "lenient_optimizer")

SMALL = dataclasses.replace(TINY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=4)


@pytest.fixture(scope="module")
def examples(shared_data):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    rows = [row for _, row in itertools.islice(read_rows(shared_data / "eval" / "mit-restaurant.json"), 60)]
    return tokenizer, [Example(row["id"], *encode_conversation(row, tokenizer)) for row in rows]


@pytest.fixture(scope="module")
def recipe(examples, tmp_path_factory):
    tokenizer, rows = examples
    directory = tmp_path_factory.mktemp("survival")
    build(rows[:40], tokenizer, directory / "data", "short", {})
    build(rows[40:], tokenizer, directory / "data", "other", {})
    return Config(
        run_dir=str(directory / "calm"),
        steps=STEPS,
        model=ModelConfig(architecture=SMALL),
        mesh=MeshConfig(1, 1, 1),
        data=DataConfig(dir=str(directory / "data"), name="short", batch_size=2, row_length=256),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.5),
        checkpoint=CheckpointConfig(every=2, keep=2),
    )


@pytest.fixture(scope="module")
def calm(recipe):
    """The directory of a run that nothing disturbs; its checkpoints are 4 and 6."""
    loop.train(recipe)
    return Path(recipe.run_dir)


def rows_of(run_dir):
    """The rows of a run's metrics, without their times."""
    rows = [row for _, row in read_rows(Path(run_dir, "metrics.jsonl"))]
    timed = ("seconds", "tokens_per_second", "answer_tokens_per_second")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def losses_of(rows):
    return [row["loss"] for row in rows]


def saved(run_dir):
    return {path.name for path in Path(run_dir, "checkpoints").iterdir()}


def restored(recipe, run_dir):
    """The newest whole checkpoint of a run, as training reads it."""
    mesh = make_mesh(1, 1, 1)
    with jax.set_mesh(mesh):
        rows = PackedRows(Path(recipe.data.dir), recipe.data.name, recipe.data.row_length)
        tokenizer = loop._matching_tokenizer(recipe)
        optimizer = loop.make_optimizer(recipe.optimizer, STEPS)
        abstract = abstract_state(recipe, loop._architecture(recipe, tokenizer), optimizer, rows, mesh)
        return restore(run_dir, abstract, mesh)


def each_batch(monkeypatch, change):
    """Let `change(step, batch)` see and change every batch of the runs that follow."""

    def changed_batches(rows, seed, batch_size, start, **hosts):
        for step, batch in enumerate(batches(rows, seed, batch_size, start, **hosts), start + 1):
            yield change(step, batch)

    monkeypatch.setattr(loop, "batches", changed_batches)


# ---- two runs

HOLD = """
import sys
from pathlib import Path
from uner_jax.training.lock import only_run
with only_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_runs_never_share_a_run_dir(recipe, tmp_path, capsys):
    config = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), steps=2)
    command = [sys.executable, "-c", HOLD, config.run_dir]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SystemExit, match=r"^1$"):
            run_command(lambda _: loop.train(config), [])
        holder.kill()
    assert f"{config.run_dir}: in use by process {holder.pid} on " in capsys.readouterr().err
    assert {path.name for path in Path(config.run_dir).iterdir()} == {"run.lock"}
    # a run that was killed keeps nobody out.
    loop.train(config)
    assert saved(config.run_dir) == {"2"} and not Path(config.run_dir, "run.lock").exists()


# ---- SIGTERM


def test_sigterm_saves_and_the_same_command_goes_on(recipe, calm, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(recipe, run_dir=str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(step, batch):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    each_batch(monkeypatch, interrupt)
    loop.train(config)
    assert capsys.readouterr().err.endswith(
        "stopped by SIGTERM after step 3 of 6, which is saved; the same command goes on\n"
    )
    assert saved(tmp_path) == {"2", "3"} and [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is before

    loop.train(config)
    assert "resuming after step 3" in capsys.readouterr().err
    assert rows_of(tmp_path) == rows_of(calm)


def test_a_second_sigterm_ends_at_once():
    script = """
import os, signal
from uner_jax.training.preemption import Preemption
with Preemption() as preemption:
    assert not preemption.reached(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.reached(1)
    print("heard", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (-signal.SIGTERM, "heard\n"), ended.stderr


# ---- steps that are not finite


@pytest.fixture
def poison(monkeypatch):
    """Multiply the losses of these steps, and so their gradients; returns the tokens of each step's rows."""

    def poison(steps, factor):
        seen = {}

        def change(step, batch):
            seen[step] = batch["tokens"]
            factors = np.full((len(batch["tokens"]), 1), factor if step in steps else 1, np.float32)
            return batch | {"factors": factors}

        monkeypatch.setattr(
            step_module, "answer_loss_sum", lambda *inputs: answer_loss_sum(*inputs) * factor_of(*inputs)
        )
        each_batch(monkeypatch, change)
        # its batches have a field more than those that are compiled for.
        monkeypatch.setattr(loop, "compile_ahead", lambda step, *shapes: step)
        return seen

    def factor_of(model, batch):
        return jnp.max(batch["factors"])

    answer_loss_sum = step_module.answer_loss_sum
    return poison


def ids_within(tokens, examples):
    """The ids of the conversations whose tokens lie in these rows."""
    text = [" ".join(map(str, row)) for row in tokens]
    return {example.id for example in examples if any(" ".join(map(str, example.tokens)) in row for row in text)}


# the last one leaves the loss finite: the squares of the gradient overflow.
@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf, 1e25], ids=str)
def test_a_step_that_is_not_finite_changes_nothing(factor, recipe, calm, tmp_path, poison, examples, capsys):
    seen = poison({3}, factor)
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path), checkpoint=CheckpointConfig(every=1, keep=9)))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if " skipped: " in line)
    assert line.startswith("step 3 skipped: its loss or gradient is not finite; its records: ")
    named = line.partition("records: ")[2].split(", ")
    assert set(named) == ids_within(seen[3], examples[1]) and len(named) >= 2

    rows = rows_of(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert rows[2]["grad_norm"] is None and (rows[2]["loss"] is None) == (factor != 1e25)
    assert all(np.isfinite([row["loss"], row["grad_norm"]]).all() for row in rows[:2] + rows[3:])
    assert losses_of(rows[:2]) == pytest.approx(losses_of(rows_of(calm)[:2]), rel=1e-6)
    # the schedule counts updates: the third one comes a step later.
    assert [row["learning_rate"] for row in rows[3:]] == [row["learning_rate"] for row in rows_of(calm)[2:5]]
    # no checkpoint of a skipped step, and the next one is as far as one update from the second.
    assert saved(tmp_path) == {"1", "2", "4", "5", "6"}
    assert jax.tree.leaves(restored(recipe, tmp_path).state.optimizer)[0] == STEPS - 1


def test_the_state_is_that_of_the_step_before(recipe, calm, tmp_path, poison):
    # with the last steps bad, the last checkpoint, which is written all the same, holds what step 4 left.
    poison({5, 6}, np.nan)
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path)))
    assert saved(tmp_path) == {"4", "6"}
    shutil.copytree(calm / "checkpoints" / "4", tmp_path / "calm" / "checkpoints" / "4")
    expected, found = restored(recipe, tmp_path / "calm"), restored(recipe, tmp_path)
    assert (found.step, found.skipped) == (6, 2)
    pairs = zip(jax.tree.leaves(found.state), jax.tree.leaves(expected.state), strict=True)
    assert all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("most", [1, 2])
def test_many_bad_steps_end_the_run_before_they_are_saved(most, recipe, calm, tmp_path, poison, examples):
    config = dataclasses.replace(recipe, run_dir=str(tmp_path), max_bad_steps=most)
    seen = poison({3, 4, 5, 6}, np.nan)
    for _ in range(2):  # the same command ends at the same place
        with pytest.raises(
            InputError, match=rf"stopped after step {2 + most}: .* of {most} step\(s\) in a row"
        ) as error:
            loop.train(config)
        bad = np.concatenate([seen[step] for step in range(3, 3 + most)])
        assert all(name in str(error.value) for name in ids_within(bad, examples[1]))
        assert saved(tmp_path) == {"2"}
        assert [row["skipped"] for row in rows_of(tmp_path)] == [0, 0, *range(1, most + 1)]
    # and when the cause is gone, it goes on as if nothing had been.
    poison(set(), np.nan)
    loop.train(config)
    assert losses_of(rows_of(tmp_path)) == pytest.approx(losses_of(rows_of(calm)), rel=1e-5)
    assert {row["skipped"] for row in rows_of(tmp_path)} == {0}


def test_the_records_of_a_batch_are_those_that_it_holds(recipe, examples):
    rows = PackedRows(Path(recipe.data.dir), "short", 512)
    stream = batches(rows, seed=3, batch_size=4, start=0)
    for step in range(3 * len(rows) // 4):  # three epochs
        assert set(record_ids(rows, 3, 4, step)) == ids_within(next(stream)["tokens"], examples[1])


# ---- drift


def drift_of(run_dir):
    return json.loads(Path(run_dir, "config.json").read_text()).get("drift")


def test_a_changed_recipe_goes_on_if_it_may_and_is_recorded(recipe, calm, tmp_path, capsys):
    shutil.copytree(calm, tmp_path / "run")
    base = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), allow_drift=True)
    slow = dataclasses.replace(base, steps=8, optimizer=dataclasses.replace(recipe.optimizer, learning_rate=1e-3))
    with pytest.raises(InputError, match=r"learning_rate 0\.01 -> 0\.001\); give another run_dir, or .*--allow-drift"):
        loop.train(dataclasses.replace(slow, allow_drift=False))
    assert drift_of(tmp_path / "run") is None
    loop.train(slow)
    assert "accepted after step 6: optimizer.learning_rate 0.01 -> 0.001" in capsys.readouterr().err
    first = {"after_step": 6, "changed": {"optimizer.learning_rate": [0.01, 0.001]}}
    assert drift_of(tmp_path / "run") == [first]

    # without a change nothing is added, and what was accepted need not be so again.
    loop.train(dataclasses.replace(slow, steps=9, allow_drift=False))
    assert drift_of(tmp_path / "run") == [first]
    other = dataclasses.replace(slow, steps=10, seed=1, data=dataclasses.replace(recipe.data, name="other"))
    loop.train(other)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")  # as if it had been killed before it saved
    with pytest.raises(
        InputError, match=r"checkpoint 9 of .* was trained on other data \(fingerprint \w+ -> \w+; seed 0"
    ):
        loop.train(dataclasses.replace(other, allow_drift=False))
    loop.train(other)
    _, second = drift_of(tmp_path / "run")
    assert second["after_step"] == 9
    assert second["changed"].keys() == {"data.name", "fingerprint", "seed"}
    assert second["changed"]["seed"] == [0, 1] and second["changed"]["data.name"] == ["short", "other"]
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, 11))


def test_another_model_cannot_be_gone_on_with(recipe, calm, tmp_path):
    shutil.copytree(calm, tmp_path / "run")
    wider = ModelConfig(architecture=dataclasses.replace(SMALL, hidden_size=32))
    config = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), model=wider, steps=8, allow_drift=True)
    with pytest.raises(InputError, match="a model of other sizes than the recipe's"):
        loop.train(config)
    assert saved(tmp_path / "run") == {"4", "6"}


# ---- damaged checkpoints


def largest(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path, place=None, bit=2):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1 << bit
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit in the parameters": lambda step: flip(largest(step / "model")),
    "a flipped bit in the moments": lambda step: flip(largest(step / "optimizer")),
    "a flipped bit in the tokenizer": lambda step: flip(step / "tokenizer" / "_strings.json"),
    "a file that is cut off": lambda step: os.truncate(largest(step / "optimizer"), 100),
    "an empty file": lambda step: os.truncate(step / "model" / "manifest.ocdbt", 0),
    "no parameters": lambda step: shutil.rmtree(step / "model"),
    "no moments": lambda step: shutil.rmtree(step / "optimizer"),
    "no file of arrays": lambda step: largest(step / "model").unlink(),
    "no metadata": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "other metadata": lambda step: flip(step / "_CHECKPOINT_METADATA", -40),
    "metadata that is no JSON": lambda step: (step / "_CHECKPOINT_METADATA").write_text("{"),
    "an empty directory": lambda step: (shutil.rmtree(step), step.mkdir()),
}


# when a restore fails, the reads that were under way come back to an event loop that Orbax has closed.
reads_come_late = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@reads_come_late
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(name, recipe, calm, tmp_path, capsys):
    shutil.copytree(calm, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "6"
    DAMAGE[name](step)
    files = {path.relative_to(step): path.read_bytes() for path in step.rglob("*") if path.is_file()}
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path / "run")))
    err = capsys.readouterr().err
    assert err.startswith(str(step)) and "; set aside as 6.corrupt\n" in err and "resuming after step 4" in err
    assert saved(tmp_path / "run") == {"4", "6", "6.corrupt"}
    assert rows_of(tmp_path / "run") == rows_of(calm)
    aside = step.with_name("6.corrupt")
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == files
    # and the new one is the one that was lost.
    assert digests_of(flatten(load_model(step))) == digests_of(flatten(load_model(calm)))


@reads_come_late
def test_no_checkpoint_that_is_whole(recipe, calm, tmp_path, capsys):
    shutil.copytree(calm, tmp_path / "run")
    config = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"))
    for step in ("4", "6"):
        flip(largest(tmp_path / "run" / "checkpoints" / step / "model"))
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no checkpoint is left that is whole \(set aside: 4.corrupt, 6.corrupt\)"
        ):
            loop.train(config)
    assert rows_of(tmp_path / "run") == rows_of(calm)
    # a second one of the same step finds another name.
    shutil.copytree(calm / "checkpoints" / "6", tmp_path / "run" / "checkpoints" / "6")
    flip(largest(tmp_path / "run" / "checkpoints" / "6" / "model"))
    with pytest.raises(InputError, match=r"4.corrupt, 6.corrupt, 6.corrupt1"):
        loop.train(config)


@reads_come_late
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_bit_changes_what_is_restored(recipe, calm, tmp_path, data):
    expected = restored(recipe, calm).state
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(calm, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "6"
    path = data.draw(
        st.sampled_from(sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size))
    )
    place = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, place, data.draw(st.integers(0, 7)))
    found = restored(recipe, tmp_path / "run")
    assert found.step in (4, 6)
    if found.step == 6:
        pairs = zip(jax.tree.leaves(found.state), jax.tree.leaves(expected), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


@reads_come_late
@pytest.mark.parametrize(
    "name", [name for name in DAMAGE if "moments" not in name and name != "a file that is cut off"]
)
def test_a_damaged_checkpoint_is_not_converted(name, calm, tmp_path, capsys):
    shutil.copytree(calm / "checkpoints" / "6", tmp_path / "6")
    DAMAGE[name](tmp_path / "6")
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, ["convert", "to-hf", str(tmp_path / "6"), str(tmp_path / "out")])
    *progress, error = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1 and error.startswith(f"error: {tmp_path / '6'}")
    assert all(line.startswith("writing weights: ") for line in progress)
    assert not (tmp_path / "out").exists()


@reads_come_late
def test_a_damaged_checkpoint_is_not_loaded_in_another_dtype(calm, tmp_path):
    shutil.copytree(calm / "checkpoints" / "6", tmp_path / "6")
    assert load_model(tmp_path / "6", jnp.bfloat16).embedding[...].dtype == jnp.bfloat16
    flip(largest(tmp_path / "6" / "model"))
    with pytest.raises(InputError, match="do not match their checksums"):
        load_model(tmp_path / "6", jnp.bfloat16)


@given(st.integers(0, 2**32 - 1), st.integers(0, 59), st.integers(0, 15))
@settings(max_examples=50, deadline=None)
def test_a_digest_sees_every_bit_and_every_place(seed, place, bit):
    for dtype in ("float32", "bfloat16", "int32"):
        bits = np.random.default_rng(seed).integers(0, 2**16, (3, 20), np.uint32)
        array = bits.astype("uint32" if dtype != "bfloat16" else "uint16").view(jnp.dtype(dtype))
        one = array.copy()
        one.view(bits.dtype if dtype != "bfloat16" else np.uint16).reshape(-1)[place] ^= 1 << bit
        before, after, turned = (digests_of({"x": x})["x"] for x in (array, one, array[::-1].copy()))
        assert before != after and before != turned


# ---- several hosts


def test_hosts_find_each_other_where_there_are_several(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"]

    def start(*values, platforms="cpu"):
        calls.clear()
        for name, value in zip(names, values, strict=False):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        start_distributed()
        return list(calls)

    assert start("", "", "", "", "") == []
    assert start("10.0.0.1:8476", "2", "1", "", "") == [("10.0.0.1:8476", 2, 1)]
    # a SLURM step of several tasks; not its batch script, nor a step of one.
    assert start("", "", "", "node[1-2]", "16") == [()]
    assert start("", "", "", "", "16") == [] and start("", "", "", "node1", "1") == []
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES without JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        start("", "2", "", "", "")
    for process in ("2", "-1", "one"):
        with pytest.raises(InputError, match=f"JAX_PROCESS_ID {process} and JAX_NUM_PROCESSES 2"):
            start("10.0.0.1:8476", "2", process, "", "")


def test_each_host_must_have_rows_of_its_own(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="must be a multiple of the 2 hosts"):
        loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path)))
    assert not list(tmp_path.iterdir())
