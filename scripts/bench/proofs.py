"""What checking a proof costs the server: a code, and a device's signature, beside a bare verification of one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from scripts.bench.process import Process, measure

from riskgate_client import AsyncRiskgate, DevicePlatform, Money, ProofPurpose, RawKeyAnswer
from riskgate_client.phone import AndroidPhone

CUSTOMERS = 1_000
AT_ONCE = 32
BARE = 4_000

_T = TypeVar("_T")
_R = TypeVar("_R")


async def run(gate: Process, address: str, *, key: str, ca: bytes, outbox: Path) -> dict[str, float]:
    """Return verifications per core-second of the server for both kinds, and of the bare library."""
    async with AsyncRiskgate(address, ca=ca, api_key=key, timeout=30) as client:
        people = [f"prover-{n}" for n in range(CUSTOMERS)]
        await _each(people, lambda who: _open(client, who))
        codes = await _codes(client, people, outbox)
        code_cpu, _ = await measure(_each(codes, lambda sent: _verify_code(client, *sent)), gate)
        people = [f"signer-{n}" for n in range(CUSTOMERS)]
        await _each(people, lambda who: _open(client, who))
        signed = await _each(people, lambda who: _signed(client, who))
        signature_cpu, _ = await measure(_each(signed, lambda proof: _verify_signature(client, *proof)), gate)
    bare = _bare()
    return {
        "code_verifications_per_core_second": CUSTOMERS / code_cpu,
        "signature_verifications_per_core_second": CUSTOMERS / signature_cpu,
        "bare_signature_verifications_per_core_second": bare,
        "signature_to_bare_ratio": CUSTOMERS / signature_cpu / bare,
    }


async def _each(items: Sequence[_T], work: Callable[[_T], Awaitable[_R]]) -> list[_R]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(item: _T) -> _R:
        async with turns:
            return await work(item)

    return list(await asyncio.gather(*map(one, items)))


async def _open(client: AsyncRiskgate, who: str) -> None:
    await client.lines.open(
        customer_id=who, line_id="main", limit=Money("CNY", 100_000), decision_reference="bench", actor_id="bench"
    )


async def _codes(client: AsyncRiskgate, people: Sequence[str], outbox: Path) -> list[tuple[str, str, str]]:
    """Have everybody confirm a number, and return a fresh code of each: customer, challenge, code."""
    # No two of them alike but for the last digits: budgets would stop that.
    numbers = {who: f"+86138{place:05d}000" for place, who in enumerate(people)}

    async def enrol(who: str) -> str:
        return (await client.otp.enroll_phone(customer_id=who, phone_number=numbers[who])).factor.factor_id

    factors = dict(zip(people, await _each(people, enrol), strict=True))
    first = _received(outbox)
    await _each(
        people,
        lambda who: client.otp.confirm_factor(customer_id=who, factor_id=factors[who], code=first[numbers[who]]),
    )
    challenges = await _each(people, lambda who: client.otp.send_code(customer_id=who, purpose=ProofPurpose.SIGN_IN))
    second = _received(outbox)
    return [(who, c.challenge_id, second[numbers[who]]) for who, c in zip(people, challenges, strict=True)]


def _received(outbox: Path) -> dict[str, str]:
    """Return the last code that every number got."""
    messages = [json.loads(line) for line in outbox.read_text(encoding="utf-8").splitlines()]
    return {message["destination"]: message["parameters"]["code"] for message in messages}


async def _verify_code(client: AsyncRiskgate, who: str, challenge_id: str, code: str) -> None:
    await client.otp.verify_code(customer_id=who, challenge_id=challenge_id, code=code)


async def _signed(client: AsyncRiskgate, who: str) -> tuple[str, str, str, bytes]:
    phone = AndroidPhone()
    begun = await client.devices.begin_enrollment(
        customer_id=who, platform=DevicePlatform.ANDROID_KEYSTORE, display_name="phone"
    )
    made = phone.enrol(begun.signing_input)
    credential = await client.devices.finish_enrollment(
        customer_id=who, enrollment_id=begun.enrollment_id, raw_key=RawKeyAnswer(made.public_key, made.signature)
    )
    challenge = await client.devices.begin_challenge(customer_id=who, purpose=ProofPurpose.SIGN_IN)
    return who, challenge.challenge_id, credential.credential_id, phone.sign(challenge.signing_input)


async def _verify_signature(
    client: AsyncRiskgate, who: str, challenge_id: str, credential_id: str, signature: bytes
) -> None:
    await client.devices.verify_challenge(
        customer_id=who, challenge_id=challenge_id, credential_id=credential_id, signature=signature
    )


def _bare() -> float:
    """Return how many P-256 signatures the library verifies in a second of processor time."""
    key: Any = ec.generate_private_key(ec.SECP256R1())
    signature, public = key.sign(b"as long as a challenge is", ec.ECDSA(SHA256())), key.public_key()
    began = time.process_time()
    for _ in range(BARE):
        public.verify(signature, b"as long as a challenge is", ec.ECDSA(SHA256()))
    return BARE / (time.process_time() - began)
