"""One run at a time in a run_dir: two would write into each other's checkpoints."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import jax

from uner_jax.records import InputError

# What a file system says that knows no locks, such as a mounted object store: there the run goes on without.
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def only_run(run_dir: Path) -> Iterator[None]:
    """Within, no other run on this file system can begin in `run_dir`; one that has already is named by InputError.

    Of the processes of a run the first holds the lock. It is the kernel's (flock), so a run that is killed holds none;
    the file, run.lock, says who has it and goes with the run.
    """
    if jax.process_index() != 0:
        yield
        return
    made = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "run.lock"
    file = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if made and not any(run_dir.iterdir()):
            run_dir.rmdir()


def _locked(path: Path) -> IO[str]:
    """The file, locked and with the name of this process in it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise InputError(
                f"{path.parent}: in use by {holder}; wait for that run or stop it, or give another run_dir"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if _is_at(file, path):
            break
        # the run that had it took it away between the two lines above.
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
