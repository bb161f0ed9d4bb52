"""
Proofs are verified before the queue: on the edge's own threads, against a snapshot of what stands.

What was found travels with the command, and with it the digest of what it was held against, so that the writer
refuses a verdict about anything else than what it then sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from riskgate_server.domain.customer import CustomerKey
from riskgate_server.domain.errors import NotFound, PreconditionFailed
from riskgate_server.domain.identity import challenges
from riskgate_server.domain.identity.devices import (
    Proof,
    ProofAsked,
    ProofPolicy,
    ProofRefused,
    ProofVerdict,
    Registration,
    RegistrationAsked,
    RegistrationVerdict,
)
from riskgate_server.domain.identity.enrolled import (
    ProofFault,
    challenge_asked,
    challenge_judged,
    credential_of,
    enrolment_asked,
    enrolment_judged,
)
from riskgate_server.engine.ports import ProofVerifier
from riskgate_server.engine.queries import Queries


class JudgedRegistration(msgspec.Struct, frozen=True):
    """What a registration was found to be; the fields of `commands.FinishEnrolment`."""

    found: RegistrationVerdict | ProofFault | None = None
    judged: bytes = b""
    marks: tuple[bytes, ...] = ()


class JudgedProof(msgspec.Struct, frozen=True):
    """What a proof was found to be; the fields of `commands.VerifyChallenge`."""

    found: ProofVerdict | ProofFault | None = None
    judged: bytes = b""


_NOTHING: Final = (NotFound, PreconditionFailed)
"""
There is nothing to hold the answer against. The writer says why, for only it knows whether the request was answered
before.
"""


class Judge:
    """
    Holds what devices answer against what they were asked. Safe from any thread.

    `mark` hashes (tenant, kind, value), for ever the same: whose a key is must be known as long as it stands.
    """

    def __init__(
        self,
        queries: Queries,
        verifier: ProofVerifier,
        policy: ProofPolicy,
        mark: Callable[[str, str, str], bytes],
    ) -> None:
        self._queries = queries
        self._verifier = verifier
        self._policy = policy
        self._mark = mark

    def registration(self, key: CustomerKey, enrolment_id: str, answer: Registration) -> JudgedRegistration:
        """
        Verify what a new device answered.

        Raises:
            InvalidRequest: it cannot be read.
        """
        try:
            identity, now_us = self._queries.identity(key)
            enrolment = identity.enrolment(enrolment_id)
        except _NOTHING:
            return JudgedRegistration()
        judged = enrolment_judged(enrolment)
        asked = enrolment_asked(key, enrolment, self._policy.audience)
        expected = RegistrationAsked(
            platform=enrolment.platform,
            challenge=challenges.challenge(asked),
            signing_input=challenges.signing_input(asked),
        )
        try:
            verdict = self._verifier.verify_registration(answer, expected, self._policy, now_us=now_us)
        except ProofRefused as refused:
            return JudgedRegistration(ProofFault(refused.fault), judged)
        return JudgedRegistration(verdict, judged, self._marks(key[0], verdict))

    def proof(self, key: CustomerKey, challenge_id: str, answer: Proof) -> JudgedProof:
        """
        Verify what a registered device answered.

        Raises:
            InvalidRequest: it cannot be read.
        """
        try:
            identity, now_us = self._queries.identity(key)
            challenge = identity.challenge(challenge_id)
        except _NOTHING:
            return JudgedProof()
        asked = challenge_asked(key, challenge, self._policy.audience)
        may_answer = [device for device in identity.devices if device.credential_id in challenge.credential_ids]
        # Those that were revoked too, to be told from those nobody knows.
        devices = (*may_answer, *identity.revoked)
        expected = ProofAsked(
            challenge_id=challenge_id,
            challenge=challenges.challenge(asked),
            signing_input=challenges.signing_input(asked),
            digest=challenges.digest(asked),
            transaction=challenge.transaction,
            credentials=tuple(map(credential_of, devices)),
        )
        found: ProofVerdict | ProofFault
        try:
            found = self._verifier.verify_proof(answer, expected, self._policy, now_us=now_us)
        except ProofRefused as refused:
            found = ProofFault(refused.fault, refused.credential_id)
        device = next((device for device in devices if device.credential_id == found.credential_id), None)
        return JudgedProof(found, challenge_judged(challenge, device))

    def _marks(self, tenant_id: str, verdict: RegistrationVerdict) -> tuple[bytes, ...]:
        marks = [self._mark(tenant_id, "device key", verdict.fingerprint.hex())]
        if verdict.key.webauthn_id:
            marks.append(self._mark(tenant_id, "passkey", verdict.key.webauthn_id.hex()))
        return tuple(marks)
