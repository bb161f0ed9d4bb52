"""
What customers' devices sign, verified: passkeys, keys of phones, tokens of JOSE libraries, and what vouches for them.

Pure and without state: challenges, counters and grants are kept by the engine, which builds on the verdicts made
here. It runs in a bounded pool before the writer's queue. Hostile bytes end in one of two ways: `InvalidRequest`, which
names the field that cannot be read and counts for nothing, or `ProofRefused`, whose fault is for the journal alone.
"""

from riskgate_server.crypto.proofs.trust import AttestationTrust
from riskgate_server.crypto.proofs.verifier import ProofVerifier

__all__ = ["AttestationTrust", "ProofVerifier"]
