"""
Which facts across customers a command will touch, as far as what stands before its batch tells.

Taken one by one as use cases need them, two batches could wait for each other; taken together in key order before the
first command runs, they cannot. What nobody foresaw is still taken when it is needed.
"""

from __future__ import annotations

import itertools

from riskgate_server.domain.identity.factors import Factor
from riskgate_server.domain.identity.grants import Method
from riskgate_server.domain.identity.identity import Identity
from riskgate_server.engine import across
from riskgate_server.engine.commands import (
    Command,
    EnrollPhone,
    FinishEnrolment,
    ResendCode,
    SendCode,
    SettleMessage,
)
from riskgate_server.engine.rows import ScopeKey
from riskgate_server.engine.work import Batch

_Scopes = tuple[ScopeKey, ...]


def comparing(_batch: Batch, command: Command) -> _Scopes:
    """What comparing a code touches."""
    return (across.wrong_code_scope(command.tenant_id),)


def proving(batch: Batch, command: Command) -> _Scopes:
    """What comparing a code touches whose grant may be added to another."""
    unspent = (grant for grant in _identity(batch, command).grants if batch.now_us < grant.expires_us)
    offered = (across.offered_scope(command.tenant_id, grant.mark) for grant in unspent)
    return (*comparing(batch, command), *dict.fromkeys(offered))


def offering(command: Command, grant: bytes) -> _Scopes:
    """What offering a grant touches, by its mark."""
    return (across.offered_scope(command.tenant_id, grant),)


def enrolling_phone(_batch: Batch, command: EnrollPhone) -> _Scopes:
    """What a message to a new number touches."""
    scopes = (across.send_scopes(command.tenant_id, each) for each in across.possible_recipients(command))
    return tuple(dict.fromkeys(itertools.chain.from_iterable(scopes)))


def sending(batch: Batch, command: SendCode) -> _Scopes:
    """What a message to the named phone, or to the customer's only one, touches."""
    phones = _identity(batch, command).active(Method.SMS)
    named = [phone for phone in phones if phone.factor_id == (command.factor_id or phone.factor_id)]
    return _to(command, named[0]) if len(named) == 1 else ()


def resending(batch: Batch, command: ResendCode) -> _Scopes:
    """What the same message again touches."""
    return _of_challenge(batch, command, command.challenge_id)


def settling(batch: Batch, command: SettleMessage) -> _Scopes:
    """What a message that reached nobody gives back."""
    return _of_challenge(batch, command, command.unsent_challenge)


def enrolling_key(_batch: Batch, command: FinishEnrolment) -> _Scopes:
    """What says whose a key is."""
    return across.credential_scopes(command.tenant_id, command.marks)


def _identity(batch: Batch, command: Command) -> Identity:
    return batch.beside.identity(command.key, batch.kept[command.key].data_key)


def _of_challenge(batch: Batch, command: Command, challenge_id: str) -> _Scopes:
    identity = _identity(batch, command)
    names = {code.factor_id for code in identity.codes if code.challenge_id == challenge_id}
    return next((_to(command, factor) for factor in identity.factors if factor.factor_id in names), ())


def _to(command: Command, factor: Factor) -> _Scopes:
    return across.send_scopes(command.tenant_id, across.recipient_of(factor))
