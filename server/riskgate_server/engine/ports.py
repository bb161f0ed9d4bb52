"""
What the engine needs from the edges, said in the engine's words.

A store moves rows and knows nothing of their meaning: states arrive and leave as bytes, so every
store holds the same bytes for the same history. Every "must" below is a test in `tests/contract/`,
run against every store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Final, Protocol

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
    NOBODY,
    BatchRow,
    BatchWrite,
    CustomerRow,
    EntryRow,
    IdentityRow,
    Lane,
    Locked,
    MessageRow,
    PaymentRow,
    PurchaseRow,
    RequestRow,
    ScopeKey,
    ScopeRow,
)


class NoKey(Enum):
    """Why a customer has no data key."""

    ABSENT = "absent"
    """The vault never had one, or lost its row."""
    FORGOTTEN = "forgotten"
    """It was destroyed, so that what it sealed is gone for good."""
    DAMAGED = "damaged"
    """Its row cannot be opened."""


JOB_LEASE_SECONDS: Final = 10.0
"""How long a periodic job stays with the process that took it: so long nobody does it when that process dies."""


MESSAGE_LEASE_SECONDS: Final = 60.0
"""How long a message is for one process alone to send."""


WRITERS_MAX: Final = 256
"""Writers of one store, numbered from 0: what a reader's token has room for."""


class Reads(Protocol):
    """Questions a transaction and a snapshot both answer. Absent is None, never an error."""

    def customer(self, key: CustomerKey) -> CustomerRow | None:
        """Return the customer's state."""

    def purchase(self, key: CustomerKey, transaction_id: str) -> PurchaseRow | None:
        """Return one purchase."""

    def payment(self, key: CustomerKey, payment_id: str) -> PaymentRow | None:
        """Return one payment."""

    def identity(self, key: CustomerKey) -> IdentityRow | None:
        """Return what the customer can prove themselves with."""

    def message(self, key: CustomerKey, message_id: str) -> MessageRow | None:
        """Return one message that was not delivered yet."""

    def messages(self, key: CustomerKey) -> Sequence[MessageRow]:
        """Return the customer's messages that were not delivered yet, by message id."""

    def lapsed(self, key: CustomerKey, now_us: int) -> Sequence[PurchaseRow]:
        """Return the customer's open holds with `lapses_us` at or before `now_us`, by (lapses_us, transaction_id)."""

    def entries(self, key: CustomerKey, *, after: int, limit: int) -> Sequence[EntryRow]:
        """Return the customer's entries with a sequence above `after`, ascending, at most `limit`."""


class Transaction(Reads, Protocol):
    """One atomic unit of work of the only writer of its lane."""

    def lock(
        self,
        keys: Sequence[CustomerKey],
        wait: Collection[CustomerKey] = frozenset(),
        known: Mapping[CustomerKey, int] = NOBODY,
    ) -> Locked:
        """
        Take customers for this transaction, before anything is read of them: once, and with all that will be named.

        Those in `wait` are waited for, in key order; of the others, who is held elsewhere is left there. `known` are
        the sequences of those whose state is at hand already: of the others it comes along.
        """

    def customers(self, keys: Sequence[CustomerKey]) -> Sequence[CustomerRow]:
        """Return the states of those of the customers that exist, in any order."""

    def found(
        self, requests: Sequence[tuple[CustomerKey, str]], purchases: Sequence[tuple[CustomerKey, str]]
    ) -> tuple[Sequence[RequestRow], Sequence[PurchaseRow]]:
        """Return what those of the request ids that were used came to, and the purchases that exist; in any order."""

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """
        Take scopes for this transaction, and return those that exist, in any order.

        Once, after the customers were locked, and with all that will be written: they are waited for in key order.
        """

    def owed(self, key: CustomerKey) -> Sequence[PurchaseRow]:
        """Return the customer's purchases that owe principal, by (owed_since, transaction_id)."""

    def next_lapse(self, key: CustomerKey, after_us: int) -> int:
        """Return the earliest `lapses_us` above `after_us` among the customer's open holds; 0 when there is none."""

    def tail(self) -> tuple[BatchRow | None, int]:
        """Return the last batch row and the position of the last entry (0 before the first)."""

    def write(self, batch: BatchWrite) -> None:
        """
        Add or replace everything in `batch`. A customer that is replaced must have been locked, a scope taken.

        Raises when an entry's (key, sequence), its position, a batch's sequence or a request id is taken.
        """


class Snapshot(Reads, AbstractContextManager["Snapshot"], Protocol):
    """
    A consistent view for reading; never sees an uncommitted row.

    Positions and batches are counted in the lane of each writer; a lane that nobody wrote is an empty one.
    """

    def lanes(self) -> Sequence[Lane]:
        """Return where every lane ends, by writer: what its writer goes on from, whatever rows there are."""

    def writers(self) -> Sequence[int]:
        """Return the numbers of all writers of whom a lane, a batch row or an entry is stored, ascending."""

    def entries_by_position(
        self, writer: int, *, after: int, limit: int, tenant_id: str = "", tag: int | None = None
    ) -> Sequence[EntryRow]:
        """Return a lane's entries with a position above `after`, ascending, at most `limit`; of one tenant and tag."""

    def entries_before(self, writer: int, *, position: int, limit: int, tenant_id: str, tag: int) -> Sequence[EntryRow]:
        """Return a tenant's entries of one tag in a lane below `position`, descending, at most `limit`."""

    def changed(self, writer: int, *, after: int, limit: int) -> Sequence[CustomerKey]:
        """Return whose the entries of a lane above `after` are, in the order of the first `limit` entries."""

    def customer_entries_before(self, key: CustomerKey, *, sequence: int, limit: int, tag: int) -> Sequence[EntryRow]:
        """Return a customer's entries of one tag with a sequence below `sequence`, descending, at most `limit`."""

    def marked(self, tag: int) -> Iterator[tuple[CustomerKey, int]]:
        """
        Yield whose the entries of one tag are and when each was recorded (UTC µs), of every tenant and lane.

        Reads no entry of another tag, however long the journal is. To be exhausted before the snapshot ends.
        """

    def purchases(self, key: CustomerKey, *, after: str, limit: int, only_open: bool) -> Sequence[PurchaseRow]:
        """Return the customer's purchases with a transaction id above `after`, ascending, at most `limit`."""

    def payments(self, key: CustomerKey) -> Sequence[PaymentRow]:
        """Return the customer's payments by payment id."""

    def scopes(self, keys: Sequence[ScopeKey]) -> Sequence[ScopeRow]:
        """Return those of the scopes that were written, as they stand, in any order."""

    def all_scopes(self, *, after: ScopeKey, limit: int) -> Sequence[ScopeRow]:
        """Return scopes that were written, as they stand, with a key above `after`, ascending, at most `limit`."""

    def messages_due(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """Return messages to be sent at or before `now_us`, the longest due first, at most `limit`."""

    def customers(self, *, after: CustomerKey, limit: int) -> Sequence[CustomerRow]:
        """Return customers with a key above `after`, ascending, at most `limit`."""

    def batches(self, writer: int, *, after: int, limit: int) -> Sequence[BatchRow]:
        """Return a lane's batch rows with a sequence above `after`, ascending, at most `limit`."""

    def requests(self, key: CustomerKey, *, after: str, limit: int) -> Sequence[RequestRow]:
        """Return the customer's requests with an id above `after`, ascending, at most `limit`."""

    def counts(self) -> Mapping[str, int]:
        """Return how many rows there are: customers and identities, purchases, and so on."""

    def ruleset_source(self, ruleset_hash: bytes) -> str | None:
        """Return the source text of a ruleset that decided here."""

    def ruleset_sources(self) -> Mapping[bytes, str]:
        """Return the source texts of all rulesets that decided here, by their hashes."""


class Snapshots(Protocol):
    """Where consistent views come from."""

    def snapshot(self) -> Snapshot:
        """
        A consistent view of everything committed so far. Safe from any thread; each call has its own.

        Entering it, and every question, raises ReadFailed when it cannot be answered now.
        """


class Store(Snapshots, Protocol):
    """Durable rows. What a transaction committed survives any crash that follows."""

    @property
    def shared(self) -> bool:
        """Whether others may write too: then what is remembered of a customer counts only at the locked version."""

    @property
    def writer(self) -> int:
        """The number of the lane that this store writes; in every entry and batch row it is given."""

    def transaction(self) -> AbstractContextManager[Transaction]:
        """
        One atomic unit of work: commits on clean exit, leaves nothing on any exception.

        Raises:
            StoreBroken: the commit failed and may or may not have happened.
            StoreFull: there was no room; nothing happened.
            StoreBusy: another program was in the way; nothing happened.
            StoreUnreachable: there is no connection, or it was lost; nothing happened.
            StoreConflict: another writer was first; nothing happened.
            OutcomeUnknown: the commit may or may not have happened; the store goes on.
        """

    def lease(self, job: str) -> bool:
        """
        Take, or keep, a job that only one of the processes that share the store is to do; False if another has it.

        For JOB_LEASE_SECONDS by the store's own clock, or until the store is closed.
        """

    def customers_due(self, now_us: int, limit: int) -> Sequence[CustomerKey]:
        """Return customers with a hold that lapsed at or before `now_us`, earliest first, at most `limit`."""

    def lease_messages(self, now_us: int, limit: int) -> Sequence[MessageRow]:
        """
        Take messages that are due at or before `now_us` and on lease to nobody: the longest due first, at most `limit`.

        No other lease has them for MESSAGE_LEASE_SECONDS by the store's own clock, however this process ends. Who
        writes a message, anew or to put it off, has it on lease for as long from then on. Belongs to the thread that
        writes, like a transaction, and raises what one does.
        """

    def forget_replies(self, before_us: int, limit: int) -> int:
        """Empty the replies of at most `limit` requests older than `before_us`, oldest first; return how many."""

    def remember_ruleset(self, ruleset_hash: bytes, source: str, at_us: int) -> None:
        """Keep the source text of a ruleset, so that what it decided can be recomputed. Again is no effect."""

    def close(self) -> None:
        """Finish; use afterwards raises."""


class Vault(Protocol):
    """Customers' data keys, apart from the store so that a key can be truly forgotten."""

    def keys(self, customers: Sequence[CustomerKey]) -> dict[CustomerKey, bytes | NoKey]:
        """Return the data key of each customer, or why there is none; one customer's damage harms no other."""

    def create(self, keys: Mapping[CustomerKey, bytes]) -> dict[CustomerKey, bytes]:
        """
        Keep new keys, durable on return, and return the keys that now stand (an older one wins).

        Raises:
            ValueError: a customer's key was forgotten, or is damaged.
        """

    def forget(self, customer: CustomerKey) -> None:
        """
        Destroy one customer's key for good.

        Who locks the customer from then on is told so; other processes read with it for at most 10 seconds more.
        """


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
