"""Opens messages that wait in the store, and words them. Reads the vault: not for the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import iso4217
import msgspec
import structlog

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import Channel, CodeMessage, Message, NoticeMessage, Payload, decode_payload
from riskgate_server.engine.ports import MessageTexts, ProofSecrets, Sealer
from riskgate_server.engine.rows import MessageRow
from riskgate_server.engine.storing import NoKey, Vault

log = structlog.get_logger()

PAYEE_CHARACTERS_MAX: Final = 40
"""Of a payee's name in a text: a message has about 140 characters in all, 70 of them Chinese."""


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A message ready to be sent. `challenge_id` is that of a code, empty for any other message."""

    row: MessageRow
    message: Message
    challenge_id: str = ""


class Envelopes:
    """
    Opens messages.

    Args:
        fingerprint: keyed hash of a customer's content, at least 16 bytes.
        language: of texts for which nobody chose one.
    """

    def __init__(
        self,
        *,
        vault: Vault,
        sealer: Sealer,
        secrets: ProofSecrets,
        texts: MessageTexts,
        fingerprint: Callable[[CustomerKey, bytes], bytes],
        language: str,
    ) -> None:
        self._vault = vault
        self._sealer = sealer
        self._secrets = secrets
        self._texts = texts
        self._fingerprint = fingerprint
        self._language = language

    def open(self, rows: Sequence[MessageRow]) -> list[Opened | None]:
        """
        Return the messages in the same order; None for one that nobody can read any more.

        Raises:
            StoreBusy, ReadFailed: the vault cannot be asked now.
        """
        keys = self._vault.keys(sorted({row.key for row in rows}))
        return [self._open(row, keys[row.key]) for row in rows]

    def _open(self, row: MessageRow, data_key: bytes | NoKey) -> Opened | None:
        if isinstance(data_key, NoKey):
            log.warning("message unreadable", why=f"key {data_key.value}")
            return None
        try:
            payload = decode_payload(sealing.unseal_message(row, data_key, self._sealer))
            return self._worded(row, payload)
        except Exception as error:  # noqa: BLE001 - a key that was retired, a damaged row: it is this message's alone
            # Without the error's text, which may quote what was decrypted.
            log.error("message unreadable", why=type(error).__name__)  # noqa: TRY400
            return None

    def _worded(self, row: MessageRow, payload: Payload) -> Opened:
        template, parameters = self._content(row.key, payload)
        language = payload.language or self._language
        message = Message(
            # Of the ciphertext, too: a store restored from a backup gives the same message ids out again.
            id=f"msg_{self._fingerprint(row.key, row.message_id.encode() + b' ' + row.sealed).hex()}",
            tenant_id=row.key[0],
            channel=Channel.SMS,
            destination=payload.number,
            template=template,
            parameters=parameters,
            text=self._texts(template, language, parameters),
            language=language,
            not_after_us=payload.expires_us,
        )
        return Opened(row, message, payload.challenge_id if isinstance(payload, CodeMessage) else "")

    def _content(self, key: CustomerKey, payload: Payload) -> tuple[str, dict[str, str]]:
        if isinstance(payload, NoticeMessage):
            return payload.notice, {}
        parameters = {"code": self._secrets.code(payload.key_id, key, payload.challenge_id)}
        if payload.currency:
            parameters["amount"] = decimal_amount(payload.amount_minor, payload.currency)
            parameters["currency"] = payload.currency
            parameters["payee"] = printable(payload.payee)
        return f"CODE_{payload.purpose.name}", parameters


def decimal_amount(amount_minor: int, currency: str) -> str:
    """Return an amount in the currency's major unit, with as many decimals as it has minor digits (ISO 4217)."""
    digits = iso4217.Currency(currency).exponent or 0
    major, minor = divmod(amount_minor, 10**digits)
    return f"{major}.{minor:0{digits}d}" if digits else str(major)


def printable(payee: str) -> str:
    """Return a payee's name fit to stand in a text: nothing that breaks its line or turns its direction."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in payee).split())
    return shown if len(shown) <= PAYEE_CHARACTERS_MAX else f"{shown[: PAYEE_CHARACTERS_MAX - 1]}…"
