"""Work in several processes: in order, no further ahead than it must be, and over when its owner is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.workers import AHEAD, ordered_map
from uner_jax.records import InputError

ROOT = Path(__file__).parent.parent
_base = 0


def start(base: int) -> None:
    global _base
    _base = base


def add(number: int) -> int:
    if number == 13:
        raise InputError("record 13 is wrong")
    return _base + number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(workers):
    taken = []

    def items():
        for number in range(100, 160):
            taken.append(number)
            yield number

    results = ordered_map(add, items(), workers, start, (1000,))
    assert next(results) == 1100
    assert len(taken) <= 1 + workers * AHEAD
    assert list(results) == list(range(1101, 1160))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_through(workers):
    with pytest.raises(InputError, match="record 13 is wrong"):
        list(ordered_map(add, range(20), workers, start, (0,)))


def test_no_workers():
    with pytest.raises(InputError, match="--workers must be at least 1, found 0"):
        next(ordered_map(add, [1], 0, start, (0,)))


OWNER = """
import itertools, os, sys, time
from data_prep.workers import ordered_map
def start(): print(os.getpid(), flush=True)
def wait(number): time.sleep(0.05)
if __name__ == "__main__":
    for _ in ordered_map(wait, itertools.count(), 2, start): pass
"""


def test_workers_do_not_outlive_an_owner_that_is_killed(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout
    pids = [int(owner.stdout.readline()) for _ in range(2)]
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        # a process that ended and that nobody waited for is a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
