"""Every answer that was paid for, in SQLite: committed to disk before it counts, kept under its request's key.

What is sent is written down too, before it is. What then stays without an answer (the process was killed, the
reply was lost on its way) may have been billed all the same: it is asked again, and its highest cost counts.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from data_prep.teacher.job import Reply
from uner_jax.records import InputError

LAYOUT = 1
# a wave is one batch of the Batch API; requests outside any have wave ''.
TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, content TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE sent (id INTEGER PRIMARY KEY, key TEXT NOT NULL, wave TEXT NOT NULL, cost REAL NOT NULL);
CREATE INDEX sent_by_wave ON sent (wave);
CREATE TABLE waves (
    wave TEXT PRIMARY KEY, batch TEXT, file TEXT NOT NULL, server TEXT NOT NULL,
    input_price REAL NOT NULL, output_price REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Ticket:
    """A single request that is under way."""

    row: int
    key: str
    cost: float


@dataclass(frozen=True)
class Wave:
    """A batch that is under way: our name for it, the server's, its input file, which server, and USD a token.

    `batch` is None as long as it is not known whether the server took it.
    """

    name: str
    batch: str | None
    file: str
    server: str
    input_price: float
    output_price: float


class AnswerStore:
    """The answers of a job and what is under way; one process has it open at a time.

    Raises InputError if the file is no store, is damaged, or is open in another process.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        try:
            # alone: two processes would ask, and pay, for the same passages.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._lay_out()
            self._sum_up()
        except sqlite3.Error as error:
            self._db.close()
            hint = "another run has it open" if "locked" in str(error) else "move it away to begin anew, and pay again"
            raise InputError(f"{path}: the store of answers cannot be used ({error}); {hint}") from error

    def _lay_out(self) -> None:
        self._db.execute("BEGIN EXCLUSIVE")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found == 0:
            for statement in filter(str.strip, TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        self._db.execute("COMMIT")
        if found not in (0, LAYOUT):
            raise InputError(f"{self.path}: a store of layout {found}, made by another version; this one has {LAYOUT}")

    def _sum_up(self) -> None:
        (answers,) = self._db.execute("SELECT total(cost) FROM answers").fetchone()
        (sent,) = self._db.execute("SELECT total(cost) FROM sent").fetchone()
        self._cost = float(answers) + float(sent)

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    # ---- answers

    def answer(self, key: str) -> Reply | None:
        """The answer to a request."""
        row = self._db.execute(
            "SELECT content, finish_reason, model, prompt_tokens, completion_tokens FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Reply(*row) if row else None

    def open_keys(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have no answer and are in no wave under way, in their order."""
        known = {key for (key,) in self._db.execute("SELECT key FROM answers")}
        known |= {key for (key,) in self._db.execute("SELECT key FROM sent WHERE wave != ''")}
        return [key for key in keys if key not in known]

    def cost(self) -> float:
        """USD spent, with the highest cost of all that is under way or whose answer was lost."""
        # not below 0 by rounding.
        return max(0.0, self._cost)

    def lost(self) -> int:
        """How many requests were sent whose answer never came."""
        return int(self._db.execute("SELECT count(*) FROM sent WHERE wave = ''").fetchone()[0])

    def mean_completion_tokens(self) -> float | None:
        """The mean length of the answers so far, in tokens."""
        return self._db.execute("SELECT avg(completion_tokens) FROM answers WHERE completion_tokens > 0").fetchone()[0]

    # ---- single requests

    def sending(self, key: str, cost: float) -> Ticket:
        """Write down that a request is about to be sent, and what it can cost at most."""
        row = self._db.execute("INSERT INTO sent (key, wave, cost) VALUES (?, '', ?)", (key, cost)).lastrowid
        assert row is not None
        self._cost += cost
        return Ticket(row, key, cost)

    def not_billed(self, ticket: Ticket) -> None:
        """The request was turned down: it costs nothing."""
        self._db.execute("DELETE FROM sent WHERE id = ?", (ticket.row,))
        self._cost -= ticket.cost

    def answered(self, ticket: Ticket, reply: Reply, cost: float) -> None:
        """The request was answered."""
        with _transaction(self._db):
            self._db.execute("DELETE FROM sent WHERE id = ?", (ticket.row,))
            self._insert(ticket.key, reply, cost)
        self._cost += cost - ticket.cost

    def _insert(self, key: str, reply: Reply, cost: float) -> None:
        self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *astuple(reply), cost))

    # ---- batches

    def begin_wave(self, wave: Wave, costs: dict[str, float]) -> None:
        """Write down that the requests of these keys, with their highest costs, are about to be sent as a batch."""
        with _transaction(self._db):
            self._db.execute("INSERT INTO waves VALUES (?, ?, ?, ?, ?, ?)", astuple(wave))
            rows = ((key, wave.name, cost) for key, cost in costs.items())
            self._db.executemany("INSERT INTO sent (key, wave, cost) VALUES (?, ?, ?)", rows)
        self._sum_up()

    def name_batch(self, wave: str, batch: str) -> None:
        """The server took the wave as the batch of that id."""
        self._db.execute("UPDATE waves SET batch = ? WHERE wave = ?", (batch, wave))

    def waves(self) -> list[Wave]:
        """The waves under way."""
        return [Wave(*row) for row in self._db.execute("SELECT * FROM waves ORDER BY wave")]

    def wave_costs(self, wave: str) -> dict[str, float]:
        """The keys of a wave and the highest costs of their requests."""
        return dict(self._db.execute("SELECT key, cost FROM sent WHERE wave = ? ORDER BY id", (wave,)))

    def end_wave(self, wave: str, replies: Iterable[tuple[str, Reply, float]], lost: Iterable[str]) -> None:
        """Take the answers of a wave in, and what was lost of it, and forget the wave: all or nothing."""
        with _transaction(self._db):
            for key, reply, cost in replies:
                self._insert(key, reply, cost)
            self._db.executemany("UPDATE sent SET wave = '' WHERE wave = ? AND key = ?", ((wave, key) for key in lost))
            self._db.execute("DELETE FROM sent WHERE wave = ?", (wave,))
            self._db.execute("DELETE FROM waves WHERE wave = ?", (wave,))
        self._sum_up()


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing of what is executed inside."""
    db.execute("BEGIN IMMEDIATE")
    with db:
        yield
