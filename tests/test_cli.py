"""The commands, as they are typed: exit status, one message, and files that come through bit for bit."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file
from tiny_model import random_model

import uner_jax
from uner_jax.cli import COMMANDS, dispatch
from uner_jax.command import run_command
from uner_jax.extraction.engine import Engine, Generation
from uner_jax.extraction.extractor import Extractor
from uner_jax.records import write_rows
from uner_jax.weights import load_model
from uner_jax.weights.hf import write_hf

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def hf_path(tok512, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "hf"
    write_hf(random_model(), tok512, directory)
    return directory


def leave(arguments, capsys) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `uner ARGUMENTS`."""
    with pytest.raises(SystemExit) as exit:
        run_command(dispatch, list(map(str, arguments)))
    return exit.value.code, *capsys.readouterr()


# ---- what there is


def test_without_a_command(capsys):
    code, out, error = leave([], capsys)
    assert (code, out) == (2, "")
    assert all(f"uner {name} " in error for name in COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag, capsys):
    code, out, error = leave([flag], capsys)
    assert (code, error) == (0, "")
    wanted = "convert from-hf, convert to-hf, extract, evaluate, view, export, demo, ask, plan"
    assert set(wanted.split(", ")) <= COMMANDS.keys()
    for name, command in COMMANDS.items():
        assert f"uner {name} " in out and command.__doc__.splitlines()[0] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name, capsys):
    code, out, _ = leave([*name.split(), "--help"], capsys)
    assert code == 0 and f"uner {name}" in out
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    documented = re.findall(r"^        (\w+): (.*)", COMMANDS[name].__doc__, re.MULTILINE)
    assert documented
    usage = {"source": "SRC", "destination": "DST", "recipe": "CONFIG.py", "text": "TEXT"}
    usage |= {"view": {"input": "[-h] F"}, "export": {"input": "[OPTIONS] F"}, "inspect": {"path": "[-h] PATH"}}.get(
        name, {}
    )
    for argument, explanation in documented:
        assert usage.get(argument, f"--{argument.replace('_', '-')}") in words
        assert explanation.split(",")[0].split("(")[0].strip()[:30] in words


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["convert"], ["convert", "from"], ["extract"], ["extract", "--nonsense"], ["evaluate", "--model"]],
)
def test_wrong_arguments(arguments, capsys):
    code, out, error = leave(arguments, capsys)
    assert (code, out) == (2, "") and error


def test_a_value_of_a_wrong_kind(hf_path, tmp_path, capsys):
    arguments = ["extract", "--model", hf_path, "--input", tmp_path / "a.jsonl", "--output", tmp_path / "out"]
    for more in (["--batch-size", "many"], ["--dtype", "float8"], ["--format", "xml"]):
        assert leave([*arguments, *more], capsys)[0] == 2


def test_the_module_is_the_command():
    for arguments, code in (([], 2), (["--help"], 0)):
        command = [sys.executable, "-m", "uner_jax.cli", *arguments]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == code and "uner extract" in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr


# ---- conversion


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_model_comes_through_and_back_bit_for_bit(hf_path, tmp_path, capsys):
    code, out, error = leave(["convert", "from-hf", hf_path, tmp_path / "checkpoint"], capsys)
    assert (code, out) == (0, "") and f"{tmp_path / 'checkpoint'}: checkpoint of {hf_path}" in error
    code, out, error = leave(["convert", "to-hf", tmp_path / "checkpoint", tmp_path / "back"], capsys)
    assert (code, out) == (0, "") and str(tmp_path / "back") in error
    before, after = contents(hf_path), contents(tmp_path / "back")
    assert f"Converted from `{hf_path.name}`" in after.pop("README.md").decode() and before.pop("README.md")
    assert after == before


@pytest.mark.parametrize("where", ["from-hf", "to-hf"])
def test_a_model_is_converted_in_the_dtype_asked_for(where, hf_path, tmp_path, capsys):
    more = {"from-hf": [], "to-hf": []} | {where: ["--dtype", "bfloat16"]}
    assert leave(["convert", "from-hf", hf_path, tmp_path / "one", *more["from-hf"]], capsys)[0] == 0
    assert leave(["convert", "to-hf", tmp_path / "one", tmp_path / "two", *more["to-hf"]], capsys)[0] == 0
    found, original = (load_file(path / "model.safetensors") for path in (tmp_path / "two", hf_path))
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        assert found[name].dtype == jnp.bfloat16
        assert found[name].tobytes() == tensor.astype(jnp.bfloat16).tobytes(), name
    assert load_model(tmp_path / "two", None).compute_dtype == jnp.bfloat16


def test_nothing_is_written_over(hf_path, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("five years")
    for command in ("from-hf", "to-hf"):
        code, _, error = leave(["convert", command, hf_path, tmp_path / "full"], capsys)
        assert code == 1 and error.startswith(f"error: {tmp_path / 'full'}: exists and is not empty")
    assert contents(tmp_path / "full") == {"thesis.tex": b"five years"}


@pytest.mark.parametrize("command", ["convert from-hf", "convert to-hf", "extract", "evaluate"])
@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_path_that_is_no_model_is_named_in_one_line(name, command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "in.jsonl", [{"id": "a", "text": "Ada"}])
    turns = ["Text: Ada", "Read.", "What describes x in the text?", "[]"]
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(turns)]
    write_rows(tmp_path / "set.jsonl", [{"id": "a", "conversations": turns}])
    model, output = tmp_path / name, tmp_path / "out"
    arguments = {
        "extract": ["--model", model, "--input", tmp_path / "in.jsonl", "--labels", "a", "--output", output],
        "evaluate": ["--model", model, "--data", tmp_path / "set.jsonl", "--output", output],
    }.get(command, [model, output])
    code, out, error = leave([*command.split(), *arguments], capsys)
    assert (code, out) == (1, "") and error.startswith(f"error: {model}: ") and error.count("\n") == 1
    assert not output.exists()


def test_evaluate_prints_and_writes_its_scores(hf_path, tok512, shared_data, tmp_path, monkeypatch, capsys):
    ids = tuple(tok512.encode("[]"))
    silent = lambda self, asked: [(place, Generation(ids, (-0.1,) * len(ids), True)) for place in range(len(asked))]  # noqa: E731
    monkeypatch.setattr(Engine, "generate", silent)
    data = shared_data / "eval" / "mit-restaurant.json"
    arguments = ["--model", hf_path, "--data", data, "--passages", "2", "--output", tmp_path / "out"]
    code, out, error = leave(["evaluate", *arguments], capsys)
    assert code == 0 and error.endswith(f"{tmp_path / 'out'}: predictions.jsonl, report.json, index.html\n")
    assert out.splitlines()[-1].split() == ["mit-restaurant", *["0.0"] * 5, "to", "0.0", "16", "100%"]
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 16
    assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["passages"] == 2
    assert "mit-restaurant" in (tmp_path / "out" / "index.html").read_text()
    runs = [tmp_path / "out", tmp_path / "out"]
    code, out, error = leave(["evaluate", "--compare", *runs, "--output", tmp_path / "compared"], capsys)
    assert code == 0 and error == f"{tmp_path / 'compared'}: comparison.json, index.html\n"
    assert out.splitlines()[1].split() == [
        "mit-restaurant,",
        "published",
        "0.0",
        "0.0",
        "+0.0",
        "+0.0",
        "to",
        "+0.0",
        "1.000",
    ]


def test_view_makes_a_page(tmp_path, capsys):
    entity = {"start": 0, "end": 3, "text": "Ada", "label": "person", "score": 0.5}
    record = {"id": "a", "text": "Ada left.", "labels": ["person"], "entities": [entity], "chunks": 1, "error": None}
    write_rows(tmp_path / "in.jsonl", [record, record])
    code, out, error = leave(["view", tmp_path / "in.jsonl", "--output", tmp_path / "page.html"], capsys)
    assert (code, out, error) == (0, "", f"{tmp_path / 'page.html'}: 2 documents\n")
    page = (tmp_path / "page.html").read_text()
    assert "Ada" in page and "person" in page
    code, _, error = leave(["view", tmp_path / "absent.jsonl", "--output", tmp_path / "no.html"], capsys)
    assert code == 1 and error == f"error: {tmp_path / 'absent.jsonl'}: no such file\n"
    assert not (tmp_path / "no.html").exists()


# ---- Python


def test_the_front_door():
    assert uner_jax.Extractor is Extractor
    with pytest.raises(AttributeError, match="has no attribute 'Extraktor'"):
        _ = uner_jax.Extraktor


def test_the_example_of_the_readme_runs(hf_path, tok512, monkeypatch, capsys):
    """With a model that knows one city; the fields are those that the comment of the example names."""
    (example, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert example.startswith("from uner_jax import Extractor\n") and example.count('"demo/model"') == 1
    ids = tuple(tok512.encode('["London"]'))
    known = lambda self, asked: [(place, Generation(ids, (-0.1,) * len(ids), True)) for place in range(len(asked))]  # noqa: E731
    monkeypatch.setattr(Engine, "generate", known)
    names = {}
    exec(compile(example.replace("demo/model", str(hf_path)), "README.md", "exec"), names)
    printed = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()]
    (text,) = re.findall(r'"([^"]*London[^"]*)"', example)
    assert printed and all(text[entity["start"] : entity["end"]] == entity["text"] == "London" for entity in printed)
    fields = re.findall(r'"(\w+)": \.\.\.', example)
    assert all(list(entity) == fields for entity in printed) and "score" in fields
