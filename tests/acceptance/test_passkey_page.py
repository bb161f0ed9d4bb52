"""A real browser's passkey, from the page through its backend to a server process: what it approves, and what not."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from scripts.demonstration.process import DemoServer
from scripts.passkey_page.shop import ARTICLES, SCOPES, Article, Shop
from scripts.passkey_page.web import Page
from selenium.webdriver import Chrome

from riskgate_client import Money, ProofPurpose, Riskgate, RiskgateError
from tests.acceptance.chromium import Visitor, chromium
from tests.scripts.answering import answering

pytestmark = pytest.mark.process

LAPTOP: Final = ARTICLES["laptop"]
GOODS: Final[Mapping[str, Article]] = {
    **ARTICLES,
    "dearer": Article("Laptop", LAPTOP.payee_id, Money("CNY", LAPTOP.amount.amount_minor + 1)),
    "elsewhere": Article("Laptop", "south-electronics", LAPTOP.amount),
}
CUSTOMERS: Final = tuple(f"c{number}" for number in range(20))
WRONG: Final = "PROOF_WRONG"

TAMPERED: Final = """
    const original = navigator.credentials[arguments[0]].bind(navigator.credentials);
    navigator.credentials[arguments[0]] = ({ publicKey }) => {
        if (publicKey.authenticatorSelection) publicKey.authenticatorSelection.userVerification = "discouraged";
        else publicKey.userVerification = "discouraged";
        return original({ publicKey });
    };
"""
"""The page's own script is not to be trusted either: whoever owns the browser may change what it asks for."""

OLDER_BROWSER: Final = """
    delete PublicKeyCredential.parseCreationOptionsFromJSON;
    delete PublicKeyCredential.parseRequestOptionsFromJSON;
    delete PublicKeyCredential.prototype.toJSON;
"""

ASK_HERE: Final = """
    const told = arguments[arguments.length - 1];
    navigator.credentials.get({ publicKey: requestOptions(arguments[0]) })
        .then((credential) => told(written(credential)), (error) => told(error.name));
"""


class WatchedShop(Shop):
    """Lets a test have the assertion before it is used."""

    def __init__(self, gate: Riskgate) -> None:
        super().__init__(gate, GOODS)
        self.before: Callable[[str, str], None] = lambda _challenge_id, _assertion: None

    def finish_approval(self, customer_id: str, challenge_id: str, assertion: str) -> dict[str, Any]:
        self.before(challenge_id, assertion)
        return super().finish_approval(customer_id, challenge_id, assertion)


class Site:
    """A server, and the page before it."""

    def __init__(self, gate: Riskgate, page: Page, shop: WatchedShop) -> None:
        self.gate, self.page, self.shop = gate, page, shop
        self._numbers = itertools.count()

    def customer(self) -> str:
        """Return a customer with a line and nothing else."""
        customer_id = CUSTOMERS[next(self._numbers)]
        self.shop.open_line(customer_id)
        return customer_id

    def asked(self, customer_id: str, article: str) -> tuple[str, str]:
        """Have a customer buy what asks for a proof; return purchase and challenge."""
        bought = self.shop.buy(customer_id, article)
        assert bought["needs_proof"]
        challenge = self.gate.devices.begin_challenge(
            customer_id=customer_id, purpose=ProofPurpose.TRANSACTION, transaction_id=bought["transaction_id"]
        )
        return bought["transaction_id"], challenge.challenge_id

    def replayed(self, customer_id: str, challenge_id: str, assertion: str) -> str:
        """Return the reason why an assertion opens nothing."""
        with pytest.raises(RiskgateError) as refused:
            self.gate.devices.verify_challenge(
                customer_id=customer_id, challenge_id=challenge_id, webauthn_assertion_json=assertion
            )
        return refused.value.reason

    def outcomes(self, customer_id: str) -> set[tuple[str, str]]:
        """Return what was decided last about each of a customer's purchases."""
        newest_first = self.gate.risk.list_decisions(customer_id=customer_id)
        return {(one.transaction_id, one.outcome.value) for one in reversed(list(newest_first))}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        Page(0, CUSTOMERS) as page,
        tempfile.TemporaryDirectory() as root,
        DemoServer(Path(root)) as server,
        answering(page),
    ):
        api_key = server.add_caller_with_key("shop", (*SCOPES, "risk:read"), rate=1_000)
        server.start(clock="system", settings={"origins": page.origin})
        connection = server.by_key(api_key)
        with Riskgate(connection.address, ca=connection.ca, api_key=api_key) as gate:
            gate.wait_until_ready()
            page.shop = WatchedShop(gate)
            yield Site(gate, page, page.shop)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def visitor(browser: Chrome) -> Iterator[Visitor]:
    """Somebody whose device verifies them."""
    somebody = Visitor(browser)
    yield somebody
    somebody.leave()


@pytest.fixture
def unverified(browser: Chrome) -> Iterator[Visitor]:
    """Somebody whose device keeps passkeys, and gives them to whoever holds it."""
    somebody = Visitor(browser, verifies=False)
    yield somebody
    somebody.leave()


@pytest.mark.parametrize("older", [False, True], ids=["browser of today", "browser without JSON"])
def test_a_passkey_enrols_and_approves_the_purchase_that_is_shown(site: Site, visitor: Visitor, older: bool) -> None:  # noqa: FBT001
    ada = site.customer()
    visitor.open(site.page.origin, ada)
    if older:
        visitor.run(OLDER_BROWSER)
    visitor.click("#enrol")
    assert (visitor.sees("problem"), visitor.sees("passkeys")) == ("", f"{ada}'s passkey, level 2")

    visitor.buy("laptop")
    assert (visitor.sees("outcome"), visitor.sees("amount"), visitor.sees("payee")) == (
        "STEP_UP", "CNY 5,999.00", "north-electronics",
    )  # fmt: skip

    visitor.click("#approve")
    assert (visitor.sees("problem"), visitor.sees("outcome"), visitor.sees("approval")) == ("", "APPROVE", "")
    assert "CNY 5,999.00 to north-electronics; CNY 2,001.00 is left" in visitor.sees("about")


def test_one_assertion_is_for_one_amount_payee_and_customer_once(
    site: Site, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, ben = site.customer(), site.customer()
    for customer in (ben, ada):
        visitor.open(site.page.origin, customer)
        visitor.click("#enrol")
        assert visitor.sees("problem") == ""
    dearer, for_dearer = site.asked(ada, "dearer")
    elsewhere, for_elsewhere = site.asked(ada, "elsewhere")
    bens, for_ben = site.asked(ben, "laptop")
    before: dict[str, str] = {}
    taken: list[tuple[str, str]] = []

    def replay(challenge_id: str, assertion: str) -> None:
        """While it is still good for what it was made for."""
        taken.append((challenge_id, assertion))
        before["amount"] = site.replayed(ada, for_dearer, assertion)
        before["payee"] = site.replayed(ada, for_elsewhere, assertion)
        before["customer"] = site.replayed(ben, for_ben, assertion)
        before["customer, same challenge"] = site.replayed(ben, challenge_id, assertion)

    monkeypatch.setattr(site.shop, "before", replay)
    visitor.buy("laptop")
    visitor.click("#approve")

    assert visitor.sees("outcome") == "APPROVE"
    assert before == {
        "amount": WRONG, "payee": WRONG, "customer": WRONG, "customer, same challenge": "CHALLENGE_NOT_FOUND",
    }  # fmt: skip
    ((challenge_id, assertion),) = taken
    assert site.replayed(ada, challenge_id, assertion) == "CHALLENGE_USED"
    assert site.replayed(ada, for_dearer, assertion) == WRONG
    assert {(dearer, "STEP_UP"), (elsewhere, "STEP_UP")} <= site.outcomes(ada)
    assert site.outcomes(ben) == {(bens, "STEP_UP")}


def test_a_passkey_without_user_verification_does_not_enrol(site: Site, unverified: Visitor) -> None:
    visitor, ada = unverified, site.customer()
    visitor.open(site.page.origin, ada)
    visitor.click("#enrol")
    by_the_browser = visitor.sees("problem")

    visitor.run(TAMPERED, "create")
    visitor.click("#enrol")
    assert by_the_browser.startswith("NotAllowedError")
    assert (visitor.sees("problem"), visitor.sees("passkeys")) == (WRONG, "")


def test_a_proof_without_user_verification_approves_nothing(site: Site, visitor: Visitor) -> None:
    visitor.open(site.page.origin, site.customer())
    visitor.click("#enrol")
    visitor.browser.set_user_verified(False)
    visitor.buy("laptop")
    visitor.click("#approve")
    by_the_browser = visitor.sees("problem")

    visitor.run(TAMPERED, "get")
    visitor.click("#approve")
    assert by_the_browser.startswith("NotAllowedError")
    assert (visitor.sees("problem"), visitor.sees("outcome")) == (WRONG, "STEP_UP")


def test_a_page_by_address_is_given_no_passkey(site: Site, visitor: Visitor) -> None:
    """To browsers 127.0.0.1 is another site than localhost, though the same server answers."""
    ada = site.customer()
    visitor.open(site.page.origin, ada)
    visitor.click("#enrol")
    bought = site.shop.buy(ada, "laptop")
    begun = site.shop.begin_approval(ada, bought["transaction_id"])

    visitor.browser.get(site.page.origin.replace("localhost", "127.0.0.1"))
    assert visitor.run_until_told(ASK_HERE, begun["options"]) == "SecurityError"
    visitor.browser.get(site.page.origin)
    assertion = visitor.run_until_told(ASK_HERE, begun["options"])
    assert site.shop.finish_approval(ada, begun["challenge_id"], assertion)["outcome"] == "APPROVE"


def test_what_is_signed_for_a_page_that_is_not_ours_is_refused(site: Site, visitor: Visitor) -> None:
    """The browser lets every port of localhost have its passkeys; the server takes them from one."""
    ada = site.customer()
    visitor.open(site.page.origin, ada)
    visitor.click("#enrol")
    with Page(0, CUSTOMERS) as other, answering(other):
        other.shop = site.shop
        visitor.open(other.origin, ada)
        visitor.buy("laptop")
        visitor.click("#approve")

        assert (visitor.sees("problem"), visitor.sees("outcome")) == (WRONG, "STEP_UP")
