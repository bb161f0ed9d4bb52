"""A real server in this process: a real data directory, real TLS, free ports, its own thread."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.request import urlopen

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from riskgate_server.bootstrap import Server
from riskgate_server.cli.init import initialise
from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory
from riskgate_server.engine.callers import caller_uri, certificate_id
from riskgate_server.listening import Listening
from riskgate_server.settings import Settings
from riskgate_server.stores.access.editor import CallerEditor, IssuedCertificate, IssuedKey
from tests.rpc.calling import Api, Channels

RULES: Final = Path(__file__).with_name("steered.yaml")
PORTS: Final = range(20_000, 32_000)
RATE: Final = 1_000_000
WAIT_SECONDS: Final = 20.0

_T = TypeVar("_T")


class Loop:
    """The one event loop that all servers of the tests share: grpc.aio likes no second one in a process."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.begin(work).result(WAIT_SECONDS)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Deployment:
    """A data directory, and who may call."""

    def __init__(self, root: Path) -> None:
        self.directory = DataDirectory(root)
        self.admin_key = initialise(root, names=(), tenant="default").api_key
        self._editor = CallerEditor(self.directory.access, who="tests")
        self._names = count(1)

    @property
    def authority(self) -> tls.Credential:
        directory = self.directory
        return tls.Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())

    def new_name(self, kind: str) -> str:
        return f"{kind}{next(self._names)}"

    def add_caller(
        self,
        *scopes: str,
        tenant: str,
        rate: int = RATE,
        burst: int | None = None,
        expires_us: int = 0,
        certificates: bool = False,
    ) -> tuple[str, IssuedKey]:
        """Add a caller with a key, and return its name too."""
        name = self.new_name("caller")
        key = self._editor.add(
            (tenant, name), scopes=scopes, rate_per_second=rate, burst=burst, certificates_allowed=certificates,
            with_key=True, expires_us=expires_us,
        )  # fmt: skip
        assert key is not None
        return name, key

    def rescope(self, tenant: str, caller: str, *scopes: str) -> None:
        self._editor.change((tenant, caller), scopes=scopes)

    def revoke(self, tenant: str, caller: str) -> None:
        self._editor.revoke_caller((tenant, caller))

    def revoke_credential(self, credential_id: str) -> None:
        self._editor.revoke_credential(credential_id)

    def end_key(self, tenant: str, caller: str) -> None:
        """Give the caller another key, and its present one an end that is now."""
        self._editor.rotate((tenant, caller), grace_us=0)

    def register(self, tenant: str, caller: str, credential: tls.Credential) -> str:
        """Note a certificate as issued to a caller, and return its id."""
        sha256, ends = credential.certificate_sha256(), credential.expires()
        issued = IssuedCertificate(sha256, int(ends.timestamp() * 1_000_000))
        self._editor.register_certificate((tenant, caller), issued)
        return certificate_id(sha256)

    def certificate(self, tenant: str, caller: str) -> tls.Credential:
        return tls.issue_client(self.authority, caller_uri(tenant, caller), datetime.now(UTC))

    def close(self) -> None:
        self._editor.close()


class Running:
    """A deployment being served."""

    def __init__(
        self, deployment: Deployment, listening: Listening, metrics_port: int, stop: Callable[[], None]
    ) -> None:
        self.deployment = deployment
        self.stop = stop
        self.key_port = listening.key_port
        self.certificate_port = listening.certificate_port
        self.metrics_port = metrics_port
        self.channels = Channels(deployment.directory.ca_certificate.read_bytes())

    def scrape(self) -> str:
        """Return the metrics as Prometheus gets them."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            text: str = response.read().decode()
        return text

    def scrape_value(self, name: str, method: str = "", status: str = "") -> float:
        """Return one figure, summed over what is not named."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.scrape())
            for sample in family.samples
            if sample.name == name
            and (not method or sample.labels["rpc_method"].endswith(f"/{method}"))
            and (not status or sample.labels["rpc_response_status_code"] == status)
        )

    def calls(self, method: str, status: str) -> float:
        """Return how many calls of a method ended so."""
        return self.scrape_value("rpc_server_call_duration_seconds_count", method, status)

    def keyed(self, api_key: str) -> Api:
        """Return the calls as the holder of a key makes them."""
        return Api(self.channels.to(self.key_port), (("authorization", f"Bearer {api_key}"),))

    def certified(self, credential: tls.Credential, metadata: tuple[tuple[str, str], ...] = ()) -> Api:
        """Return the calls as the holder of a certificate makes them."""
        pair = (credential.key_pem, credential.certificate_pem)
        return Api(self.channels.to(self.certificate_port, pair), metadata)

    def anonymous(self, metadata: tuple[tuple[str, str], ...] = ()) -> Api:
        return Api(self.channels.to(self.key_port), metadata)

    def caller(self, *scopes: str, tenant: str, rate: int = RATE, burst: int | None = None) -> Api:
        """Return the calls of a new caller with these scopes."""
        return self.keyed(self.deployment.add_caller(*scopes, tenant=tenant, rate=rate, burst=burst)[1].text)

    def tenant(self) -> Tenant:
        return Tenant(self, self.deployment.new_name("tenant"))


class Tenant:
    """A tenant nobody else uses, with an administrator and room for customers."""

    def __init__(self, running: Running, name: str) -> None:
        self.running = running
        self.name = name
        self.api = running.caller("admin", tenant=name)

    def caller(self, *scopes: str, rate: int = RATE, burst: int | None = None) -> Api:
        return self.running.caller(*scopes, tenant=self.name, rate=rate, burst=burst)


@contextmanager
def serving(loop: Loop, deployment: Deployment, **settings: Any) -> Iterator[Running]:
    """Serve a deployment until the block ends; an orderly end is asserted."""
    metrics_port = free_port()
    chosen = Settings(
        data=str(deployment.directory.root),
        **{
            "certificate_port": 0, "key_port": 0, "metrics_port": metrics_port, "ruleset": str(RULES),
            "drain_seconds": 5.0, **settings,
        },
    )  # fmt: skip
    server, ended, listening = _start(loop, chosen)
    running = Running(deployment, listening, metrics_port, lambda: loop.run(_stop(server)))
    try:
        yield running
    finally:
        running.channels.close()
        running.stop()
        assert ended.result(WAIT_SECONDS) == 0


def _start(loop: Loop, settings: Settings) -> tuple[Server, Future[int], Listening]:
    async def make() -> tuple[Server, asyncio.Future[Listening]]:
        return Server(settings), asyncio.get_running_loop().create_future()

    async def first(ready: asyncio.Future[Listening], ended: Future[int]) -> Listening:
        # A server that cannot start ends without ever being ready.
        over = asyncio.wrap_future(ended)
        either: set[asyncio.Future[Any]] = {ready, over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            over.result()
        return ready.result()

    server, ready = loop.run(make())
    ended = loop.begin(server.run(ready=ready))
    return server, ended, loop.run(first(ready, ended))


async def _stop(server: Server) -> None:
    server.stop()


def free_port() -> int:
    """Return a port nobody listens on, below the range of outgoing connections."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
