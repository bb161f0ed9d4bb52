from __future__ import annotations

from riskgate_server.cli.ledger import _text
from riskgate_server.engine.report import Report


def test_one_customer_is_one_customer() -> None:
    one = Report(customers=1, entries=1, batches=1, heads=1)
    more = Report(customers=2, entries=1_200, batches=2, heads=0)

    assert _text(one).startswith("clean: 1 entry of 1 customer\n1 commit, 1 signed head\n")
    assert _text(more).startswith("clean: 1,200 entries of 2 customers\n2 commits, 0 signed heads\n")
