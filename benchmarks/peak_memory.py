"""The memory of a process of its own: what the benchmarks of loading and of conversion measure with."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from uner_jax.records import InputError


class PeakMemory:
    """Watches the memory of this process within a `with` block, and how long that takes.

    `peak` is in bytes over what the process had before, of its own pages: those of mapped files are the system's to
    take back. `seconds` is wall time.
    """

    def __enter__(self) -> "PeakMemory":
        self._before, self.peak, self._working = _resident(), 0, True
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._working = False
        self._watcher.join()

    def _watch(self) -> None:
        while self._working:
            self.peak = max(self.peak, _resident() - self._before)
            time.sleep(0.002)


def _resident() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024


def run_apart(script: str, arguments: list[str], environment: dict[str, str]) -> str:
    """Run a script in a process of its own, which can import this file, and return what it prints.

    Raises InputError if it fails.
    """
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"a process of the benchmark left with {done.returncode}")
    return done.stdout
