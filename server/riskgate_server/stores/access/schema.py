"""
The tables of the caller registry, and how an older file becomes a current one.

Nothing here runs on the server's way: reading needs `registry.py` alone.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from sqlite_utils import Database, Migrations

from riskgate_server.datadir import create_empty_private
from riskgate_server.stores.access.registry import RegistryUnusable

_BUSY_SECONDS: Final = 10.0

migrations: Final = Migrations("riskgate.access")


@migrations()
def first_tables(db: Database) -> None:
    """Make callers, keys, certificates, changes."""
    db.table("settings").create({"name": str, "value": str}, pk="name", not_null={"name", "value"}, strict=True)
    db.table("callers").create(
        {
            "tenant_id": str,
            "caller_id": str,
            "scopes": str,
            "rate_per_second": int,
            "burst": int,
            "enabled": int,
            "certificates_allowed": int,
            "created_us": int,
        },
        pk=("tenant_id", "caller_id"),
        not_null={"scopes", "rate_per_second", "burst", "enabled", "certificates_allowed", "created_us"},
        strict=True,
    )
    caller = [(("tenant_id", "caller_id"), "callers", ("tenant_id", "caller_id"))]
    db.table("keys").create(
        {
            "key_id": str,
            "tenant_id": str,
            "caller_id": str,
            "secret_sha256": bytes,
            "created_us": int,
            "expires_us": int,
            "active": int,
            "slot": int,
        },
        pk="key_id",
        not_null={"tenant_id", "caller_id", "secret_sha256", "created_us", "expires_us", "active", "slot"},
        foreign_keys=caller,
        strict=True,
    )
    # Two slots per caller: the file itself refuses a third active key, whoever writes.
    db.execute("CREATE UNIQUE INDEX keys_active ON keys (tenant_id, caller_id, slot) WHERE active = 1")
    db.table("certificates").create(
        {
            "sha256": bytes,
            "tenant_id": str,
            "caller_id": str,
            "created_us": int,
            "expires_us": int,
            "active": int,
        },
        pk="sha256",
        not_null={"tenant_id", "caller_id", "created_us", "expires_us", "active"},
        foreign_keys=caller,
        strict=True,
    )
    db.table("changes").create(
        {
            "sequence": int,
            "at_us": int,
            "who": str,
            "what": str,
            "tenant_id": str,
            "caller_id": str,
            "details": str,
        },
        pk="sequence",
        not_null={"at_us", "who", "what", "tenant_id", "caller_id", "details"},
        strict=True,
    )


MIGRATION_NAMES: Final = frozenset({"first_tables"})


def open_database(path: Path, *, create: bool = False) -> Database:
    """
    Open the registry for editing, brought to the current schema.

    Raises:
        RegistryUnusable: there is none, or a newer version made it.
    """
    if create:
        create_empty_private(path)
    elif not path.is_file():
        raise RegistryUnusable(f"{path} is missing: restore it from a backup")
    db = Database(sqlite3.connect(path, timeout=_BUSY_SECONDS))
    try:
        # Rollback journal: edits are rare, and readers in other processes never meet a half-applied log.
        db.execute("PRAGMA synchronous = EXTRA")
        db.execute("PRAGMA foreign_keys = ON")
        _migrate(db, path, create=create)
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: Database, path: Path, *, create: bool) -> None:
    applied = {migration.name for migration in migrations.applied(db)}
    if not applied and not create:
        raise RegistryUnusable(f"{path} is not a caller registry: restore it from a backup")
    newer = applied - MIGRATION_NAMES
    if newer:
        raise RegistryUnusable(f"{path} was made by a newer version ({', '.join(sorted(newer))})")
    if applied == MIGRATION_NAMES:
        return
    # sqlite-utils begins deferred; two programs that migrate at once must wait for each other.
    db.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(db)
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise
