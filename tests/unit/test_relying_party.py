"""A relying party that is set up wrongly is told so at the start, by the name of the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riskgate_server.crypto.proofs import AttestationTrust
from riskgate_server.domain.identity.devices import AndroidApp, Platform
from riskgate_server.relying_party import RelyingPartyRefused, TrustFiles, read_policy, read_trust
from riskgate_server.settings import Settings
from tests.rpc.logs import logs
from tests.unit.crypto.proofs.makers import ROOT

APK = "android:apk-key-hash:pNiP5iKyQ8JwgGOaKA1zGPUPJIS-0H1xKCQcfIoGLck"


def settings(**fields: Any) -> Settings:
    return Settings(data="data", **fields)


def test_a_demo_on_this_machine_needs_no_settings() -> None:
    policy = read_policy(settings())

    assert (policy.rp_id, policy.origins, policy.audience) == ("localhost", ("http://localhost:8080",), "riskgate")
    assert (policy.attestation, policy.app_attest, policy.user_verification) == (False, False, True)
    assert policy.platforms == set(Platform)
    trust, shipped = read_trust(settings()), AttestationTrust()
    assert (trust.android_roots, trust.apple_roots) == (shipped.android_roots, shipped.apple_roots)


def test_a_bank_names_its_pages_apps_and_what_must_vouch_for_them() -> None:
    policy = read_policy(
        settings(
            rp_id="bank.example",
            origins=f"https://bank.example, https://pay.bank.example:8443,{APK}",
            platforms="android, ios",
            attestation="android, ios",
            guarded_use=True,
            android_apps=f"com.bank.app={'ab' * 32}",
            apple_app_ids="TEAM123456.com.bank.app",
        )
    )

    assert policy.origins == ("https://bank.example", "https://pay.bank.example:8443", APK)
    assert (policy.attestation, policy.app_attest, policy.guarded_use) == (True, True, True)
    assert policy.platforms == {Platform.ANDROID_KEYSTORE, Platform.IOS_SECURE_ENCLAVE}
    assert policy.android_apps == (AndroidApp("com.bank.app", b"\xab" * 32),)
    assert policy.apple_app_ids == ("TEAM123456.com.bank.app",)


@pytest.mark.parametrize(
    "fields",
    [
        {"rp_id": "Bank.example"},
        {"rp_id": "https://bank.example"},
        {"rp_id": "127.0.0.1"},
        {"rp_id": "bank.example:443"},
        {"rp_id": ""},
        {"origins": ""},
        {"origins": "http://bank.example"},
        {"origins": "http://localhost.bank.example"},
        {"origins": "https://bank.example/"},
        {"origins": "https://bank.example:443"},
        {"origins": "https://Bank.example"},
        {"origins": "https://bank.example.evil.example"},
        {"origins": "https://notbank.example"},
        {"origins": "https://user@bank.example"},
        {"origins": "https://bank.example:99999"},
        {"origins": "bank.example"},
        {"origins": "android:apk-key-hash:short"},
        {"platforms": ""},
        {"platforms": "android,windows"},
        {"attestation": "windows"},
        {"attestation": "android", "platforms": "ios,webauthn"},
        {"attestation": "ios"},
        {"android_apps": "com.bank.app"},
        {"apple_app_ids": "com.bank.app"},
        {"proof_audience": ""},
    ],
    ids=lambda fields: "-".join(f"{name}={value}" for name, value in fields.items()),
)
def test_a_setting_that_makes_no_sense_is_named(fields: dict[str, str]) -> None:
    whole = {"rp_id": "bank.example", "origins": "https://bank.example"} | fields

    with pytest.raises(RelyingPartyRefused, match=f"^RISKGATE_{next(iter(fields)).upper()}: "):
        read_policy(settings(**whole))


def test_roots_of_ones_own_replace_those_that_are_shipped(tmp_path: Path) -> None:
    roots, revoked = tmp_path / "roots.pem", tmp_path / "status.json"
    roots.write_bytes(ROOT.key_pem)
    revoked.write_text('{"entries": {"c0ffee": {"status": "REVOKED"}}}')

    trust = read_trust(settings(android_roots=str(roots), android_revocations=str(revoked), apple_roots=str(roots)))
    assert trust.android_roots == trust.apple_roots
    assert trust.android_roots != AttestationTrust().android_roots
    assert trust.android_revoked == {0xC0FFEE}


@pytest.mark.parametrize("name", ["android_roots", "android_revocations", "apple_roots"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"], ids=["missing", "empty", "nonsense"])
def test_a_file_that_is_no_good_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(RelyingPartyRefused, match=f"^RISKGATE_{name.upper()}: {path}: "):
        read_trust(settings(**{name: str(path)}))


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def revoking(*serials: str) -> str:
    return json.dumps({"entries": {serial: {"status": "REVOKED"} for serial in serials}})


def test_a_file_that_was_replaced_is_read_again_within_a_second(tmp_path: Path) -> None:
    status, seconds = tmp_path / "status.json", Seconds()
    status.write_text(revoking())
    trust = TrustFiles(settings(android_revocations=str(status)), monotonic=seconds)
    before = trust.now()
    status.write_text(revoking("c0ffee"))
    at_once = trust.now()
    seconds.now = 1.0

    with logs() as log:
        assert trust.now().android_revoked == {0xC0FFEE}
        assert trust.now() is trust.now()
    assert at_once is before
    assert before.android_revoked == set()
    assert [line["android_revoked"] for line in log.of("attestation trust renewed")] == [1]


@pytest.mark.parametrize("content", [None, b"", b"nonsense"], ids=["missing", "empty", "nonsense"])
def test_a_broken_file_leaves_what_it_last_said_and_is_named_once(tmp_path: Path, content: bytes | None) -> None:
    status, seconds = tmp_path / "status.json", Seconds()
    status.write_text(revoking("c0ffee"))
    trust = TrustFiles(settings(android_revocations=str(status)), monotonic=seconds)
    whole = trust.now()
    assert not trust.refused
    status.unlink()
    if content is not None:
        status.write_bytes(content)

    with logs() as log:
        for _ in range(3):
            seconds.now += 1.0
            assert trust.now() is whole
            assert trust.refused
        (line,) = log.of("attestation trust not renewed")
        assert line["why"].startswith(f"RISKGATE_ANDROID_REVOCATIONS: {status}: ")

        status.write_text(revoking("c0ffee", "decaf"))
        seconds.now += 1.0
        assert (trust.refused, trust.now().android_revoked) == (False, frozenset({0xC0FFEE, 0xDECAF}))
