from __future__ import annotations

import json

from webauthn import (
    base64url_to_bytes,
)
from webauthn.helpers import parse_authentication_options_json, parse_registration_options_json
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.structs import UserVerificationRequirement

from riskgate_server.domain.identity.devices import ProofPolicy
from riskgate_server.domain.identity.passkey_options import creation_options, request_options

POLICY = ProofPolicy(rp_id="bank.example", rp_name="Bank", origins=("https://bank.example",), audience="riskgate:bank")


def test_creation_options_ask_for_a_verified_user_and_name_the_keys_there_are() -> None:
    made = creation_options(
        POLICY, challenge=b"c" * 32, user_handle=b"u" * 16, user_name="Ada", exclude=[b"old"], timeout_seconds=300
    )

    options = parse_registration_options_json(made)
    assert (options.rp.id, options.user.id, options.challenge) == ("bank.example", b"u" * 16, b"c" * 32)
    assert options.timeout == 300_000
    assert [key.id for key in options.exclude_credentials or ()] == [b"old"]
    assert options.pub_key_cred_params[0].alg == COSEAlgorithmIdentifier.ECDSA_SHA_256
    assert options.authenticator_selection is not None
    assert options.authenticator_selection.user_verification == UserVerificationRequirement.REQUIRED
    assert json.loads(made)["attestation"] == "none"


def test_request_options_name_the_keys_that_may_answer() -> None:
    made = request_options(POLICY, challenge=b"c" * 32, allow=[b"one", b"two"], timeout_seconds=120)

    options = parse_authentication_options_json(made)
    assert (options.rp_id, options.challenge, options.timeout) == ("bank.example", b"c" * 32, 120_000)
    assert [key.id for key in options.allow_credentials or ()] == [b"one", b"two"]
    assert options.user_verification == UserVerificationRequirement.REQUIRED
    assert base64url_to_bytes(json.loads(made)["challenge"]) == b"c" * 32
