"""A command leaves with the right exit status and one message, and shows how far it is."""

import io
import json
import os
import subprocess
import sys

import pytest

from uner_jax import command
from uner_jax.command import progress, run_command
from uner_jax.records import InputError


def leave(main, arguments, capsys):
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as exit:
        run_command(main, arguments)
    return exit.value.code, *capsys.readouterr()


def raising(error):
    def main(arguments):
        raise error

    return main


def test_success(capsys):
    assert leave(lambda arguments: print(*arguments), ["a", "--b"], capsys) == (0, "a --b\n", "")


def test_arguments_of_the_process(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "x", "y"])
    assert leave(lambda arguments: print(*arguments), None, capsys) == (0, "x y\n", "")


@pytest.mark.parametrize("code", [0, 2])
def test_the_parser_chooses_its_own_status(code, capsys):
    assert leave(raising(SystemExit(code)), [], capsys) == (code, "", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("f.jsonl, line 3: not JSON"), "error: f.jsonl, line 3: not JSON\n"),
        (FileNotFoundError(2, "No such file or directory", "x"), "error: [Errno 2] No such file or directory: 'x'\n"),
        (KeyError("layers"), "error: KeyError: 'layers' (--debug shows where)\n"),
        (ValueError("shape"), "error: ValueError: shape (--debug shows where)\n"),
    ],
)
def test_failure_is_one_line(error, message, capsys):
    assert leave(raising(error), [], capsys) == (1, "", message)


@pytest.mark.parametrize("error", [InputError("wrong"), KeyError("wrong")])
@pytest.mark.parametrize("arguments", [["--debug", "a"], ["a", "--debug"]])
def test_debug_shows_the_traceback_and_is_not_passed_on(error, arguments, capsys):
    def main(seen):
        print(*seen)
        raise error

    code, out, err = leave(main, arguments, capsys)
    assert (code, out) == (1, "a\n")
    assert err.startswith("Traceback (most recent call last):\n")
    assert "in main" in err and "wrong" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [[], ["--debug"]])
def test_interrupt(arguments, capsys):
    assert leave(raising(KeyboardInterrupt()), arguments, capsys) == (130, "", "interrupted\n")


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("known", [True, False])
def test_progress_yields_everything_and_ends_with_a_line(count, known, capsys):
    shown = progress(iter(range(count)), "reading", total=count if known else None, unit="rows")
    assert list(shown) == list(range(count))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"reading: {count:,} rows, ") and err.endswith(" s\n") and err.count("\n") == 1


def test_progress_in_a_log(capsys, monkeypatch):
    seconds = iter(range(0, 1000, 6))
    monkeypatch.setattr(command.time, "monotonic", lambda: float(next(seconds)))
    assert list(progress("abcd", "reading", total=4, unit="rows")) == list("abcd")
    # six seconds an item: a line is due after every second one, and one more at the end.
    assert capsys.readouterr().err.splitlines() == [
        "reading: 2 of 4 rows, 0.2 rows/s, 12 s left",
        "reading: 4 rows, 0.2 rows/s, 24 s",
        "reading: 4 rows, 0.1 rows/s, 30 s",
    ]


def test_progress_of_a_job_that_goes_on(capsys, monkeypatch):
    """What was done before takes no time, and says nothing about the time that is left."""
    seconds = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(seconds, 20.0))
    with command.Progress("reading", 100, "rows") as shown:
        shown.skip(50)
        shown.advance(10, "six")
        shown.advance(10)
    assert capsys.readouterr().err.splitlines()[-1] == "reading: 70 of 100 rows, 1.0 rows/s, 30 s left"


def test_progress_is_lazy_and_lets_errors_through():
    def items():
        yield 1
        raise InputError("line 2")

    shown = progress(items(), "reading")
    assert next(shown) == 1
    with pytest.raises(InputError, match="line 2"):
        next(shown)


def test_progress_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress(range(1234), "reading", unit="rows")) == list(range(1234))
    assert "1234/1234" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_no_time_is_left_before_there_is_a_rate(capsys, monkeypatch):
    monkeypatch.setattr(command, "LOG_SECONDS", 0.0)
    with command.Progress("reading", 3, "rows") as shown:
        shown.advance(0)
    assert "left" not in capsys.readouterr().err


SAYS = """
import json, os, sys
from pathlib import Path
from uner_jax import command
command.HUGE_PAGES = Path(sys.argv[1])
command.use_huge_pages()
print(json.dumps([os.environ["GLIBC_TUNABLES"], sys.argv[2:], sys.flags.dev_mode, sys.stdin.read()]))
"""


@pytest.mark.parametrize(
    ("offered", "tunables", "wanted"),
    [
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "a.b=2", "a.b=2:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", "a.b=2", "a.b=2"),
        (None, "", ""),
    ],
)
def test_huge_pages_are_asked_for_where_they_are_given(offered, tunables, wanted, tmp_path):
    """The process starts anew with all that it was given, and once."""
    if offered:
        (tmp_path / "enabled").write_text(offered)
    command = [sys.executable, "-X", "dev", "-c", SAYS, str(tmp_path / "enabled"), "--a", "b c"]
    environment = {**os.environ, "GLIBC_TUNABLES": tunables}
    said = subprocess.run(command, env=environment, input="text", capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == [wanted, ["--a", "b c"], True, "text"]
