from __future__ import annotations

from itertools import product

import msgspec
import pytest

from riskgate_server.domain.credit.line import (
    TWO_PERSON_LIFT,
    Block,
    BlockKind,
    CreditLine,
    LifeCycle,
    LineState,
    require_closable,
    require_liftable,
    require_spendable,
)
from riskgate_server.domain.errors import NotFound, PermissionRefused, PreconditionFailed
from riskgate_server.domain.ledger import postings
from tests.factories import DAY_US, NOW_US

OPEN = postings.post(postings.EMPTY_BOOKS, postings.grant_limit(1_000))

DESKS: dict[str, set[BlockKind]] = {
    "fraud desk": {BlockKind.FRAUD_SOFT, BlockKind.FRAUD_HARD},
    "customer": {BlockKind.FRAUD_SOFT, BlockKind.CUSTOMER_LOCK},
    "collections": {BlockKind.DELINQUENCY, BlockKind.HARDSHIP},
    "compliance officer": {BlockKind.COMPLIANCE},
    "nobody": set(),
    "administrator": set(BlockKind),
}
"""Who may lift what: a caller's scopes as the engine is told them."""


def block(kind: BlockKind = BlockKind.FRAUD_SOFT, name: str = "b-1", **fields: object) -> Block:
    return msgspec.structs.replace(Block(name, kind, "WHY", "olga", NOW_US), **fields)


def line(*blocks: Block, **fields: object) -> CreditLine:
    made = CreditLine("line-1", "CNY", "standard", "UTC", NOW_US, "decision-1", books=OPEN, blocks=blocks)
    return msgspec.structs.replace(made, **fields)


def lift(standing: Block, *, by: str = "olga", kinds: set[BlockKind], now_us: int = NOW_US) -> bool:
    return require_liftable(standing, actor_id=by, liftable=frozenset(kinds), now_us=now_us)


# --- Who may lift which block (invariant 22), every pair of desk and kind. ---

MATRIX = list(product(DESKS, BlockKind))


@pytest.mark.parametrize(("desk", "kind"), [pair for pair in MATRIX if pair[1] not in DESKS[pair[0]]])
def test_a_desk_that_may_not_lift_a_kind_of_block_is_refused(desk: str, kind: BlockKind) -> None:
    with pytest.raises(PermissionRefused) as refused:
        lift(block(kind), kinds=DESKS[desk])

    assert refused.value.reason == "BLOCK_LIFT_FORBIDDEN"
    assert refused.value.details == {"kind": kind.name}


@pytest.mark.parametrize(("desk", "kind"), [pair for pair in MATRIX if pair[1] in DESKS[pair[0]]])
def test_a_desk_that_may_lift_a_kind_of_block_lifts_it_or_is_the_first_of_two(desk: str, kind: BlockKind) -> None:
    assert lift(block(kind), kinds=DESKS[desk]) is (kind not in TWO_PERSON_LIFT)


def test_confirmed_fraud_is_lifted_by_two_different_people_only() -> None:
    hard = block(BlockKind.FRAUD_HARD)
    agreed = block(BlockKind.FRAUD_HARD, lift_approved_by="olga")

    assert lift(hard, by="olga", kinds=set(BlockKind)) is False
    assert lift(agreed, by="peer", kinds=set(BlockKind)) is True
    with pytest.raises(PermissionRefused) as refused:
        lift(agreed, by="olga", kinds=set(BlockKind))
    assert refused.value.reason == "SECOND_PERSON_REQUIRED"


def test_who_may_not_lift_is_told_so_before_anything_else() -> None:
    lapsed = block(expires_us=NOW_US)

    with pytest.raises(PermissionRefused):
        lift(lapsed, kinds=set())


def test_a_block_that_lapsed_cannot_be_lifted() -> None:
    with pytest.raises(PreconditionFailed) as refused:
        lift(block(expires_us=NOW_US), kinds=set(BlockKind))

    assert refused.value.reason == "BLOCK_NOT_STANDING"


# --- What a line may do. ---


def test_a_block_stands_until_the_moment_it_lapses_and_without_one_for_ever() -> None:
    until = block(expires_us=NOW_US + DAY_US)

    assert until.stands(NOW_US + DAY_US - 1)
    assert not until.stands(NOW_US + DAY_US)
    assert block().stands(2**62)


@pytest.mark.parametrize("kind", BlockKind)
def test_any_standing_block_stops_spending(kind: BlockKind) -> None:
    with pytest.raises(PreconditionFailed) as refused:
        require_spendable(line(block(kind)), NOW_US)

    assert refused.value.reason == "LINE_BLOCKED"


def test_spending_is_free_again_only_when_the_last_block_is_gone() -> None:
    """Invariant 21: permission is the AND of all blocks."""
    first, second = block(name="b-1", expires_us=NOW_US + 1), block(name="b-2", expires_us=NOW_US + 2)

    for now_us in (NOW_US, NOW_US + 1):
        with pytest.raises(PreconditionFailed):
            require_spendable(line(first, second), now_us)
    require_spendable(line(first, second), NOW_US + 2)
    require_spendable(line(), NOW_US)


@pytest.mark.parametrize("again", ["alice", "alice ", " alice", "Alice", "ALICE\t"])
def test_one_person_does_not_become_two_by_another_spelling(again: str) -> None:
    agreed = block(BlockKind.FRAUD_HARD, lift_approved_by="alice")

    with pytest.raises(PermissionRefused, match="SECOND_PERSON_REQUIRED"):
        require_liftable(agreed, actor_id=again, liftable=frozenset(BlockKind), now_us=NOW_US)
    assert require_liftable(agreed, actor_id="alicia", liftable=frozenset(BlockKind), now_us=NOW_US)


@pytest.mark.parametrize("life", [LifeCycle.CLOSED, LifeCycle.CHARGED_OFF])
def test_an_ended_line_cannot_spend_nor_end_again(life: LifeCycle) -> None:
    ended = line(life_cycle=life)

    with pytest.raises(PreconditionFailed, match="LINE_NOT_ACTIVE"):
        require_spendable(ended, NOW_US)
    with pytest.raises(PreconditionFailed, match="LINE_NOT_ACTIVE"):
        require_closable(ended)


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ([], LineState.ACTIVE),
        ([BlockKind.FRAUD_SOFT], LineState.SUSPENDED),
        ([BlockKind.FRAUD_HARD], LineState.SUSPENDED),
        ([BlockKind.CUSTOMER_LOCK], LineState.SUSPENDED),
        ([BlockKind.DELINQUENCY], LineState.FROZEN),
        ([BlockKind.COMPLIANCE], LineState.FROZEN),
        ([BlockKind.HARDSHIP], LineState.FROZEN),
        ([BlockKind.COMPLIANCE, BlockKind.FRAUD_SOFT], LineState.FROZEN),
    ],
)
def test_the_visible_state_is_the_worst_of_the_blocks(kinds: list[BlockKind], state: LineState) -> None:
    blocks = [block(kind, f"b-{n}") for n, kind in enumerate(kinds)]

    assert line(*blocks).state(NOW_US) is state
    assert line(*blocks, life_cycle=LifeCycle.CLOSED).state(NOW_US) is LineState.CLOSED
    assert line(*blocks, life_cycle=LifeCycle.CHARGED_OFF).state(NOW_US) is LineState.CHARGED_OFF


def test_a_lapsed_block_does_not_show_but_can_still_be_named() -> None:
    lapsed = block(expires_us=NOW_US)

    assert line(lapsed).state(NOW_US) is LineState.ACTIVE
    assert line(lapsed).standing_blocks(NOW_US) == ()
    assert line(lapsed).block("b-1") is lapsed


def test_a_block_of_another_name_is_not_found() -> None:
    with pytest.raises(NotFound) as refused:
        line(block()).block("B-1")

    assert refused.value.reason == "BLOCK_NOT_FOUND"


@pytest.mark.parametrize(
    "transfers",
    [
        postings.authorise(1),
        postings.draw(1),
        postings.payment(0, 1),
    ],
    ids=["holds", "owes", "is owed"],
)
def test_a_line_in_use_cannot_be_closed(transfers: tuple[postings.Transfer, ...]) -> None:
    with pytest.raises(PreconditionFailed) as refused:
        require_closable(line(books=postings.post(OPEN, transfers)))

    assert refused.value.reason == "LINE_IN_USE"


def test_a_line_at_rest_can_be_closed_whatever_blocks_stand() -> None:
    require_closable(line())
    require_closable(line(block(BlockKind.COMPLIANCE)))
