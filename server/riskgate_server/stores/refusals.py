"""Why a store is not opened: what an operator can mend, whichever store it is."""

from __future__ import annotations


class SettingsRefused(Exception):
    """The database does not run with the settings that durability needs."""


class SchemaTooNew(Exception):
    """A newer program made the tables. They are left untouched."""


class VaultUnusable(Exception):
    """There is no vault here that this version can use. The message says why."""


class StoreMoved(Exception):
    """The store is one end of a move, and not the one that is served. The message says which is, or what to do."""


class MoveRefused(Exception):
    """A store cannot be copied, or not to there. Nothing that counts was changed; the message says why."""
