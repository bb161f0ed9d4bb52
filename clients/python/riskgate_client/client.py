"""The two clients: `Riskgate` waits for its answers, `AsyncRiskgate` lets asyncio wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

import grpc

from riskgate_client import asynchronous, blocking, customers, devices, ledger, lines, otp, risk
from riskgate_client.call import TIMEOUT_SECONDS, Call
from riskgate_client.caller import Caller, Service
from riskgate_client.errors import Unavailable
from riskgate_client.retry import Retry
from riskgate_client.transport import OPTIONS, AuthenticatedChannel, Pem, credentials
from riskgate_client.values import CheckResult, Decision

S = TypeVar("S")

READY_SECONDS: Final = 30.0


class Risk(Service):
    """Decides about purchases and remembers what it decided."""

    check = blocking.answer(risk.check)
    check_batch = blocking.answer(risk.check_batch)
    annotate_decision = blocking.answer(risk.annotate_decision)
    get_decision = blocking.answer(risk.get_decision)
    list_decisions = blocking.pages(risk.list_decisions)
    explain_decision = blocking.answer(risk.explain_decision)
    watch_decisions = blocking.watch(risk.watch_decisions)

    def check_stream(
        self, checks: Iterable[Call[Decision]], *, timeout: float | None = None
    ) -> Generator[CheckResult, None, None]:
        """
        Decide about purchases, described with `check(...)`, as they come; results in the order they are ready.

        `checks` is gone through in a thread of its own. When the connection breaks, whatever was not
        answered is sent again under the same request ids: every purchase has one effect and one result.
        `timeout` is how long one underlying stream may live (60 s) before the next takes over; twice
        without any of the answers due is DeadlineExceeded.
        """
        return blocking.CheckStream(self._caller, checks, timeout).results()


class AsyncRisk(Service):
    """Decides about purchases and remembers what it decided."""

    check = asynchronous.answer(risk.check)
    check_batch = asynchronous.answer(risk.check_batch)
    annotate_decision = asynchronous.answer(risk.annotate_decision)
    get_decision = asynchronous.answer(risk.get_decision)
    list_decisions = asynchronous.pages(risk.list_decisions)
    explain_decision = asynchronous.answer(risk.explain_decision)
    watch_decisions = asynchronous.watch(risk.watch_decisions)

    def check_stream(
        self,
        checks: Iterable[Call[Decision]] | AsyncIterable[Call[Decision]],
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[CheckResult, None]:
        """
        Decide about purchases, described with `check(...)`, as they come; results in the order they are ready.

        When the connection breaks, whatever was not answered is sent again under the same request ids:
        every purchase has one effect and one result. `timeout` is how long one underlying stream may live
        (60 s) before the next takes over; twice without any of the answers due is DeadlineExceeded.
        """
        return asynchronous.CheckStream(self._caller, checks, timeout).results()


class Lines(Service):
    """Opens, shows, blocks and closes credit lines."""

    open = blocking.answer(lines.open)
    get = blocking.answer(lines.get)
    list = blocking.answer(lines.list)
    watch = blocking.watch(lines.watch)
    place_block = blocking.answer(lines.place_block)
    lift_block = blocking.answer(lines.lift_block)
    close = blocking.answer(lines.close)
    accept_offer = blocking.answer(lines.accept_offer)


class AsyncLines(Service):
    """Opens, shows, blocks and closes credit lines."""

    open = asynchronous.answer(lines.open)
    get = asynchronous.answer(lines.get)
    list = asynchronous.answer(lines.list)
    watch = asynchronous.watch(lines.watch)
    place_block = asynchronous.answer(lines.place_block)
    lift_block = asynchronous.answer(lines.lift_block)
    close = asynchronous.answer(lines.close)
    accept_offer = asynchronous.answer(lines.accept_offer)


class Ledger(Service):
    """Moves money on credit lines, and shows every movement."""

    capture = blocking.answer(ledger.capture)
    increment = blocking.answer(ledger.increment)
    void = blocking.answer(ledger.void)
    refund = blocking.answer(ledger.refund)
    record_payment = blocking.answer(ledger.record_payment)
    reverse_payment = blocking.answer(ledger.reverse_payment)
    convert_to_installments = blocking.answer(ledger.convert_to_installments)
    waive_charge = blocking.answer(ledger.waive_charge)
    get_hold = blocking.answer(ledger.get_hold)
    list_holds = blocking.pages(ledger.list_holds)
    list_entries = blocking.pages(ledger.list_entries)
    get_statement = blocking.answer(ledger.get_statement)
    list_statements = blocking.pages(ledger.list_statements)


class AsyncLedger(Service):
    """Moves money on credit lines, and shows every movement."""

    capture = asynchronous.answer(ledger.capture)
    increment = asynchronous.answer(ledger.increment)
    void = asynchronous.answer(ledger.void)
    refund = asynchronous.answer(ledger.refund)
    record_payment = asynchronous.answer(ledger.record_payment)
    reverse_payment = asynchronous.answer(ledger.reverse_payment)
    convert_to_installments = asynchronous.answer(ledger.convert_to_installments)
    waive_charge = asynchronous.answer(ledger.waive_charge)
    get_hold = asynchronous.answer(ledger.get_hold)
    list_holds = asynchronous.pages(ledger.list_holds)
    list_entries = asynchronous.pages(ledger.list_entries)
    get_statement = asynchronous.answer(ledger.get_statement)
    list_statements = asynchronous.pages(ledger.list_statements)


class Otp(Service):
    """Enrols the factors that codes are made for, has codes sent, and checks them."""

    enroll_phone = blocking.answer(otp.enroll_phone)
    enroll_totp = blocking.answer(otp.enroll_totp)
    confirm_factor = blocking.answer(otp.confirm_factor)
    send_code = blocking.answer(otp.send_code)
    resend_code = blocking.answer(otp.resend_code)
    verify_code = blocking.answer(otp.verify_code)
    list_factors = blocking.answer(otp.list_factors)
    revoke_factor = blocking.answer(otp.revoke_factor)
    generate_recovery_codes = blocking.answer(otp.generate_recovery_codes)
    verify_recovery_code = blocking.answer(otp.verify_recovery_code)


class AsyncOtp(Service):
    """Enrols the factors that codes are made for, has codes sent, and checks them."""

    enroll_phone = asynchronous.answer(otp.enroll_phone)
    enroll_totp = asynchronous.answer(otp.enroll_totp)
    confirm_factor = asynchronous.answer(otp.confirm_factor)
    send_code = asynchronous.answer(otp.send_code)
    resend_code = asynchronous.answer(otp.resend_code)
    verify_code = asynchronous.answer(otp.verify_code)
    list_factors = asynchronous.answer(otp.list_factors)
    revoke_factor = asynchronous.answer(otp.revoke_factor)
    generate_recovery_codes = asynchronous.answer(otp.generate_recovery_codes)
    verify_recovery_code = asynchronous.answer(otp.verify_recovery_code)


class Devices(Service):
    """Enrols device keys, asks them, and checks what they sign."""

    begin_enrollment = blocking.answer(devices.begin_enrollment)
    finish_enrollment = blocking.answer(devices.finish_enrollment)
    begin_challenge = blocking.answer(devices.begin_challenge)
    verify_challenge = blocking.answer(devices.verify_challenge)
    list_devices = blocking.answer(devices.list_devices)
    revoke_device = blocking.answer(devices.revoke_device)
    revoke_all_devices = blocking.answer(devices.revoke_all_devices)


class AsyncDevices(Service):
    """Enrols device keys, asks them, and checks what they sign."""

    begin_enrollment = asynchronous.answer(devices.begin_enrollment)
    finish_enrollment = asynchronous.answer(devices.finish_enrollment)
    begin_challenge = asynchronous.answer(devices.begin_challenge)
    verify_challenge = asynchronous.answer(devices.verify_challenge)
    list_devices = asynchronous.answer(devices.list_devices)
    revoke_device = asynchronous.answer(devices.revoke_device)
    revoke_all_devices = asynchronous.answer(devices.revoke_all_devices)


class Customers(Service):
    """Looks after customers as people."""

    erase = blocking.answer(customers.erase)


class AsyncCustomers(Service):
    """Looks after customers as people."""

    erase = asynchronous.answer(customers.erase)


class Riskgate:
    """
    A connection to the engine. Safe to share between threads; make one and keep it.

    Args:
        target: host and port: of the port for API keys with `api_key`, of the port for certificates with
            `certificate` and `key`.
        ca: the authority that vouches for the engine: path of a PEM file, or its content as bytes. None
            means the public ones.
        api_key: the key of this service.
        certificate: the certificate of this service, a path or bytes as `ca`.
        key: the private key of the certificate, likewise.
        timeout: seconds a call may take with all its tries, unless it says otherwise. None is 5, and 10 for those that
            wait until the engine has handed a message over: `enroll_phone`, `send_code` and `resend_code`.
        retry: when a call is made again.
        options: further gRPC channel options; they win over ours.

    Raises:
        ValueError: there is not exactly one credential, `api_key`, `ca`, `certificate` or `key` is none, or `key` is
            another certificate's.
    """

    def __init__(
        self,
        target: str,
        *,
        ca: Pem | None = None,
        api_key: str | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        proof = credentials(ca=ca, api_key=api_key, certificate=certificate, key=key)
        self._target = target
        self._channel = grpc.secure_channel(target, proof.tls, options=(*OPTIONS, *options))
        self._stubs_channel = AuthenticatedChannel(
            self._channel, proof.metadata, TIMEOUT_SECONDS if timeout is None else timeout
        )
        caller = Caller(self._stubs_channel, retry or Retry(), timeout, proof.own)
        self.risk = Risk(caller)
        self.lines = Lines(caller)
        self.ledger = Ledger(caller)
        self.otp = Otp(caller)
        self.devices = Devices(caller)
        self.customers = Customers(caller)

    def __repr__(self) -> str:
        return f"Riskgate({self._target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stub(self, stub_class: Callable[[grpc.Channel], S]) -> S:
        """
        Return a generated stub over this connection, for services that have no methods here.

        Its calls carry the credential, and a deadline where there is one answer. They are not repeated,
        and fail with `grpc.RpcError`, which `error_from_rpc` explains.
        """
        return stub_class(cast("grpc.Channel", self._stubs_channel))

    def wait_until_ready(self, timeout: float = READY_SECONDS) -> None:
        """
        Wait for the engine to be reachable, for instance while it starts.

        Raises:
            Unavailable: it was not within `timeout` seconds.
        """
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=timeout)
        except grpc.FutureTimeoutError:
            raise _unreachable(self._target, timeout) from None
        finally:
            ready.cancel()

    def close(self) -> None:
        """Give up the connection and every call that is under way."""
        self._channel.close()


class AsyncRiskgate:
    """
    A connection to the engine for asyncio. Make it where the event loop runs, and keep it.

    Takes the same arguments as `Riskgate` and has the same methods: those that give one answer are awaited,
    lists and streams are gone through with `async for`, watches also stand in `async with`.
    """

    def __init__(
        self,
        target: str,
        *,
        ca: Pem | None = None,
        api_key: str | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        proof = credentials(ca=ca, api_key=api_key, certificate=certificate, key=key)
        self._target = target
        self._channel = grpc.aio.secure_channel(target, proof.tls, options=(*OPTIONS, *options))
        self._stubs_channel = AuthenticatedChannel(
            self._channel, proof.metadata, TIMEOUT_SECONDS if timeout is None else timeout
        )
        caller = Caller(self._stubs_channel, retry or Retry(), timeout, proof.own)
        self.risk = AsyncRisk(caller)
        self.lines = AsyncLines(caller)
        self.ledger = AsyncLedger(caller)
        self.otp = AsyncOtp(caller)
        self.devices = AsyncDevices(caller)
        self.customers = AsyncCustomers(caller)

    def __repr__(self) -> str:
        return f"AsyncRiskgate({self._target!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def stub(self, stub_class: Callable[[grpc.aio.Channel], S]) -> S:
        """
        Return a generated stub over this connection, for services that have no methods here.

        Its calls carry the credential, and a deadline where there is one answer. They are not repeated,
        and fail with `grpc.RpcError`, which `error_from_rpc` explains.
        """
        return stub_class(cast("grpc.aio.Channel", self._stubs_channel))

    async def wait_until_ready(self, timeout: float = READY_SECONDS) -> None:  # noqa: ASYNC109 - as in Riskgate
        """
        Wait for the engine to be reachable, for instance while it starts.

        Raises:
            Unavailable: it was not within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._channel.channel_ready()
        except TimeoutError:
            raise _unreachable(self._target, timeout) from None

    async def close(self) -> None:
        """Give up the connection and every call that is under way."""
        await self._channel.close()


def _unreachable(target: str, seconds: float) -> Unavailable:
    return Unavailable(f"{target} was not reachable within {seconds:g} s", status=grpc.StatusCode.UNAVAILABLE)
