"""Rules written to hurt: each is refused at load, or harmless and quickly answered."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml

from riskgate_server.domain.fraud.features import LineFacts
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, PurchaseFacts
from riskgate_server.domain.fraud.ruleset import RulesetInvalid
from riskgate_server.rules.loader import load_ruleset
from tests.unit.rules.documents import ruleset_source

REFUSED = {
    # Not the language.
    "python call": "__import__('os').system('true')",
    "python attribute walk": "().__class__.__bases__[0].__subclasses__()",
    "dunder on a feature": "currency.__class__ == 1",
    "lambda": "(lambda: true)()",
    "semicolon": "true; true",
    "statement": "import os",
    "comment only": "// true",
    "unbalanced": "((amount_minor > 1)",
    "quote left open": "currency == 'EUR",
    "nothing but an operator": "&&",
    "null byte": "amount_minor > 1 \x00",
    "byte order mark inside": "amount_minor \ufeff> 1",
    "template": "${amount_minor} > 1",
    # Names that do not exist.
    "misspelt feature": "amount_minr > 1",
    "self reference": "rule_id == 'hostile'",
    "environment": "env.HOME != ''",
    "file": "open('/etc/passwd') != ''",
    "network": "http.get('http://localhost') != ''",
    "clock": "now() > timestamp('2020-01-01T00:00:00Z')",
    "generated name": "f_0 > 1",
    "generated list": "currency in l_0",
    # Types.
    "text against number": "amount_minor > '1'",
    "double against whole literal": "amount_ratio > 3",
    "number as condition": "amount_minor",
    "text as condition": "currency",
    "list as condition": "blocked_devices",
    "null as condition": "null",
    "undecided type": "dyn(amount_minor)",
    "number and bool": "amount_minor && true",
    "not a number": "!amount_minor",
    "field of a number": "amount_minor.field > 1",
    "index of a number": "amount_minor[0] > 1",
    "whole number in words": "amount_minor in blocked_devices",
    "call of a feature": "amount_minor() > 1",
    "too many arguments": "currency.startsWith('a', 'b')",
    "mixed branches": "amount_minor > 1 ? true : 1",
    # Numbers.
    "literal beyond 64 bits": "amount_minor > 9223372036854775808",
    "power": "amount_minor ** 1000000 > 1",
    "power of ten": "amount_minor > 1E+999999999",
    "always divides by zero": "1 / 0 > 1",
    "always overflows": "9223372036854775807 + 1 > 0",
    "divides by the past": "amount_minor / history_count > 1",
    # Size and depth.
    "100,000 unary minus": "-" * 100_000 + "1 > 0",
    "1,900 unary minus": "-(" * 630 + "1" + ")" * 630 + " > 0",
    "deep parentheses": "(" * 900 + "amount_minor > 1" + ")" * 900,
    "deep ternary": "true ? " * 250 + "true" + " : false" * 250,
    "deep lists": "[" * 900 + "]" * 900 + " == []",
    "long sum": "amount_minor" + "+1" * 900 + " > 1",
    "many terms": "is_night" + "||is_night" * 180,
    "huge list": "amount_minor in [" + ",".join(["1"] * 950) + "]",
    "200,000 characters": "is_night || " * 16_667 + "true",
    # Loops and construction.
    "loop": "blocked_devices.all(x, x != device_id)",
    "exists": "blocked_devices.exists(x, x == device_id)",
    "nested loops": "[1,2,3].all(a,[1,2,3].all(b,[1,2,3].all(c,[1,2,3].all(d,[1,2,3].all(e, a+b+c+d+e > 0)))))",
    "map building": "blocked_devices.map(x, x + x).size() > 1",
    "filter": "blocked_devices.filter(x, x == '').size() > 1",
    "map": "{'a': 1}.size() == 1",
    "message": "google.protobuf.Int32Value{value: 1} == 1",
    "has": "has(currency.x)",
    # Regular expressions the engine cannot build.
    "repetition bomb": "currency.matches('(x{1000}){1000}')",
    "back reference": "currency.matches('(a)\\\\1')",
    "unclosed group": "currency.matches('(')",
}

HARMLESS = {
    "catastrophic in backtracking engines": "merchant_id.matches('^(a+)+$')",
    "alternation of itself": "merchant_id.matches('^(a|a|a)*$')",
    "long pattern": "merchant_id.matches('" + "a?" * 400 + "a" * 400 + "')",
    "pattern from the purchase": "merchant_id.matches(device_id)",
    "text grown by hand": "size(" + "+".join(["merchant_id"] * 20) + ") > 1",
    "timestamp of nonsense": "has_device && timestamp(device_id) > timestamp('2020-01-01T00:00:00Z')",
    "quotes and backslashes": "device_id == '\\'\"\\\\\\n' || device_id == \"');import os;('\"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_rule_is_refused_at_load(name: str) -> None:
    source = ruleset_source(when=REFUSED[name])
    started = time.process_time()

    with pytest.raises(RulesetInvalid) as refusal:
        load_ruleset(source)

    # The promise is 100 ms; the margin is for a busy machine, a hang would show all the same.
    assert time.process_time() - started < 1.0
    assert len(str(refusal.value)) < 2_000


@pytest.mark.parametrize("name", HARMLESS)
def test_an_expensive_looking_rule_is_answered_quickly(name: str) -> None:
    compiled = load_ruleset(ruleset_source(when=HARMLESS[name]))
    facts = PurchaseFacts(
        event_time_us=1, amount_minor=1, currency="EUR", merchant_id="a" * 256 + "!", device_id="(a+)+" * 50
    )
    values = compiled.features(EMPTY_PROFILE, facts, LineFacts(1, 1, 1))
    started = time.process_time()

    compiled.assess(values)

    assert time.process_time() - started < 0.5


def test_a_pattern_that_breaks_at_run_time_is_an_error_not_a_hit() -> None:
    compiled = load_ruleset(ruleset_source(when="merchant_id.matches(device_id)"))
    facts = PurchaseFacts(event_time_us=1, amount_minor=1, currency="EUR", merchant_id="m", device_id="(")

    assessment = compiled.assess(compiled.features(EMPTY_PROFILE, facts, LineFacts(1, 1, 1)))

    assert (assessment.outcome, assessment.fired, assessment.degraded) == ("REVIEW", (), True)


DOCUMENTS = {
    "aliases that multiply": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nname: *c\n",
    "python object": "name: !!python/object/apply:os.system ['true']\n",
    "tag": "name: !secret x\n",
    "deep nesting": "name: " + "[" * 50_000,
    "deep mapping": "name: " + "{a: " * 50_000,
    "closed deep nesting": "name: " + "[" * 20_000 + "]" * 20_000,
    "repeated key": "name: a\nname: b\n",
    "key that is no text": "? [a, b]\n: c\n",
    "not YAML": "name: [a\n",
    "tab": "name:\n\t- a\n",
    "control character": "name: \x07\n",
    "several documents": "name: a\n---\nname: b\n",
    "a number with too many digits": "name: " + "9" * 10_000 + "\n",
    "infinite number": "name: .inf\n",
    "date": "name: 2026-11-01\n",
    "merge": "<<: {name: a}\n",
    "only a scalar": "rules",
    "empty": "",
    "too large": "#" * 600_000,
    "lone surrogate": "name: '\ud800'\n",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_is_refused_at_load(name: str) -> None:
    started = time.process_time()

    with pytest.raises(RulesetInvalid):
        load_ruleset(DOCUMENTS[name])

    assert time.process_time() - started < 2.0


@pytest.mark.process
def test_the_whole_pack_touches_no_file_no_network_and_no_environment() -> None:
    """In a process of its own, with an audit hook that ends it on the first such act."""
    rules = [REFUSED[name] for name in REFUSED] + [HARMLESS[name] for name in HARMLESS]
    sources = [ruleset_source(when=when) for when in rules if when.isprintable()]
    program = """
import sys, yaml
from riskgate_server.domain.fraud.features import LineFacts
from riskgate_server.domain.fraud.profile import EMPTY_PROFILE, PurchaseFacts
from riskgate_server.domain.fraud.ruleset import RulesetInvalid
from riskgate_server.rules.loader import load_ruleset
sources = yaml.safe_load(sys.stdin.read())
load_ruleset(sources[-1])  # whatever is imported late is imported now
def watch(event, arguments):
    if event.startswith(("open", "os.", "socket.", "subprocess.", "shutil.", "ctypes.", "import")):
        sys.stderr.write(f"{event} {arguments}")
        sys.stderr.flush()
        raise SystemExit(3)
sys.addaudithook(watch)
facts = PurchaseFacts(event_time_us=1, amount_minor=1, currency="EUR", merchant_id="a" * 99, device_id="x")
loaded = 0
for source in sources:
    try:
        compiled = load_ruleset(source)
    except RulesetInvalid:
        continue
    loaded += 1
    compiled.explain(compiled.features(EMPTY_PROFILE, facts, LineFacts(1, 1, 1)))
print(loaded)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    done = subprocess.run(
        [sys.executable, "-c", program],
        input=yaml.safe_dump(sources),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == len(HARMLESS)
