"""The house has floors: a room takes from the floors below it, never from beside or above."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("uner_jax.mesh", "uner_jax.tokenizer", "uner_jax.records", "uner_jax.gguf_file", "uner_jax.command"),
    ("uner_jax.model", "uner_jax.template", "uner_jax.report"),
    ("uner_jax.weights", "uner_jax.data"),
    ("uner_jax.training", "uner_jax.extraction", "data_prep"),
    ("configs", "uner_jax.evaluation", "uner_jax.view", "uner_jax.export", "uner_jax.inspection"),
    ("train",),
    # the package itself is the front door: it opens onto the rooms, and no room goes through it.
    ("uner_jax.cli", "uner_jax"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# these stand on the ground: the rooms beside them may use them.
SHARED = "uner_jax.records", "uner_jax.gguf_file"
NOT_A_NOUN = {"utils", "util", "helpers", "helper", "common", "misc"}
OURS = "uner_jax", "data_prep", "configs", "train"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def house():
    """Every module of the house and its source."""
    folders = [path for name in OURS for path in sorted((ROOT / name).rglob("*.py"))]
    return {module_of(path): path.read_text(encoding="utf-8") for path in [*folders, ROOT / "train.py"]}


def room_of(module):
    """The room that a module is in: a folder or a file of the table; a tokenizer of several files is one."""
    parts = module.split(".")
    if parts[0] != "uner_jax":
        return parts[0]
    if len(parts) > 1 and parts[1].startswith("tokenizer"):
        return "uner_jax.tokenizer"
    return ".".join(parts[:2])


def imports(module, source, is_package):
    """The full names that a module imports, inside functions too: `(line, name)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            start = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*start, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            # a name that is made at run time is shown as it stands, and is in no room.
            known = node.args and isinstance(node.args[0], ast.Constant)
            yield node.lineno, str(node.args[0].value if known else f"uner_jax.{ast.unparse(node)}")


def faults(modules, packages):
    """What breaks the order of the house, a line each."""
    for module, source in modules.items():
        room = room_of(module)
        if room not in FLOOR_OF:
            yield f"{module}: a room without a floor"
            continue
        for line, name in imports(module, source, module in packages):
            target = room_of(name)
            if name.split(".")[0] not in OURS or target == room:
                continue
            allowed = target in FLOOR_OF and (
                FLOOR_OF[target] < FLOOR_OF[room] or (target in SHARED and FLOOR_OF[room] == FLOOR_OF[target])
            )
            if not allowed:
                yield f"{module}, line {line}: {room} must not import {name}"


@cache
def packages_of():
    return {module_of(path) for name in OURS for path in (ROOT / name).rglob("__init__.py")}


def test_imports_go_down():
    assert list(faults(house(), packages_of())) == []


def test_every_floor_is_lived_in():
    # `packages_of` and `house` find what there is: most rooms of the table, and none twice.
    modules = house()
    assert {"train", "configs.tiny", "uner_jax", "uner_jax.model.llama", "uner_jax.data.batches"} <= modules.keys()
    assert "uner_jax.model" in packages_of() and len(modules) > 40
    assert len(FLOOR_OF) == sum(map(len, FLOORS))


BROKEN = {
    "uner_jax.mesh": "from uner_jax.model.llama import Llama",
    "uner_jax.records": "from uner_jax import tokenizer",
    "uner_jax.tokenizer": "def f():\n    import uner_jax.mesh",
    "uner_jax.model.llama": "from ..template import encode_prompt",
    "uner_jax.weights": "from . import data\nfrom ..data import builder",
    "uner_jax.extraction.engine": "import importlib\nimportlib.import_module('uner_jax.training.loop')",
    "uner_jax.data.builder": "import importlib\nimportlib.import_module(name)",
    "data_prep.judge": "if True:\n    from uner_jax.extraction.engine import Engine",
    "uner_jax.template": "import train",
    "uner_jax.shed.tools": "import json",
    "uner_jax.view.page": "from uner_jax import Extractor",
    "uner_jax.mesh_shapes": "import jax",
}


@pytest.mark.parametrize("module", BROKEN)
def test_a_broken_house_is_noticed(module):
    (fault,) = faults({module: BROKEN[module]}, packages_of())
    assert fault.startswith((f"{module},", f"{module}:"))


SOUND = {
    "uner_jax.tokenizer.pieces": "from .gguf import read\nfrom uner_jax.tokenizer import gguf",
    "uner_jax.tokenizer_gguf": "from uner_jax.tokenizer import Tokenizer\nfrom uner_jax.records import InputError",
    "uner_jax.model.llama": "from . import layers\nfrom .layers import Block\nfrom uner_jax import mesh\nimport jax",
    "data_prep.judge": "from data_prep.conversations import f\nfrom uner_jax.data import builder",
    "uner_jax.cli": "def main():\n    from uner_jax.view.page import write_page\n    import train",
}


@pytest.mark.parametrize("module", SOUND)
def test_a_sound_house_is_left_alone(module):
    assert list(faults({module: SOUND[module]}, packages_of())) == []


def test_the_front_door_opens_nothing_by_itself():
    command = "import sys, uner_jax; print(*(name for name in sys.modules if name.startswith('uner_jax')))"
    loaded = subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == ["uner_jax"]


def test_files_have_a_noun_for_a_name():
    named = {module: set(module.lower().replace("_", ".").split(".")) & NOT_A_NOUN for module in house()}
    assert {module: words for module, words in named.items() if words} == {}


def test_nothing_is_unpickled():
    # a pickle runs what is in it: no file that a user gives may be one.
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    found = [
        f"{module}, line {line}: {name}"
        for module, source in house().items()
        for line, name in imports(module, source, module in packages_of())
        if name.split(".")[0] in forbidden
    ]
    assert found == []
    assert not any("allow_pickle=True" in source for source in house().values())
