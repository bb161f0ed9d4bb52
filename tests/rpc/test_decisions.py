"""Reading decisions back: as answered, in lists, explained, and with what they turned out to be."""

from __future__ import annotations

import grpc
import pytest

from riskgate.risk.v1 import risk_service_pb2 as pb
from tests.rpc.calling import Api, refused, refused_of
from tests.rpc.requests import annotating, buy, buying, open_line
from tests.rpc.serving import Tenant


def get(api: Api, decision_id: str, customer: str = "ada") -> pb.Decision:
    return api.risk.GetDecision(pb.GetDecisionRequest(customer_id=customer, decision_id=decision_id)).decision


def explain(api: Api, decision_id: str) -> pb.ExplainDecisionResponse:
    return api.risk.ExplainDecision(pb.ExplainDecisionRequest(customer_id="ada", decision_id=decision_id))


def pages(api: Api, **query: object) -> list[pb.Decision]:
    """Read a list to its end."""
    request = pb.ListDecisionsRequest(**query)  # type: ignore[arg-type]  # fields by name, as the test gives them
    found: list[pb.Decision] = []
    while True:
        page = api.risk.ListDecisions(request)
        assert len(page.decisions) <= request.page_size
        found += page.decisions
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def test_a_decision_is_read_back_as_it_was_answered(ada: Api) -> None:
    answered = [buy(ada), buy(ada, phone="ask"), buy(ada, phone="look"), buy(ada, amount=10**9), buy(ada, amount=0)]

    assert [get(ada, decision.decision_id) for decision in answered] == answered
    assert {decision.outcome for decision in answered} == {1, 2, 3, 4}


def test_a_decline_without_a_line_of_that_name_is_a_decision_too(ada: Api) -> None:
    decision = buy(ada, line_id="no-such-line")

    assert decision.outcome == pb.OUTCOME_DECLINE
    assert [reason.code for reason in decision.reasons] == ["NO_CREDIT_LINE"]
    assert not decision.HasField("available_after")
    assert get(ada, decision.decision_id) == decision


@pytest.mark.parametrize("decision_id", ["d-1", "d-99", "d-0", "x", "d-", "d-0002", "d-9999999999999999999", "2"])
def test_an_id_that_names_no_decision_is_not_found(ada: Api, decision_id: str) -> None:
    buy(ada)

    assert refused(lambda: get(ada, decision_id)).name == "NOT_FOUND DECISION_NOT_FOUND"
    assert refused(lambda: explain(ada, decision_id)).name == "NOT_FOUND DECISION_NOT_FOUND"


def test_decisions_are_listed_newest_first_in_stable_pages(ada: Api) -> None:
    answered = [buy(ada).decision_id for _ in range(7)]
    first = ada.risk.ListDecisions(pb.ListDecisionsRequest(customer_id="ada", page_size=3))

    buy(ada)  # a newer one changes no later page
    rest = pages(ada, customer_id="ada", page_size=3, page_token=first.next_page_token)

    assert [d.decision_id for d in [*first.decisions, *rest]] == answered[::-1]


def test_a_list_is_of_the_outcomes_asked_for(ada: Api) -> None:
    for phone in ("", "ask", "look", "", "ask"):
        buy(ada, phone=phone)

    found = pages(ada, customer_id="ada", page_size=1, outcomes=[pb.OUTCOME_STEP_UP, pb.OUTCOME_REVIEW])

    assert [decision.outcome for decision in found] == [
        pb.OUTCOME_STEP_UP, pb.OUTCOME_REVIEW, pb.OUTCOME_STEP_UP,
    ]  # fmt: skip


def test_a_tenants_list_has_all_its_customers_and_nobody_elses(tenant: Tenant) -> None:
    other = tenant.running.tenant()
    for customer in ("ada", "bob"):
        open_line(tenant.api, customer)
        open_line(other.api, customer)
    mine = []
    for _ in range(3):
        mine += [buy(tenant.api, "ada"), buy(tenant.api, "bob")]
        buy(other.api, "ada")

    assert pages(tenant.api, page_size=2) == mine[::-1]


@pytest.mark.parametrize("token", ["nonsense", "-1", "1.5", "١", "9" * 19, "1\n"])
def test_a_token_that_no_page_gave_is_refused(ada: Api, token: str) -> None:
    lists = refused(lambda: ada.risk.ListDecisions(pb.ListDecisionsRequest(customer_id="ada", page_token=token)))
    watches = refused(lambda: next(ada.risk.WatchDecisions(pb.WatchDecisionsRequest(resume_token=token))))

    assert {lists.name, watches.name} == {"INVALID_ARGUMENT TOKEN_INVALID"}
    assert ([*lists.fields], [*watches.fields]) == (["page_token"], ["resume_token"])


def test_a_token_is_good_for_nothing_but_the_list_it_came_from(tenant: Tenant) -> None:
    """Not for another customer's, another tenant's, the journal's or a watch, and not with a bit changed."""
    other = tenant.running.tenant().api
    for api, customer in ((tenant.api, "ada"), (tenant.api, "bob"), (other, "ada")):
        open_line(api, customer)
        for _ in range(2):
            buy(api, customer)
    request = pb.ListDecisionsRequest(customer_id="ada", page_size=1)
    token = tenant.api.risk.ListDecisions(request).next_page_token
    request.page_token = token
    changed = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]

    asked = pb.ListDecisionsRequest
    attempts = [
        (other, asked(customer_id="ada", page_token=token)),
        (tenant.api, asked(customer_id="bob", page_token=token)),
        (tenant.api, asked(page_token=token)),
        (tenant.api, asked(customer_id="ada", page_token=changed)),
        (tenant.api, asked(customer_id="ada", page_token=f"{token}=")),
    ]
    refusals = []
    for api, attempt in attempts:
        with pytest.raises(grpc.RpcError) as error:
            api.risk.ListDecisions(attempt)
        refusals.append(refused_of(error.value))
    watch = refused(lambda: next(tenant.api.risk.WatchDecisions(pb.WatchDecisionsRequest(resume_token=token))))

    assert len(tenant.api.risk.ListDecisions(request).decisions) == 1
    assert {refusal.name for refusal in [*refusals, watch]} == {"INVALID_ARGUMENT TOKEN_INVALID"}
    assert [[*refusal.fields] for refusal in refusals] == [["page_token"]] * 5
    assert [*watch.fields] == ["resume_token"]


@pytest.mark.parametrize("phone", ["", "ask", "look", "stolen"])
def test_an_explanation_reproduces_the_decision(ada: Api, phone: str) -> None:
    decision = buy(ada, phone=phone)

    explanation = explain(ada, decision.decision_id)

    hits = [rule for rule in explanation.rules if rule.result == pb.RULE_RESULT_HIT]
    assert explanation.reproduced
    assert explanation.decision == decision
    assert [rule.rule_id for rule in explanation.rules] == ["ask", "look", "stolen"]
    assert [rule.rule_id for rule in hits] == ([phone] if phone else [])
    assert all(rule.why and rule.expression == f'device_id == "{rule.rule_id}"' for rule in explanation.rules)
    assert (
        {feature.name: feature.string_value for feature in hits[0].features} == {"device_id": phone} if hits else True
    )
    assert {feature.name for feature in explanation.features} >= {"device_id"}


def test_the_truth_about_a_decision_is_appended_and_shown(ada: Api) -> None:
    decision = buy(ada)

    first = ada.risk.AnnotateDecision(annotating(decision.decision_id, note="the bank says so")).annotation
    second = ada.risk.AnnotateDecision(annotating(decision.decision_id, label=pb.LABEL_CONFIRMED_FRAUD)).annotation

    assert (first.label, first.decision_id, first.actor_id) == (pb.LABEL_CHARGEBACK, decision.decision_id, "disputes")
    assert list(explain(ada, decision.decision_id).annotations) == [first, second]
    assert get(ada, decision.decision_id) == decision


def test_only_decisions_are_annotated(ada: Api) -> None:
    refusal = refused(lambda: ada.risk.AnnotateDecision(annotating("d-1")))

    assert refusal.name == "NOT_FOUND DECISION_NOT_FOUND"


def test_an_unknown_customer_is_not_found_by_any_question_or_command(api: Api) -> None:
    assert refused(lambda: api.risk.CheckTransaction(buying("nobody"))).name == "NOT_FOUND CUSTOMER_NOT_FOUND"
    assert refused(lambda: pages(api, customer_id="nobody", page_size=1)).name == "NOT_FOUND CUSTOMER_NOT_FOUND"
    assert refused(lambda: get(api, "d-1", "nobody")).name == "NOT_FOUND CUSTOMER_NOT_FOUND"
    assert refused(lambda: explain(api, "d-1")).name == "NOT_FOUND CUSTOMER_NOT_FOUND"
