"""
The PostgreSQL store: one connection that writes, a few that read, and other servers beside it.

Each server writes a lane of its own: a number, whose row in `writers` it holds on lease. Every transaction locks that
row and finds its owner there, so a server that was taken for dead cannot write any more; the row also says where the
lane ends. And since only one transaction at a time can hold it, a transaction whose connection was lost has ended,
one way or the other, before the next begins.

Customers are shared: their rows are locked one by one (`lock`), at READ COMMITTED, and everything of a customer is
read and written under the lock of its row.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psycopg

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine.failures import OutcomeUnknown, StoreBroken, StoreInUse, StoreUnreachable
from riskgate_server.engine.rows import BatchRow, MessageRow
from riskgate_server.engine.storing import JOB_LEASE_SECONDS, WRITERS_MAX
from riskgate_server.stores.moves import Mark, decode_mark
from riskgate_server.stores.postgres import session
from riskgate_server.stores.postgres.arrays import Numbers
from riskgate_server.stores.postgres.described import differences
from riskgate_server.stores.postgres.reads import PostgresSnapshot
from riskgate_server.stores.postgres.schema import migrate, refuse_newer
from riskgate_server.stores.postgres.session import READERS, Connection, Readers, reading, translated
from riskgate_server.stores.postgres.transaction import LEASE_SECONDS, LIVES_ON, PostgresTransaction, Tail
from riskgate_server.stores.refusals import SettingsRefused

CLAIM_SECONDS: Final = 1.0
"""How long an opening waits for a number whose owner may just be ending."""
CLAIM_STEP_SECONDS: Final = 0.1
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0
"""Between two attempts to reach a database that is gone: doubled from the one to the other."""


class PostgresStore:
    """
    Keeps `engine.storing.Store` over one database, as the writer of one number: the lowest that is free for None.

    `may_take` is asked before a free number is taken: False passes it over.

    Raises, when made:
        StoreInUse: another server has the number, or others have all of them.
        SettingsRefused, SchemaTooNew: what must be mended first.
        StoreUnreachable: the database cannot be reached.
    """

    shared: Final = True

    def __init__(
        self,
        dsn: str,
        writer: int | None = 0,
        *,
        readers: int = READERS,
        may_take: Callable[[int], bool] = lambda _: True,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if writer is not None and not 0 <= writer < WRITERS_MAX:
            raise ValueError(f"writer {writer} is not from 0 to {WRITERS_MAX - 1}")
        self._dsn = dsn
        self._now = now
        self._monotonic = monotonic
        self._owner = uuid.uuid4()
        self._warnings: list[str] = []
        self._readers = Readers(dsn, readers)
        self._closed = False
        self._broken = ""
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS_MIN
        self._db: Connection | None = self._connect()
        try:
            with translated():
                migrate(self._db)
            claim = (
                partial(self._claim_lowest, may_take=may_take)
                if writer is None
                else partial(self._claim, writer=writer)
            )
            self.writer = claim(self._db, sleep=sleep)
        except psycopg.errors.InsufficientPrivilege as error:
            self._db.close()
            raise SettingsRefused(f"the role may not do what it must: {str(error).strip()}") from error
        except BaseException:
            self._db.close()
            raise

    # --- The connection that writes. ---

    def _connect(self) -> Connection:
        db = session.connect(self._dsn)
        try:
            with translated():
                session.set_up(db, idle_seconds=session.IDLE_SECONDS)
                session.probe(db, self._now)
        except BaseException:
            db.close()
            raise
        db.add_notice_handler(self._note)
        return db

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "")

    def _claim(self, db: Connection, *, writer: int, sleep: Callable[[float], None]) -> int:
        """Take a number, or learn who has it."""
        for _ in range(round(CLAIM_SECONDS / CLAIM_STEP_SECONDS)):
            if self._claimed(db, writer):
                return writer
            sleep(CLAIM_STEP_SECONDS)
        with translated():
            row = db.execute("SELECT holder FROM writers WHERE writer = $1", (writer,)).fetchone()
        raise StoreInUse(f"writer {writer} of this database is served by {row and row[0]}; one number takes one server")

    def _claim_lowest(self, db: Connection, *, sleep: Callable[[float], None], may_take: Callable[[int], bool]) -> int:
        """Take the lowest number that is free. Lanes that were begun are gone on with first."""
        passed_over = Numbers()
        for _ in range(WRITERS_MAX):
            with translated():
                (writer,) = db.execute(_LOWEST_FREE, (passed_over,)).fetchone() or (0,)
            if writer >= WRITERS_MAX:
                raise StoreInUse(f"this database has its {WRITERS_MAX} writers already")
            if not may_take(int(writer)):
                passed_over.append(int(writer))
                continue
            if self._claimed(db, writer):
                return int(writer)
            # Another server was first, and has the number now.
            sleep(0.0)
        raise StoreInUse("other servers took every number of this database first")

    def _claimed(self, db: Connection, writer: int) -> bool:
        given = (writer, self._owner, f"process {os.getpid()} on {socket.gethostname()}", LEASE_SECONDS)
        with translated():
            db.execute("INSERT INTO writers (writer) VALUES ($1) ON CONFLICT DO NOTHING", (writer,))
            return bool(db.execute(_CLAIM, given).rowcount)

    def _writing(self) -> Connection:
        """
        Return the connection that writes, made anew where it was lost.

        Raises:
            StoreUnreachable: the database is out of reach, and it is tried no more often than is good for it.
            StoreBroken: another server took over meanwhile, or the database is not the one it was.
        """
        if self._closed:
            raise RuntimeError("the store is closed")
        if self._broken:
            raise StoreBroken(self._broken)
        if self._db is not None and not self._db.closed:
            return self._db
        if self._monotonic() < self._retry_at:
            raise StoreUnreachable("the database is out of reach")
        try:
            self._db = self._reconnect()
        except StoreUnreachable:
            self._retry_at = self._monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS_MAX)
            raise
        self._retry_seconds = RETRY_SECONDS_MIN
        return self._db

    def _reconnect(self) -> Connection:
        try:
            db = self._connect()
        except SettingsRefused as error:
            raise self._break(str(error)) from error
        try:
            with translated():
                ours = db.execute(_RECLAIM, (self.writer, self._owner)).rowcount
        except BaseException:
            db.close()
            raise
        if not ours:
            db.close()
            raise self._break(f"writer {self.writer} was taken over by another server")
        return db

    def _break(self, why: str) -> StoreBroken:
        self._broken = why
        return StoreBroken(why)

    # --- The port. ---

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        """One atomic unit of work, durable when it ends without an exception."""
        db = self._writing()
        try:
            tx, ending = self._begin(db)
            yield tx
            with translated():
                if ending and not tx.wrote:
                    db.execute(_RENEW, (self.writer, LEASE_SECONDS))
            session.commit(db, self._warnings)
        except OutcomeUnknown:
            # Also where the connection stands: what it says from here on would be about a commit in doubt.
            db.close()
            raise
        except BaseException:
            if not db.closed:
                session.roll_back(db)
            raise

    def _begin(self, db: Connection) -> tuple[PostgresTransaction, bool]:
        """Begin, with this writer's row locked; also return whether the lease should be renewed."""
        before = self._now()
        with translated():
            with db.pipeline():
                db.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", prepare=False)
                locked = db.execute(_LOCK_WRITER, (self.writer, LEASE_SECONDS / 2), binary=True)
            row = locked.fetchone()
        if row is None or row[0] != self._owner:
            raise self._break(f"writer {self.writer} was taken over by another server")
        _, ending, position, server_time, *batch = row
        if fault := session.clock_fault(server_time, before, self._now()):
            # Not for good: whichever of the two clocks was wrong, it goes on when they agree.
            raise StoreUnreachable(fault)
        last = BatchRow(*batch)
        return PostgresTransaction(db, self.writer, Tail(last if last.sequence else None, position)), ending

    def snapshot(self) -> PostgresSnapshot:
        """A consistent view, on a connection of its own."""
        return PostgresSnapshot(self._readers)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return _move(snapshot)

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed, earliest first."""
        with self.snapshot() as snapshot:
            return snapshot.customers_due(now_us, limit)

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Take due messages that no server has."""
        with self.transaction() as tx:
            return tx.lease_messages(now_us, limit)

    def lease(self, job: str) -> bool:
        """Take, or keep, a job for this server."""
        given = (job, self._owner, JOB_LEASE_SECONDS)
        return bool(self._change(_KEEP_JOB, given) or self._change(_BEGIN_JOB, given))

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of old requests, but for those another server is about to empty."""
        return self._change(_FORGET_REPLIES, (before_us, limit))

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset."""
        self._change("INSERT INTO rulesets VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", (ruleset_hash, source, at_us))

    def _change(self, statement: str, given: tuple[Any, ...]) -> int:
        with self.transaction() as tx:
            return tx.change(statement, given)

    def close(self) -> None:
        """Finish, and give the number back."""
        self._closed = True
        self._readers.close()
        db, self._db = self._db, None
        if db is None or db.closed:
            return
        try:
            db.execute(_RELEASE, (self.writer, self._owner))
            db.execute("DELETE FROM jobs WHERE owner = $1", (self._owner,))
        except psycopg.Error:
            # Then it is free when the session is seen to be gone.
            pass
        finally:
            db.close()


class PostgresSnapshots:
    """Reads a database that servers may be writing; keeps `engine.storing.Snapshots`."""

    def __init__(self, dsn: str) -> None:
        """
        Look at a database, for one snapshot at a time.

        Raises:
            SchemaTooNew: a newer program made the tables.
            ReadFailed: it cannot be read.
        """
        self._readers = Readers(dsn, 1)
        try:
            with self._readers.lend() as reader, reading():
                self.version = refuse_newer(reader)
                """The number of the last migration that was done; 0 before the first."""
        except BaseException:
            self.close()
            raise

    def snapshot(self) -> PostgresSnapshot:
        """A consistent view of everything committed so far."""
        return PostgresSnapshot(self._readers)

    @property
    def move(self) -> Mark | None:
        """The mark of the move it is an end of; None for none."""
        with self.snapshot() as snapshot:
            return _move(snapshot)

    def schema_differences(self) -> tuple[list[str], list[str]]:
        """Return how the schema differs from a fresh one: what is missing or altered, and what was added."""
        with self.snapshot() as snapshot, reading():
            return differences(snapshot.connection)

    def close(self) -> None:
        """Finish."""
        self._readers.close()


def _move(snapshot: PostgresSnapshot) -> Mark | None:
    with reading():
        row = snapshot.connection.execute("SELECT mark FROM moves").fetchone()
    return decode_mark(row[0]) if row else None


_FREE: Final = """(
  owner IS NULL OR lease_until < clock_timestamp()
  OR NOT EXISTS (
    SELECT FROM pg_stat_activity AS a
    WHERE a.pid = writers.backend_pid AND a.backend_start IS NOT DISTINCT FROM writers.backend_start))"""
"""An owner whose session has ended is no longer waited for: a server that was killed starts again at once."""

_CLAIM: Final = f"""
UPDATE writers SET owner = $2, holder = $3, lease_until = clock_timestamp() + make_interval(secs => $4),
  backend_pid = pg_backend_pid(),
  backend_start = (SELECT a.backend_start FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid())
WHERE writer = $1 AND {_FREE}
"""
_LOWEST_FREE: Final = f"""
SELECT coalesce(
  (SELECT min(writer) FROM writers WHERE writer <> ALL ($1::bigint[]) AND {_FREE}),
  (SELECT max(taken) + 1 FROM (SELECT writer FROM writers UNION ALL SELECT unnest($1::bigint[])) AS others (taken)),
  0)
"""

_RECLAIM: Final = """
UPDATE writers SET backend_pid = pg_backend_pid(),
  backend_start = (SELECT a.backend_start FROM pg_stat_activity AS a WHERE a.pid = pg_backend_pid())
WHERE writer = $1 AND owner = $2
"""
_RELEASE: Final = "UPDATE writers SET owner = NULL WHERE writer = $1 AND owner = $2"
_RENEW: Final = f"UPDATE writers SET {LIVES_ON} WHERE writer = $1"
_LOCK_WRITER: Final = (
    "SELECT owner, lease_until < clock_timestamp() + make_interval(secs => $2), position,"
    " extract(epoch FROM clock_timestamp())::float8, sequence,"
    " at_us, first_position, count, root, hash, writer FROM writers WHERE writer = $1 FOR UPDATE"
)
_KEEP_JOB: Final = (
    "UPDATE jobs SET owner = $2, lease_until = clock_timestamp() + make_interval(secs => $3)"
    " WHERE job = $1 AND (owner = $2 OR lease_until < clock_timestamp())"
)
_BEGIN_JOB: Final = (
    "INSERT INTO jobs (job, owner, lease_until)"
    " VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) ON CONFLICT DO NOTHING"
)
_FORGET_REPLIES: Final = """
UPDATE requests AS r SET reply = '' FROM (
  SELECT tenant_id, customer_id, request_id FROM requests WHERE reply <> '' AND at_us < $1
  ORDER BY at_us LIMIT $2 FOR UPDATE SKIP LOCKED) AS old
WHERE r.tenant_id = old.tenant_id AND r.customer_id = old.customer_id AND r.request_id = old.request_id
"""
