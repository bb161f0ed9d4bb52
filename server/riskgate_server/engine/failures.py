"""How a store fails, told apart by what is known of the commit."""

from __future__ import annotations


class StoreBroken(Exception):
    """The store failed in a way that leaves the outcome of the last commit unknown. The process must stop writing."""


class StoreFull(Exception):
    """The store has no room. The transaction was rolled back; a later one may succeed."""


class StoreBusy(Exception):
    """Another program holds the store. Nothing happened; a later transaction may succeed."""


class StoreUnreachable(StoreBusy):
    """The store is out of reach, or the connection was lost. Nothing happened; a later transaction may succeed."""


class StoreConflict(Exception):
    """Another writer was first. The transaction was rolled back; run the whole batch again on what stands now."""


class OutcomeUnknown(Exception):
    """
    The connection was lost in the commit: it may have happened or not. The store stays usable.

    The next transaction begins only when the lost one has ended, so that it sees which of the two it was.
    """


class ReadFailed(Exception):
    """A question could not be answered just now. Nothing was written, and nothing that was written is in doubt."""


class StoreInUse(Exception):
    """Another process serves this store."""
