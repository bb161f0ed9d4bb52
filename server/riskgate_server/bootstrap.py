"""Puts the rooms together. The only module that knows every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Final

import msgspec
import structlog

from riskgate_server.certificate import read_pair, require_usable, watch
from riskgate_server.crypto.derived import DerivedSecrets
from riskgate_server.crypto.keys import (
    FINGERPRINT,
    HEADS,
    PROOFS,
    MasterKeyMismatch,
    SecretFileBroken,
    credential_mark,
)
from riskgate_server.crypto.proofs import ProofVerifier
from riskgate_server.crypto.ringed import FingerprintKeys, RingTokens
from riskgate_server.crypto.rings import Ring
from riskgate_server.crypto.signing import HeadLog, HeadsBroken, HeadsInUse
from riskgate_server.datadir import DataDirectory, DataDirectoryError
from riskgate_server.engine.clocks import DataClock, SystemClock
from riskgate_server.engine.delivery import Delivery, Terms
from riskgate_server.engine.envelopes import Envelopes
from riskgate_server.engine.erasure import erased
from riskgate_server.engine.failures import ReadFailed, StoreBusy, StoreInUse
from riskgate_server.engine.following import Follower
from riskgate_server.engine.judging import Judge
from riskgate_server.engine.pipeline import Pipeline
from riskgate_server.engine.places import PlaceTokens
from riskgate_server.engine.queries import Queries
from riskgate_server.engine.storing import Store
from riskgate_server.engine.writer import Writer
from riskgate_server.listening import METRICS_ADDRESS, Listening, ListenRefused, require_ports
from riskgate_server.notify.choice import open_gateway
from riskgate_server.notify.refusals import GatewayUnusable
from riskgate_server.notify.texts import own_texts
from riskgate_server.opening import (
    LaneLogs,
    OtherPast,
    open_store,
    refuse_beginning_anew,
    refuse_other_past,
    renew_signer,
    ring_file,
    sign_head,
    store_name,
)
from riskgate_server.relying_party import RelyingPartyRefused, TrustFiles, read_policy
from riskgate_server.rpc.callers import Authenticator, RateLimits
from riskgate_server.rpc.convert import DecisionWriter, ReasonTexts
from riskgate_server.rpc.door import Door
from riskgate_server.rpc.feed import Feed
from riskgate_server.rpc.gateway import Gateway
from riskgate_server.rpc.metrics import Metrics
from riskgate_server.rpc.phones import PhoneBook
from riskgate_server.rpc.server import RpcServer, ServerTLS
from riskgate_server.rpc.service import Proofs, Readers, Rooms
from riskgate_server.rules.loader import CompiledRuleset, declared_version, load_ruleset
from riskgate_server.rules.reading import RulesetRefused, read_ruleset
from riskgate_server.settings import Settings
from riskgate_server.stores.access.registry import CallerRegistry, RegistryUnusable
from riskgate_server.stores.erasures import Erasures
from riskgate_server.stores.refusals import SchemaTooNew, SettingsRefused, StoreMoved, VaultUnusable
from riskgate_server.supervised import say_ready

log = structlog.get_logger()

READERS: Final = 4
"""Threads that answer questions from snapshots."""

FILES_MIN: Final = 256
"""Descriptors the server needs: some forty of its own, the rest for callers."""

VERIFIERS: Final = 2
"""Threads that verify what devices sign, each with a snapshot of what the device was asked."""

READING_CONNECTIONS: Final = READERS + VERIFIERS + 3
"""
One for each of those threads, one for the sweep of lapsed holds, one for signing heads and one for following what other
servers commit: none ever waits long.
"""

GC_THRESHOLD: Final = 5_000
"""
Objects made between two looks of the garbage collector.

What we make are trees without cycles, which end without it; the RPC library leaves one small cycle with every call.
Everybody waits while they are looked through: 1 ms for these, 8 ms for four times as many, 100 ms and more for 200,000.
"""

FIRST_HEAD_SECONDS: Final = 0.25
"""How often a server without a commit looks for the first one, to sign it."""

BROKEN_DRAIN_SECONDS: Final = 1.0
"""How long calls in flight may take to be answered after the store has failed."""


def _warn_of_same_version(rules: CompiledRuleset, sources: Mapping[bytes, str]) -> None:
    """Say it when the store knows another text under the version: only the hash then tells decisions apart."""
    mine = (rules.ruleset.name, rules.version)
    for known, source in sources.items():
        if known.hex() != rules.hash and declared_version(source) == mine:
            log.warning(
                "ruleset changed under its version",
                name=rules.ruleset.name,
                version=rules.version,
                hash=rules.hash,
                known_hash=known.hex(),
            )


class FilesTooFew(Exception):
    """The system lets this process open too few files."""


def make_room_for_files() -> None:
    """
    Let the process open as many files as it may: every connection of a caller takes one.

    Raises:
        FilesTooFew: that is less than the server needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < FILES_MIN:
        raise FilesTooFew(f"this process may open {hard} files, and needs {FILES_MIN}: raise `ulimit -n`")


REFUSALS_TO_START: Final = (
    DataDirectoryError,
    FilesTooFew,
    GatewayUnusable,
    HeadsBroken,
    HeadsInUse,
    ListenRefused,
    MasterKeyMismatch,
    OtherPast,
    ReadFailed,
    RelyingPartyRefused,
    RegistryUnusable,
    RulesetRefused,
    SchemaTooNew,
    SecretFileBroken,
    SettingsRefused,
    StoreBusy,
    StoreInUse,
    StoreMoved,
    VaultUnusable,
    OSError,
)
"""What an operator can mend: told in one line. Anything else is a fault of ours."""


class Server:
    """The engine in one process, from opening the store to the last signed head."""

    def __init__(
        self, settings: Settings, *, synchronous: str = "FULL", on_broken: Callable[[], object] = lambda: None
    ) -> None:
        """`on_broken` hears, from any thread, that the store failed: the process should not live long from then on."""
        self._on_broken = on_broken
        self._settings = settings
        self._directory = DataDirectory(settings.root.absolute())
        self._synchronous = synchronous
        self._stopping = asyncio.Event()
        self._broken = False

    async def run(self, *, ready: asyncio.Future[Listening] | None = None) -> int:
        """Serve until told to stop, and return the process's exit code: 0 for an orderly end."""
        settings, directory = self._settings, self._directory
        make_room_for_files()
        directory.check(store_here=not settings.store)
        alone = settings.process < 0
        require_usable(directory, datetime.now(UTC))
        require_ports(settings)
        rules, source = read_ruleset(settings.ruleset, "--ruleset: ")
        messages = open_gateway(
            settings.gateway,
            outbox=directory.outbox,
            url=settings.gateway_url,
            secrets=settings.gateway_secrets,
            authorities=settings.gateway_authorities,
            seconds=settings.gateway_seconds,
            driven_by_data=settings.clock == "data",
        )
        policy, trust = read_policy(settings), TrustFiles(settings)
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as closing:
            if alone:
                closing.enter_context(directory.held())
            signing_keys = ring_file(HEADS, directory.heads_key)
            logs = LaneLogs(directory, signing_keys)
            closing.callback(logs.close)
            opened = open_store(
                directory,
                settings.store,
                synchronous=self._synchronous,
                readers=READING_CONNECTIONS,
                # Time that data tells is one process's to know.
                writer=0 if settings.clock == "data" else None,
                may_take=logs.may_take,
            )
            closing.callback(opened.close)
            store = opened.store
            with store.snapshot() as snapshot:
                last_us = max((lane.batch.at_us for lane in snapshot.lanes() if lane.batch), default=0)
                _warn_of_same_version(rules, snapshot.ruleset_sources())
            clock = DataClock(last_us) if settings.clock == "data" else SystemClock()
            store.remember_ruleset(bytes.fromhex(rules.hash), source, clock.now_us())
            registry = CallerRegistry(directory.access)
            closing.callback(registry.close)
            heads = logs.of(store.writer)
            # One thread: two heads that are signed at once would both name the same line as the one before them.
            signing = ThreadPoolExecutor(1, "heads")
            closing.callback(signing.shutdown)
            refuse_beginning_anew(directory, store)
            refuse_other_past(heads, store)
            directory.live_by(settings.clock)
            if settings.clock == "data":
                log.warning("time is what events say", so="codes, locks and grants last as long: for histories only")
            # From here on the log is never empty: an empty one was emptied.
            sign_head(heads, store)
            renew_signer(heads, signing_keys)
            metrics = Metrics()
            door = Door(Authenticator(registry), RateLimits(), metrics)
            gateway = Gateway(waiting_max=settings.waiting_max)
            metrics.watch_queue(lambda: gateway.waiting)
            metrics.watch_trust(lambda: trust.refused)
            feed = Feed()
            readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
            closing.callback(readers.shutdown)
            asking = Readers(readers)
            verifiers = ThreadPoolExecutor(VERIFIERS, thread_name_prefix="verifier")
            closing.callback(verifiers.shutdown)
            queries = Queries(store, vault=opened.vault, sealer=opened.sealer, clock=clock, rulesets=load_ruleset)
            erasures = Erasures(directory.erased, opened.vault)
            with store.snapshot() as snapshot:
                journalled = list(erased(snapshot))
            if back := erasures.finish(journalled):
                log.warning("erased again", customers=back)
            proofs = DerivedSecrets(ring_file(PROOFS, directory.proofs_key))
            fingerprint_keys = ring_file(FINGERPRINT, directory.fingerprint_key)
            hashes = FingerprintKeys(fingerprint_keys)
            envelopes = Envelopes(
                vault=opened.vault,
                sealer=opened.sealer,
                secrets=proofs,
                texts=own_texts(),
                fingerprint=hashes.of_content_for_long,
                language=settings.message_language,
            )
            delivery = Delivery(
                messages,
                open_all=lambda rows: loop.run_in_executor(readers, envelopes.open, rows),
                submit=gateway.submit,
                recall=partial(asking.ask, queries.message_outcome),
                ended=partial(asking.ask, queries.code_ended),
                clock=clock,
                observer=metrics,
                terms=Terms(attempt=settings.gateway_seconds, patience=settings.gateway_patience_seconds),
            )
            metrics.watch_messages(lambda: delivery.pending)
            rooms = Rooms(
                door=door,
                gateway=gateway,
                queries=queries,
                feed=feed,
                clock=clock,
                readers=asking,
                fingerprint=hashes.of_content,
                secrets=proofs,
                places=PlaceTokens(RingTokens(fingerprint_keys)),
                delivery=delivery,
                phones=PhoneBook(hashes.fingerprints),
                proofs=Proofs(
                    policy=policy,
                    judge=Judge(queries, ProofVerifier(trust), policy, credential_mark),
                    threads=Readers(verifiers),
                    fingerprint=hashes.fingerprint,
                ),
                erase=erasures.erase,
                write_decision=DecisionWriter(ReasonTexts(rules.reason_text)),
            )
            pipeline = Pipeline(
                store=store,
                vault=opened.vault,
                sealer=opened.sealer,
                clock=clock,
                entropy=os.urandom,
                secrets=proofs,
                rules=rules,
                sink=feed,
                outgoing=delivery,
                rivals=metrics,
                cached_customers=settings.cached_customers,
            )
            writer = Writer(
                pipeline,
                store,
                clock,
                deliver=gateway.deliver,
                on_broken=partial(self._break_from_the_writer, loop),
                outgoing=delivery,
            )
            server = RpcServer(rooms, share_ports=not alone)
            tls = ServerTLS(partial(read_pair, directory), directory.ca_certificate.read_bytes)
            listening = self._listen(server, tls, metrics, closing)
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(ValueError, RuntimeError):  # not on the main thread: whoever runs us stops us
                    loop.add_signal_handler(number, self.stop)
            # Modules, rules and caches of the start live as long as the process: the collector need not look at them.
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD, 20, 50)
            writer.start()
            gateway.open(writer)
            await server.start()
            where = msgspec.structs.asdict(listening) | {"writer": store.writer}
            served = {"store": store_name(settings.store), "gateway": settings.gateway, "clock": settings.clock}
            log.info("serving", **where, **served, ruleset=rules.version, ruleset_hash=rules.hash)
            if settings.gateway == "file":
                log.warning("codes in clear", file=directory.outbox.name, use="development only")
            if ready is not None:
                ready.set_result(listening)
            if not alone:
                say_ready(settings.ready_fd)
            beside = [asyncio.create_task(self._sign_heads(signing, heads, store, signing_keys))]
            if settings.process <= 0:
                # Of several processes the first tells it for all.
                beside.append(asyncio.create_task(watch(directory, settings.address)))
            if store.shared:
                beside.append(asyncio.create_task(feed.follow(Follower(store).changed)))
            await self._stopping.wait()
            log.info("stopping", waiting=gateway.waiting, broken=self._broken)
            await server.drain()
            # What is with the gateway comes to its end, while that can still be recorded.
            await delivery.close(0.0 if self._broken else settings.drain_seconds)
            gateway.close()
            # Callers whose commit failed are owed that word; whatever else is open may be cut.
            await server.stop(BROKEN_DRAIN_SECONDS if self._broken else settings.drain_seconds)
            writer_stopped = loop.run_in_executor(None, writer.stop)
            await writer_stopped
            for task in beside:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            if not self._broken:
                # After one that is being signed just now: who waited for it is gone, and it goes on.
                await loop.run_in_executor(signing, sign_head, heads, store)
        log.info("stopped", broken=self._broken)
        return 1 if self._broken else 0

    def _listen(self, server: RpcServer, tls: ServerTLS, metrics: Metrics, closing: contextlib.ExitStack) -> Listening:
        settings = self._settings
        try:
            certificate_port = server.listen(settings.address, settings.certificate_port, tls, require_client=True)
            key_port = server.listen(settings.address, settings.key_port, tls, require_client=False)
            if settings.metrics_port >= 0:
                closing.callback(metrics.serve(METRICS_ADDRESS, settings.metrics_port))
        except (RuntimeError, OSError) as error:
            # They were free a moment ago.
            require_ports(settings)
            raise ListenRefused(f"--address: {settings.address} cannot be listened on: {error}") from error
        return Listening(settings.address, certificate_port, key_port, settings.metrics_port)

    def stop(self) -> None:
        """Begin an orderly end."""
        self._stopping.set()

    def _break_from_the_writer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._on_broken()
        loop.call_soon_threadsafe(self._break)

    def _break(self) -> None:
        """The store failed: nothing may be written any more, and a new process must find out what happened."""
        self._on_broken()
        self._broken = True
        self._stopping.set()

    async def _sign_heads(self, signing: ThreadPoolExecutor, heads: HeadLog, store: Store, keys: Ring) -> None:
        while True:
            begun = heads.last is not None and heads.last.batch
            await asyncio.sleep(
                self._settings.heads_seconds if begun else min(FIRST_HEAD_SECONDS, self._settings.heads_seconds)
            )
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(signing, sign_head, heads, store)
                await loop.run_in_executor(signing, renew_signer, heads, keys)
            except Exception:
                # A journal that nobody can vouch for must not grow.
                log.critical("head not signed", exc_info=True)
                self._break()
                return
