"""A run as a person sees it: its first screen, its rates, what it measures on the way, and what it leaves."""

import dataclasses
import itertools
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image

import train
from uner_jax.command import run_command
from uner_jax.data.batches import PackedRows, batches, batches_once
from uner_jax.data.builder import Example, build
from uner_jax.evaluation import run as evaluation
from uner_jax.mesh import make_mesh
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.records import InputError, read_rows, write_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.training import ahead, flops, loop, summary
from uner_jax.training.checkpoint import Checkpoints
from uner_jax.training.config import (
    TINY,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from uner_jax.training.validation import Validation
from uner_jax.weights import load_model

pytestmark = pytest.mark.usefixtures("quick_compilation", "lenient_optimizer")

STEPS = 6
LENGTH = 256
SMALL = dataclasses.replace(TINY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, head_dim=4)


@pytest.fixture(scope="module")
def conversations(shared_data):
    return [row for _, row in itertools.islice(read_rows(shared_data / "eval" / "mit-restaurant.json"), 75)]


@pytest.fixture(scope="module")
def examples(conversations, shared_data):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    return tokenizer, [Example(row["id"], *encode_conversation(row, tokenizer)) for row in conversations]


@pytest.fixture(scope="module")
def recipe(examples, conversations, tmp_path_factory):
    tokenizer, rows = examples
    directory = tmp_path_factory.mktemp("run")
    build(rows[:40], tokenizer, directory / "data", "learnt", {})
    build(rows[40:], tokenizer, directory / "data", "heldout", {})
    write_rows(directory / "questions.jsonl", conversations[40:])
    return TrainConfig(
        run_dir=str(directory / "calm"),
        steps=STEPS,
        model=ModelConfig(architecture=SMALL),
        mesh=MeshConfig(1, 1, 1),
        data=DataConfig(dir=str(directory / "data"), name="learnt", batch_size=2, row_length=LENGTH),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.5),
        checkpoint=CheckpointConfig(every=2, keep=1),
    )


@pytest.fixture(scope="module")
def calm(recipe):
    """The directory of a run that measures its validation loss."""
    loop.train(dataclasses.replace(recipe, evaluation=EvaluationConfig(data="heldout")))
    return Path(recipe.run_dir)


def metrics_of(run_dir):
    return [row for _, row in read_rows(Path(run_dir, "metrics.jsonl"))]


def summary_of(run_dir):
    return json.loads(Path(run_dir, "summary.json").read_text())


def saved(run_dir):
    return {int(path.name) for path in Path(run_dir, "checkpoints").iterdir()}


# ---- the first screen


def test_the_first_screen_says_what_is_run_and_what_it_takes(recipe, tmp_path, capsys):
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path), steps=1))
    screen = capsys.readouterr().err.partition("step 1/1")[0]
    words = [line.split()[0] for line in screen.splitlines()]
    assert words == ["model", "mesh", "data", "steps", "run", "memory"]
    rows = PackedRows(Path(recipe.data.dir), "learnt", LENGTH)
    parameters = sum(leaf.size for leaf in flatten(abstract_model(dataclasses.replace(SMALL, vocab_size=512))).values())
    for words in (
        f"{parameters / 1e6:,.1f} M parameters",
        "attention reference",
        f"40 conversations, {rows.lengths.sum():,} tokens ({rows.answers:,} of answers) in {len(rows):,} rows",
        f"{rows.fill:.1%} full",
        "1 of 2 rows",
        "GFLOP a token",
        "GiB of each device at the peak of a step",
    ):
        assert words in screen


def test_a_step_that_does_not_fit_ends_before_anything_is_loaded(recipe, tmp_path, monkeypatch):
    def too_large(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nAnd so on")

    monkeypatch.setattr(jax.stages.Lowered, "compile", too_large)
    monkeypatch.setattr(loop, "first_state", None)
    with pytest.raises(InputError, match=r"does not fit these devices \(RESOURCE_EXHAUSTED.* hbm\.\); `uner plan"):
        loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path)))


def test_what_a_device_has_is_told_where_it_says_so():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 8 * 2**30}

    compiled = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((2**20,), jnp.float32)).compile()
    mesh = types.SimpleNamespace(local_devices=[Device()])
    assert " of 8.00 GiB" in ahead._memory(compiled, mesh)


# ---- rates


def test_rates_are_those_of_the_row(calm):
    for row in metrics_of(calm):
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(row["tokens"])
        assert row["answer_tokens_per_second"] * row["seconds"] == pytest.approx(row["answer_tokens"])
        assert row["packing"] == row["tokens"] / (2 * LENGTH)
        assert "mfu" not in row  # nobody has published what this device can do at most


def test_utilisation_counts_what_the_batches_hold(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(flops.PEAKS, jax.devices()[0].device_kind, 1e12)
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path)))
    rows = PackedRows(Path(recipe.data.dir), "learnt", LENGTH)
    work = flops.Work.of(dataclasses.replace(SMALL, vocab_size=512))
    for row, batch in zip(metrics_of(tmp_path), batches(rows, recipe.seed, 2), strict=False):
        lengths = [np.sum(ids == segment) for ids in batch["segment_ids"] for segment in range(1, ids.max() + 1)]
        expected = work.flops(sum(lengths), sum(n * (n + 1) / 2 for n in lengths), batch["answer_weights"].sum())
        assert row["mfu"] * row["seconds"] * 1e12 == pytest.approx(expected, rel=1e-6)
    assert "  MFU " in capsys.readouterr().err


# ---- validation


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("size", [6, 12, 36])
def test_every_row_is_measured_once(recipe, hosts, size):
    rows = PackedRows(Path(recipe.data.dir), "heldout", LENGTH)
    found = [batch for host in range(hosts) for batch in batches_once(rows, size, host, hosts)]
    assert {len(batch["tokens"]) for batch in found} == {size // hosts}
    pairs = (pair for batch in found for pair in zip(batch["tokens"], batch["answer_weights"], strict=True))
    scored = [(row.tobytes(), sum(weights)) for row, weights in pairs if any(weights)]
    expected = [
        (row["tokens"].tobytes(), sum(row["answer_weights"])) for row in map(rows.__getitem__, range(len(rows)))
    ]
    assert sorted(scored) == sorted(expected)


def test_validation_loss_is_the_mean_of_all_answer_tokens(recipe, calm, examples):
    model = load_model(calm)
    total = count = 0
    for example in examples[1][40:]:
        tokens = np.array([example.tokens], np.int32)
        log_probs = jax.nn.log_softmax(model(tokens))[0]
        places = np.flatnonzero(example.loss_mask)
        total -= float(sum(log_probs[place - 1, example.tokens[place]] for place in places))
        count += len(places)
    rows = metrics_of(calm)
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4, 6]
    assert rows[-1]["validation_loss"] == pytest.approx(total / count, rel=1e-5)
    for change in ({"gradient_accumulation": 2}, {"data": dataclasses.replace(recipe.data, batch_size=16)}):
        validation = Validation(
            dataclasses.replace(recipe, evaluation=EvaluationConfig(data="heldout"), **change),
            examples[0], make_mesh(1, 1, 1), STEPS, None,
        )  # fmt: skip
        assert validation.measure(2, model, True)["validation_loss"] == pytest.approx(total / count, rel=1e-5)
        assert validation.measure(2, model, False) == {}


def test_a_data_set_of_another_tokenizer_is_refused(recipe, examples, llama_tokenizer_path, tmp_path):
    build(examples[1][40:], load_tokenizer(llama_tokenizer_path), Path(recipe.data.dir), "foreign", {})
    config = dataclasses.replace(recipe, run_dir=str(tmp_path), evaluation=EvaluationConfig(data="foreign"))
    with pytest.raises(
        InputError, match=r"evaluation\.data: the data set foreign .* has another tokenizer than learnt"
    ):
        loop.train(config)


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.one_of(st.none(), st.floats(0, 9)), min_size=1, max_size=12),
    keep=st.integers(1, 4),
)
def test_the_newest_and_the_best_are_kept(losses, keep):
    checkpoints = object.__new__(Checkpoints)
    checkpoints._config = CheckpointConfig(keep=keep)
    checkpoints._losses = {step: loss for step, loss in enumerate(losses) if loss is not None}
    infos = [types.SimpleNamespace(step=step) for step in range(len(losses))]
    kept = [info.step for info, k in zip(infos, checkpoints.should_preserve(infos, context=None), strict=True) if k]
    assert set(range(len(losses))[-keep:]) <= set(kept) and len(kept) <= keep + 1
    if checkpoints._losses:
        assert min(checkpoints._losses.values()) in [losses[step] for step in kept]


def test_the_best_is_kept_over_a_restart(recipe, tmp_path, monkeypatch):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 5.0, 10: 1.5}
    monkeypatch.setattr(
        Validation, "measure", lambda self, step, model, saving: {"validation_loss": losses[step]} if saving else {}
    )
    for steps, kept in ((6, {4, 6}), (10, {4, 10})):
        loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path), steps=steps))
        assert saved(tmp_path) == kept
        assert (summary_of(tmp_path)["best_step"], summary_of(tmp_path)["best_validation_loss"]) == (4, 1.0)


# ---- F1


@pytest.mark.parametrize(("every", "expected"), [(0, [6]), (3, [3, 6]), (4, [4, 6])])
def test_answers_are_scored_every_so_many_steps_and_at_the_end(every, expected, recipe, tmp_path):
    asked = []

    def score(model, tokenizer):
        asked.append(tokenizer.decode(np.argmax(model(np.array([[1, 2]], np.int32)), -1)[0]))
        return 0.25

    config = dataclasses.replace(recipe, run_dir=str(tmp_path), evaluation=EvaluationConfig(every=every))
    loop.train(config, score)
    assert [row["step"] for row in metrics_of(tmp_path) if row.get("f1") == 0.25] == expected
    assert len(asked) == len(expected) and summary_of(tmp_path)["f1"] == 0.25


def test_the_sample_is_scored_by_the_published_protocol(recipe, monkeypatch):
    path = Path(recipe.data.dir).parent / "questions.jsonl"
    drawn = []

    def answers(engine, tokenizer, questions, noun):
        assert noun == wanted
        drawn.append([question.id for question in questions])
        return [question.gold for question in questions] if len(drawn) < 3 else ["[]"] * len(questions)

    monkeypatch.setattr(evaluation, "written_answers", answers)
    wanted = "paragraph"
    score = evaluation.sampled_f1(path, 10, 4, wanted)
    tokenizer = types.SimpleNamespace(eos_id=2, encode_batch=lambda texts: [[5] * len(text) for text in texts])
    model = abstract_model(dataclasses.replace(SMALL, vocab_size=512))
    assert score(model, tokenizer) == score(model, tokenizer) == pytest.approx(1.0)
    assert score(model, tokenizer) == 0.0
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 10
    wanted = "text"
    assert evaluation.sampled_f1(path, 1000, 4)(model, tokenizer) == 0.0 and len(drawn[-1]) == 35


def test_a_recipe_asks_its_questions(recipe, tmp_path):
    source = "from uner_jax.model.config import *\nfrom uner_jax.training.config import *\n"
    (tmp_path / "recipe.py").write_text(f"{source}def config():\n    return {recipe!r}\n")
    questions = Path(recipe.data.dir).parent / "questions.jsonl"
    flags = ["--run-dir", tmp_path / "run", "--evaluation.questions", questions, "--evaluation.sample", 3]
    words = [tmp_path / "recipe.py", *flags, "--evaluation.max-new-tokens", 2, "--steps", 2]
    train.main(list(map(str, words)))
    assert [row["f1"] for row in metrics_of(tmp_path / "run") if "f1" in row] == [0.0]


# ---- a trace


def test_the_steps_that_are_named_are_traced(recipe, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    monkeypatch.setattr(loop, "on_mesh", lambda *args, on_mesh=loop.on_mesh: (calls.append("step"), on_mesh(*args))[1])
    for steps, last in (("3:4", 4), ("5:9", 6)):
        calls.clear()
        loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path / steps), profile=steps))
        first = int(steps[0])
        traced = ["step"] * (last - first + 1)
        expected = [*["step"] * (first - 1), tmp_path / steps / "profile", *traced, "stop", *["step"] * (STEPS - last)]
        assert calls == expected


def test_a_trace_lies_in_the_run(recipe, tmp_path):
    loop.train(dataclasses.replace(recipe, run_dir=str(tmp_path), profile="2:2", steps=3))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.parametrize("steps", ["10", "10:", "13:10", "a:b", "1-2"])
def test_steps_that_are_none_are_refused(steps):
    with pytest.raises(InputError, match="profile must be the first and the last step to trace, as 10:13"):
        TrainConfig(profile=steps)


# ---- what a run leaves


def test_the_summary_is_what_the_rows_come_to(calm):
    rows, found = metrics_of(calm), summary_of(calm)
    assert found["steps"] == len(rows) == STEPS and found["tokens"] == sum(row["tokens"] for row in rows)
    assert found["last_loss"] == pytest.approx(np.mean([row["loss"] for row in rows]))
    assert found["best_validation_loss"] == min(row.get("validation_loss", 9.0) for row in rows)
    assert found["checkpoint"] == str(calm / "checkpoints" / "6") and Path(found["checkpoint"]).is_dir()
    assert image.imread(calm / "loss.png").shape == (540, 960, 4)


def test_steps_without_a_loss_are_in_no_mean():
    rows = [
        {"step": step, "loss": loss, "seconds": 1.0, "tokens": 2, "answer_tokens": 1, "skipped": step // 2}
        for step, loss in enumerate([4.0, None, 2.0], 1)
    ]
    found = summary.summary_of(rows)
    assert (found["first_loss"], found["last_loss"], found["skipped"], found["tokens_per_second"]) == (3.0, 3.0, 1, 2.0)
    assert summary.summary_of([row | {"loss": None} for row in rows])["last_loss"] is None
    assert summary.summary_of(rows[2:])["steps"] == 3  # of which the file has one


def test_the_last_checkpoint_is_exported_once(recipe, tmp_path, capsys):
    config = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), export=str(tmp_path / "hf"))
    loop.train(config)
    ours, theirs = flatten(load_model(tmp_path / "run")), flatten(load_model(tmp_path / "hf"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    before = (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns
    loop.train(config)
    assert (tmp_path / "hf" / "model.safetensors").stat().st_mtime_ns == before
    assert f"exported   {tmp_path / 'hf'}" in capsys.readouterr().err
    # another model may not take its place, and that is said before it is trained.
    for other in ({"steps": 8}, {"run_dir": str(tmp_path / "other")}):
        with pytest.raises(InputError, match=r"export: .*hf exists; give another name, or remove it"):
            loop.train(dataclasses.replace(config, **other))
    assert saved(tmp_path / "run") == {6} and not (tmp_path / "other").exists()


def test_a_run_that_was_killed_before_its_end_was_told_tells_it(recipe, calm, tmp_path, monkeypatch):
    config = dataclasses.replace(recipe, run_dir=str(tmp_path / "run"), export=str(tmp_path / "hf"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(summary, "convert_to_hf", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        loop.train(config)
    assert not (tmp_path / "run" / "summary.json").exists()
    loop.train(config)
    assert (tmp_path / "hf" / "config.json").is_file() and summary_of(tmp_path / "run")["exported"] == str(
        tmp_path / "hf"
    )


# ---- Weights & Biases


class Wandb(types.ModuleType):
    """As much of the module as is called, with what it was told."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.rows, self.finished = [], [], 0

    def init(self, **settings):
        self.runs.append(settings)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished += 1


def test_rows_go_to_wandb_and_a_resumed_run_is_the_same_one(recipe, tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = dataclasses.replace(recipe, run_dir=str(tmp_path), wandb="ner")
    for steps in (4, 6):
        loop.train(dataclasses.replace(config, steps=steps))
    assert wandb.rows == metrics_of(tmp_path) and wandb.finished == 2
    first, second = wandb.runs
    assert first["project"] == "ner" and first["id"] == second["id"] and second["resume"] == "allow"
    assert first["config"]["optimizer"]["learning_rate"] == 1e-2


def test_a_missing_wandb_is_said(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = dataclasses.replace(recipe, run_dir=str(tmp_path), wandb="ner")
    with pytest.raises(SystemExit):
        run_command(lambda _: loop.train(config), [])
    assert "error: wandb is not installed: pip install 'uner-jax[wandb]'" in capsys.readouterr().err
