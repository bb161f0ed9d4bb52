"""What the engine needs from the edges, said in the engine's words; from where things are kept: `storing.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.fraud.decision import Assessment
from riskgate_server.domain.fraud.features import FeatureValues, LineFacts
from riskgate_server.domain.fraud.profile import Profile, PurchaseFacts
from riskgate_server.domain.identity.devices import (
    Proof,
    ProofAsked,
    ProofPolicy,
    ProofVerdict,
    Registration,
    RegistrationAsked,
    RegistrationVerdict,
)
from riskgate_server.engine.messages import Message
from riskgate_server.engine.rows import (
    MessageRow,
)


class Sealer(Protocol):
    """Authenticated encryption under a customer's key."""

    def seal(self, key: bytes, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
        """Encrypt `plaintext`, binding it to `aad`. A nonce must never repeat under one key."""

    def forget(self) -> None:
        """Drop every key kept in memory: one of them was destroyed."""

    def open_sealed(self, key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
        """Decrypt, or raise when key, nonce, aad or a bit of the text is not what was sealed."""


class KeyRetired(Exception):
    """What a secret was derived from is known no more."""


class ProofSecrets(Protocol):
    """
    Secrets that are derived and never stored: from a rotating key, a customer and an id, the same again and again.

    `key_id` names the key. Every method that takes one raises KeyRetired when it is known no more.
    """

    @property
    def key_id(self) -> int:
        """The key to derive new secrets from."""

    def code(self, key_id: int, customer: CustomerKey, challenge_id: str) -> str:
        """Return the six digits of a challenge."""

    def token(self, key_id: int, customer: CustomerKey, request_id: str) -> str:
        """Return the grant that a request was given: 43 characters of URL-safe Base64."""

    def seed(self, key_id: int, customer: CustomerKey, request_id: str) -> bytes:
        """Return the 20-byte seed of the authenticator app that a request enrolled."""

    def recovery_codes(self, key_id: int, customer: CustomerKey, request_id: str) -> tuple[str, ...]:
        """Return the ten recovery codes that a request was given: 16 characters of Base32 each."""

    def recovery_mark(self, customer: CustomerKey, code: str) -> bytes:
        """Return what is kept of a recovery code: 80 random bits need no rotating key."""

    def decoy(self, customer: CustomerKey, at_us: int) -> str:
        """Return the id of a challenge that does not exist, which carries `at_us` in whole seconds."""

    def decoy_time(self, customer: CustomerKey, challenge_id: str) -> int | None:
        """Return the time inside a decoy of this customer, UTC µs; None if it is none."""

    def decoy_digits(self, customer: CustomerKey, which: int) -> int:
        """Return a number that is always the same for a customer and says nothing."""

    def otpauth_uri(self, seed: bytes, *, issuer: str, label: str) -> str:
        """Return a seed as authenticator apps read it from a QR code."""

    def totp_step(self, seed: bytes, code: str, at_us: int) -> int | None:
        """Return the 30-second step a code is right for, at most one away from `at_us` (RFC 6238); None if wrong."""


class TokenRefused(Exception):
    """A token was not sealed here, or not for this."""


class Tokens(Protocol):
    """Tokens that callers keep for us: nobody can read or make one."""

    def seal(self, purpose: tuple[str, ...], content: bytes) -> str:
        """Return `content`, not empty, as text that only the same purpose opens; each time another text."""

    def open_token(self, purpose: tuple[str, ...], token: str) -> bytes:
        """Return what was sealed for this purpose, or raise TokenRefused."""


class ProofVerifier(Protocol):
    """Verifies what customers' devices sign. Safe from any thread."""

    def verify_registration(
        self, answer: Registration, asked: RegistrationAsked, policy: ProofPolicy, *, now_us: int
    ) -> RegistrationVerdict:
        """
        Check that a new key is one, that its holder has it, and what vouches for it.

        Raises:
            InvalidRequest: the answer cannot be read.
            ProofRefused: it can, and does not hold.
        """

    def verify_proof(self, answer: Proof, asked: ProofAsked, policy: ProofPolicy, *, now_us: int) -> ProofVerdict:
        """
        Check that one of the keys asked for answered what was asked. Counters are returned, not judged.

        Raises:
            InvalidRequest: the answer cannot be read.
            ProofRefused: it can, and does not hold.
        """


class Clock(Protocol):
    """Where the engine's time comes from. Read once per batch."""

    def now_us(self) -> int:
        """Return the time in microseconds UTC."""


class Entropy(Protocol):
    """Where randomness comes from."""

    def __call__(self, size: int, /) -> bytes:
        """Return `size` random bytes."""


class EntrySink(Protocol):
    """Hears of every commit, after it is durable."""

    def committed(self, position: int, keys: Iterable[CustomerKey]) -> None:
        """Everything up to `position` is durable; `keys` changed."""


class Outgoing(Protocol):
    """Hears of messages that this process has on lease, and sends them. Safe from any thread."""

    @property
    def room(self) -> int:
        """How many more it takes; those beyond it wait in the store until their lease is over."""

    def written(self, rows: Sequence[MessageRow], since: float) -> None:
        """A commit wrote `rows`; their leases began no earlier than `since`, by the monotonic clock in seconds."""

    def leased(self, rows: Sequence[MessageRow], since: float) -> None:
        """`rows` were taken on lease no earlier than `since`; what was tried before is not known."""


class GatewayDown(Exception):
    """The gateway certainly did not take the message. A later attempt may succeed, not before `retry_after_seconds`."""

    def __init__(self, why: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_seconds = retry_after_seconds


class DeliveryUnknown(GatewayDown):
    """The message may have been delivered, or may still be. It is repeated under the same id."""


class MessageRefused(Exception):
    """The gateway will never take this message: there is no such number, or the message is not allowed."""


class MessageGateway(Protocol):
    """
    What brings messages to phones: an SMS gateway, a push service.

    The texts of its errors name what failed and never the message, its destination or the gateway's secrets: they are
    logged.
    """

    async def send(self, message: Message) -> None:
        """
        Hand a message over. On return the gateway has taken it.

        The message's id is its idempotency key: it is sent again under the same id, with the same content, whenever it
        is not known whether it was taken; a gateway that honours ids delivers it once.

        Raises:
            GatewayDown: it was certainly not taken.
            DeliveryUnknown: it may have been taken.
            MessageRefused: it never will be.
        """

    async def close(self) -> None:
        """Let go of connections."""


class MessageTexts(Protocol):
    """The texts of messages to customers."""

    def __call__(self, template: str, language: str, parameters: Mapping[str, str]) -> str:
        """
        Return a text with its parameters filled in; `language` as in the contract, empty for the default.

        Raises:
            LookupError: there is no such text.
        """


class RiskRules(Protocol):
    """A compiled ruleset."""

    @property
    def version(self) -> str:
        """The version its author gave it."""

    @property
    def hash(self) -> str:
        """SHA-256 of its source text, lower-case hex."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of what `features` returns, in its order."""

    def features(self, profile: Profile, facts: PurchaseFacts, line: LineFacts) -> FeatureValues:
        """Return what the rules see of a purchase, in the ruleset's order."""

    def assess(self, values: FeatureValues) -> Assessment:
        """Return what the rules make of it."""

    def explain(self, values: FeatureValues) -> Sequence[RuleTrace]:
        """Return what every rule makes of it, in the ruleset's order."""


class RuleTrace(Protocol):
    """What one rule made of one set of feature values; `result` is HIT, MISS or ERROR."""

    @property
    def rule_id(self) -> str:
        """The rule."""

    @property
    def when(self) -> str:
        """Its CEL expression."""

    @property
    def result(self) -> str:
        """HIT, MISS or ERROR."""

    @property
    def reason_code(self) -> str:
        """The code it gives on a hit."""

    @property
    def weight(self) -> int:
        """What it adds to the risk score."""

    @property
    def why(self) -> str:
        """Its author's one line."""

    @property
    def features(self) -> tuple[tuple[str, int | float | bool | str], ...]:
        """The features it names, with their values."""


class Rulesets(Protocol):
    """Compiled rulesets by their source."""

    def __call__(self, source: str, /) -> RiskRules:
        """Compile a ruleset that decided before."""
