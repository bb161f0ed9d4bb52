"""A customer's phone, as far as messages go: the file outbox, and the code of a challenge in it."""

from __future__ import annotations

import json
from typing import Any

import pyotp

from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.keys import PROOFS
from riskgate_server.opening import secret_ring
from tests.rpc.requests import CUSTOMER, new_id
from tests.rpc.serving import Tenant

NUMBER = "+86 138 1234 5678"
SIGN_IN = grant_pb2.PROOF_PURPOSE_SIGN_IN
TRANSACTION = grant_pb2.PROOF_PURPOSE_TRANSACTION
BINDING = grant_pb2.PROOF_PURPOSE_BINDING


def messages(tenant: Tenant, number: str = "") -> list[dict[str, Any]]:
    """Return what arrived on a tenant's phones, oldest first; on one of them if it is named."""
    lines = tenant.running.deployment.directory.outbox.read_bytes().splitlines()
    found = [json.loads(line) for line in lines]
    return [m for m in found if m["tenant_id"] == tenant.name and number in ("", m["destination"])]


def code_of(tenant: Tenant, challenge_id: str, customer: str = CUSTOMER) -> str:
    """Return the code a phone shows. A message does not say which challenge it is of: the engine's keys do."""
    ring = secret_ring(PROOFS, tenant.running.deployment.directory.proofs_key)
    secrets = DerivedSecrets(ring)
    codes = {secrets.code(key_id, (tenant.name, customer), challenge_id) for key_id in ring}
    (code,) = codes & {m["parameters"].get("code", "") for m in messages(tenant)}
    return code


def other_than(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def whose(customer: str = CUSTOMER) -> dict[str, str]:
    return {"request_id": new_id(), "customer_id": customer}


def confirmed_phone(tenant: Tenant, customer: str = CUSTOMER, number: str = NUMBER) -> str:
    """Enrol and confirm a phone; return the factor's id."""
    otp = tenant.api.otp
    enrolled = otp.EnrollPhone(pb.EnrollPhoneRequest(**whose(customer), phone_number=number))
    code = code_of(tenant, enrolled.challenge.challenge_id, customer)
    factor_id: str = enrolled.factor.factor_id
    otp.ConfirmFactor(pb.ConfirmFactorRequest(**whose(customer), factor_id=factor_id, code=code))
    return factor_id


def sent(tenant: Tenant, customer: str = CUSTOMER, purpose: Any = SIGN_IN, transaction_id: str = "") -> str:
    """Have a code sent and return its challenge."""
    request = pb.SendCodeRequest(**whose(customer), purpose=purpose, transaction_id=transaction_id)
    challenge_id: str = tenant.api.otp.SendCode(request).challenge.challenge_id
    return challenge_id


def verify(tenant: Tenant, challenge_id: str, code: str, customer: str = CUSTOMER, **fields: Any) -> grant_pb2.Grant:
    request = pb.VerifyCodeRequest(**(whose(customer) | fields), challenge_id=challenge_id, code=code)
    return tenant.api.otp.VerifyCode(request).grant


def granted(tenant: Tenant, transaction_id: str, customer: str = CUSTOMER) -> str:
    """Prove by a code that a purchase is wanted; return the grant's token."""
    challenge_id = sent(tenant, customer, TRANSACTION, transaction_id)
    token: str = verify(tenant, challenge_id, code_of(tenant, challenge_id, customer), customer).token
    return token


def binding_grant(tenant: Tenant, customer: str = CUSTOMER) -> str:
    """Prove by a code that a further factor or device is the customer's; return the grant's token."""
    challenge_id = sent(tenant, customer, BINDING)
    token: str = verify(tenant, challenge_id, code_of(tenant, challenge_id, customer), customer).token
    return token


def enrolled_app(tenant: Tenant, grant: str = "") -> tuple[str, pyotp.TOTP]:
    """Give ada an authenticator app that waits to be confirmed."""
    request = pb.EnrollTotpRequest(**whose(), label="ada's phone", binding_grant=grant)
    enrolled = tenant.api.otp.EnrollTotp(request)
    app = pyotp.parse_uri(enrolled.otpauth_uri)
    # What customers know, of the settings' making; the tenant's name is none of theirs.
    assert (app.issuer, app.name) == ("Riskgate", "ada's phone")
    assert isinstance(app, pyotp.TOTP)
    assert app.secret == enrolled.seed_base32
    return enrolled.factor.factor_id, app


def confirm_app(tenant: Tenant, factor_id: str, code: str) -> pb.Factor:
    request = pb.ConfirmFactorRequest(**whose(), factor_id=factor_id, code=code)
    return tenant.api.otp.ConfirmFactor(request).factor


def verify_app(tenant: Tenant, factor_id: str, code: str, purpose: Any = SIGN_IN) -> grant_pb2.Grant:
    request = pb.VerifyCodeRequest(**whose(), factor_id=factor_id, code=code, purpose=purpose)
    return tenant.api.otp.VerifyCode(request).grant


def never(app: pyotp.TOTP, now: float) -> str:
    """A code that an app shows neither now nor a few steps before or after."""
    shown = {app.at(now + 30 * step) for step in range(-4, 5)}
    return next(code for code in map(str, range(100_000, 100_010)) if code not in shown)
