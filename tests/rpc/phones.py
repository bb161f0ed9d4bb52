"""A customer's phone, as far as messages go: it reads what waits to be sent to it, and shows the code."""

from __future__ import annotations

from typing import Any

from riskgate.identity.v1 import grant_pb2
from riskgate.identity.v1 import otp_service_pb2 as pb
from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.keys import MASTER, PROOFS, MasterKey
from riskgate_server.crypto.seal import Sealer
from riskgate_server.engine import sealing
from riskgate_server.engine.messages import CodeMessage, decode_payload
from riskgate_server.opening import secret, secret_ring
from riskgate_server.stores.sqlite.store import SQLiteSnapshots
from riskgate_server.stores.sqlite.vault import SqliteVault
from tests.rpc.requests import CUSTOMER, new_id
from tests.rpc.serving import Tenant

NUMBER = "+86 138 1234 5678"
SIGN_IN = grant_pb2.PROOF_PURPOSE_SIGN_IN
TRANSACTION = grant_pb2.PROOF_PURPOSE_TRANSACTION
BINDING = grant_pb2.PROOF_PURPOSE_BINDING


def messages(tenant: Tenant, customer: str = CUSTOMER) -> list[Any]:
    """Return what waits to be sent to a customer."""
    directory = tenant.running.deployment.directory
    master = MasterKey(secret(MASTER, directory.master_key))
    vault = SqliteVault(directory.vault, wrap=master.wrap, unwrap=master.unwrap, read_only=True)
    snapshots = SQLiteSnapshots(directory.store)
    key = (tenant.name, customer)
    try:
        data_key = vault.keys([key])[key]
        assert isinstance(data_key, bytes)
        with snapshots.snapshot() as snapshot:
            rows = sorted(snapshot.messages(key), key=lambda row: row.due_us)
        return [decode_payload(sealing.unseal_message(row, data_key, Sealer())) for row in rows]
    finally:
        snapshots.close()
        vault.close()


def code_of(tenant: Tenant, challenge_id: str, customer: str = CUSTOMER) -> str:
    """Return the code a phone shows."""
    secrets = DerivedSecrets(secret_ring(PROOFS, tenant.running.deployment.directory.proofs_key))
    (key_id,) = {
        m.key_id for m in messages(tenant, customer) if isinstance(m, CodeMessage) and m.challenge_id == challenge_id
    }
    return secrets.code(key_id, (tenant.name, customer), challenge_id)


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
