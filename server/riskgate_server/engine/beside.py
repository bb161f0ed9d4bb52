"""
What a batch reads and writes beside its customers' own rows: proofs, facts across customers, messages that wait.

Apart, because a purchase without a proof touches none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.identity.identity import EMPTY_IDENTITY, Identity
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import Payload, encode_payload
from riskgate_server.engine.ports import Sealer
from riskgate_server.engine.rows import IdentityRow, MessageRow, ScopeKey, ScopeRow
from riskgate_server.engine.storing import Transaction


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A message to be sent from `due_us` on, with the customer's key that seals it."""

    message_id: str
    due_us: int
    payload: Payload
    data_key: bytes


class Changes(msgspec.Struct):
    """What one command changes: facts across customers, messages that wait anew, and those settled or put off."""

    scopes: dict[ScopeKey, bytes] = msgspec.field(default_factory=dict)
    messages: list[Waiting] = msgspec.field(default_factory=list)
    settled: list[tuple[MessageRow, int]] = msgspec.field(default_factory=list)
    """With until when each is put off, UTC µs; 0 for one that is to be sent no more."""


class Beside:
    """One batch's."""

    def __init__(self, tx: Transaction, sealer: Sealer, nonce: Callable[[], bytes]) -> None:
        self._tx = tx
        self._sealer = sealer
        self._nonce = nonce
        self._identities: dict[CustomerKey, Identity] = {}
        self._identities_changed: dict[CustomerKey, bytes] = {}
        self._scopes: dict[ScopeKey, bytes] = {}
        self._scopes_changed: set[ScopeKey] = set()
        self._messages: dict[tuple[CustomerKey, str], MessageRow] = {}
        self._settled: set[tuple[CustomerKey, str]] = set()

    def identity(self, key: CustomerKey, data_key: bytes) -> Identity:
        """Return what a customer can prove themselves with, as the commands so far have left it."""
        found = self._identities.get(key)
        if found is None:
            row = self._tx.identity(key)
            found = sealing.unseal_identity(row, data_key, self._sealer) if row else EMPTY_IDENTITY
            self._identities[key] = found
        return found

    def take_scopes(self, scopes: Collection[ScopeKey]) -> None:
        """Fetch facts across customers; those that do not exist are remembered as empty."""
        missing = sorted(scope for scope in scopes if scope not in self._scopes)
        if missing:
            self._scopes.update(dict.fromkeys(missing, b""))
            self._scopes.update((row.scope, row.state) for row in self._tx.scopes(missing))

    def scope(self, scope: ScopeKey) -> bytes:
        """Return a fact across customers as the commands so far have left it; empty if nothing is known."""
        self.take_scopes((scope,))
        return self._scopes[scope]

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return a message that waits."""
        where = (key, message_id)
        if where in self._settled:
            return None
        return self._messages.get(where) or self._tx.message(key, message_id)

    def messages(self, key: CustomerKey) -> list[MessageRow]:
        """Return the customer's messages that wait."""
        stored = {(row.key, row.message_id): row for row in self._tx.messages(key)}
        waiting = stored | {where: row for where, row in self._messages.items() if where[0] == key}
        return [row for where, row in sorted(waiting.items()) if where not in self._settled]

    def keep_identity(self, key: CustomerKey, identity: Identity, data_key: bytes) -> None:
        """Make what a command did to a customer's proofs visible to the commands after it."""
        # What was only looked at is the same object.
        if identity is not self._identities[key]:
            self._identities[key] = identity
            self._identities_changed[key] = data_key

    def keep(self, key: CustomerKey, changes: Changes) -> None:
        """Make everything else a command changed visible to the commands after it."""
        self._scopes.update(changes.scopes)
        self._scopes_changed.update(changes.scopes)
        for waiting in changes.messages:
            self._messages[key, waiting.message_id] = self._sealed(key, waiting)
        for row, retry_us in changes.settled:
            where = (row.key, row.message_id)
            if retry_us:
                self._messages[where] = msgspec.structs.replace(row, due_us=retry_us)
            else:
                self._messages.pop(where, None)
                self._settled.add(where)

    def _sealed(self, key: CustomerKey, waiting: Waiting) -> MessageRow:
        sealed = sealing.seal_message(
            key,
            waiting.message_id,
            encode_payload(waiting.payload),
            data_key=waiting.data_key,
            nonce=self._nonce(),
            sealer=self._sealer,
        )
        return MessageRow(key, waiting.message_id, waiting.due_us, sealed)

    def identity_rows(self) -> list[IdentityRow]:
        """Return the proofs that changed, as they will be stored."""
        return [
            sealing.seal_identity(
                key, self._identities[key], data_key=data_key, nonce=self._nonce(), sealer=self._sealer
            )
            for key, data_key in sorted(self._identities_changed.items())
        ]

    def scope_rows(self) -> list[ScopeRow]:
        """Return the facts across customers that changed."""
        return [ScopeRow(scope, self._scopes[scope]) for scope in sorted(self._scopes_changed)]

    def message_rows(self) -> tuple[list[MessageRow], list[tuple[CustomerKey, str]]]:
        """Return the messages that wait anew or longer, and those that wait no more."""
        return list(self._messages.values()), sorted(self._settled)
