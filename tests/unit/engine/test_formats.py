"""What was once written must be readable for ever: numbers, orders and hashes that never change."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from riskgate_server.domain import journal
from riskgate_server.domain.customer import new_customer
from riskgate_server.domain.events import Event
from riskgate_server.domain.journal import Aggregate
from riskgate_server.domain.ledger.holds import Purchase
from riskgate_server.engine import commands, sealing
from riskgate_server.engine.decide import USE_CASES
from riskgate_server.engine.rows import BatchRow, EntryRow

LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The published vectors of Certificate Transparency, whose tree RFC 9162 keeps."""


@pytest.mark.parametrize("count", range(1, 9))
def test_a_batch_has_the_merkle_root_of_rfc_9162(count: int) -> None:
    leaves = [bytes.fromhex(leaf) for leaf in LEAVES[:count]]

    assert sealing.merkle_root(leaves).hex() == ROOTS[count - 1]


EVENTS = {
    "LineOpened": (
        1,
        "line_id currency limit_minor product_id time_zone decision_reference actor_id",
    ),
    "PurchaseDecided": (
        2,
        """line_id transaction_id terms outcome reasons risk_score ruleset_version ruleset_hash engine_version currency
        requested_minor held_minor available_minor event_us expires_us review_deadline_us step_up_expires_us
        block_id degraded replaces_event_us fired""",
    ),
    "HoldCaptured": (3, "transaction_id captured_minor released_minor forced"),
    "HoldIncremented": (4, "transaction_id amount_minor"),
    "HoldVoided": (5, "transaction_id released_minor"),
    "HoldExpired": (6, "transaction_id expired_minor refused_by"),
    "CaptureRefunded": (7, "transaction_id to_principal_minor to_credit_minor"),
    "PaymentRecorded": (8, "line_id payment_id amount_minor allocations to_credit_minor value_us"),
    "PaymentReversed": (9, "payment_id reason_code actor_id"),
    "BlockPlaced": (10, "line_id block"),
    "BlockLifted": (11, "line_id block_id kind actor_id complete"),
    "LineClosed": (12, "line_id withdrawn_minor reason_code actor_id"),
    "DecisionAnnotated": (13, "decision_sequence label actor_id"),
    "ReviewPassed": (14, "transaction_id actor_id"),
    "CommandRefused": (15, "command reason family"),
    "CreditUsed": (16, "line_id uses"),
    "CustomerErased": (40, "reason_code actor_id"),
    "FactorEnrolled": (17, "factor_id method mark prefix expires_us"),
    "FactorConfirmed": (18, "factor_id challenge_id step full_strength_us"),
    "FactorRevoked": (19, "factor_id reason_code actor_id"),
    "CodeSent": (20, "challenge_id factor_id use key_id expires_us resend_us message_id again"),
    "CodeUnsent": (21, "challenge_id message_id"),
    "ProofFailed": (22, "source challenge_id reason failures locked_until_us burned"),
    "ProofPassed": (
        23,
        "source challenge_id use level sources mark expires_us replaces step spent_code",
    ),
    "GrantSpent": (24, "mark use level destroyed"),
    "RecoveryCodesMade": (25, "factor_id full_strength_us"),
    "MessageSettled": (26, "message_id outcome"),
    "EnrolmentBegun": (27, "enrolment_id platform expires_us granted"),
    "DeviceEnrolled": (
        28,
        "credential_id enrolment_id platform marks assurance attestation full_strength_us",
    ),
    "DevicesRevoked": (29, "credential_ids reason_code actor_id every"),
    "ChallengeIssued": (30, "challenge_id use credential_ids expires_us"),
}


def test_events_keep_their_tags_and_the_order_of_their_fields() -> None:
    """Fields may follow at the end, with a default."""
    found: dict[str, tuple[int, list[str]]] = {}
    for event in Event.__args__:
        _, known = EVENTS.get(event.__name__, (0, ""))
        count = len(known.split())
        found[event.__name__] = (event.__struct_config__.tag, [*event.__struct_fields__[:count]])
        assert all(field.default is not msgspec.NODEFAULT for field in msgspec.structs.fields(event)[count:])

    assert found == {name: (tag, fields.split()) for name, (tag, fields) in EVENTS.items()}


def test_every_event_has_its_effect_and_every_command_its_use_case() -> None:
    assert set(journal._EVOLVERS) == set(Event.__args__)
    abstract = {commands.Command, commands.PurchaseCommand}
    concrete = {
        kind for kind in vars(commands).values() if isinstance(kind, type) and issubclass(kind, commands.Command)
    }
    assert set(USE_CASES) == concrete - abstract


def test_a_customer_in_the_making_has_no_purchases() -> None:
    """An aggregate shares nothing with another."""
    one, two = Aggregate(new_customer("acme", "ada")), Aggregate(new_customer("acme", "ada"))
    one.purchases["t"] = Purchase("t", "", b"", 1)

    assert two.purchases == {}


def test_an_entrys_hash_covers_the_chain_the_header_and_every_part() -> None:
    row = EntryRow(("acme", "ada"), 3, 9, 2, 1_700, 5, "r1", b"clear", b"nonce", b"sealed", b"")
    header = msgspec.msgpack.encode(["acme", "ada", 3, 1_700, 5, "r1"])
    whole = bytes(32) + b"%d.5.6." % len(header) + header + b"clear" + b"nonce" + b"sealed"

    assert sealing.entry_hash(row, bytes(32)) == hashlib.sha256(whole).digest()


def test_a_batchs_hash_covers_the_batch_before_it_and_every_field() -> None:
    row = BatchRow(2, 1_700, 4, 3, b"root", b"", writer=5)
    whole = b"\x07" * 32 + msgspec.msgpack.encode([5, 2, 1_700, 4, 3, b"root"])

    assert sealing.batch_hash(row, b"\x07" * 32) == hashlib.sha256(whole).digest()


def test_no_two_lanes_begin_alike() -> None:
    assert sealing.genesis(0) == hashlib.sha256(b"riskgate lane 0").digest()
    assert len({sealing.genesis(writer) for writer in range(300)}) == 300
