"""Who calls, over real TLS: the two ports as a data directory sets them up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from riskgate_server.cli import main
from riskgate_server.crypto import tls
from riskgate_server.datadir import DataDirectory
from riskgate_server.domain.errors import Unauthenticated
from riskgate_server.rpc.callers import Authenticator
from riskgate_server.stores.access.registry import CallerRegistry

METHOD = "/test.Who/AmI"
URI = "spiffe://riskgate/tenant/default/caller/backend"


def riskgate(*arguments: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    root = tmp_path_factory.mktemp("credentials") / "data"
    riskgate("init", root)
    return DataDirectory(root)


@pytest.fixture(scope="module")
def backend(directory: DataDirectory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("backend")
    return riskgate(
        "callers", "add", "backend", "--data", directory.root,
        "--scope", "risk:check", "--key", "--certificate", "--out", out,
    )  # fmt: skip


class Ports:
    """A server that answers with who called, or with the reason for which it would refuse."""

    def __init__(self, directory: DataDirectory, certificates: int, keys: int) -> None:
        self._ca = directory.ca_certificate.read_bytes()
        self.certificates = certificates
        self.keys = keys

    async def ask(
        self, port: int, credential: tls.Credential | None = None, metadata: Sequence[tuple[str, str]] = ()
    ) -> str:
        own = (None, None) if credential is None else (credential.key_pem, credential.certificate_pem)
        credentials = grpc.ssl_channel_credentials(self._ca, *own)
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            answer = await call(b"", metadata=tuple(metadata), timeout=5)
            return answer.decode()


@asynccontextmanager
async def serving(directory: DataDirectory) -> AsyncIterator[Ports]:
    registry = CallerRegistry(directory.access)
    door = Authenticator(registry)

    async def who(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            caller = door.authenticate(context)
        except Unauthenticated as refusal:
            return refusal.reason.encode()
        return f"{caller.tenant_id}/{caller.caller_id}".encode()

    pair = [(directory.server_key.read_bytes(), directory.server_certificate.read_bytes())]
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(who)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", {"AmI": handler}),))
    certificates = server.add_secure_port(
        "localhost:0",
        grpc.ssl_server_credentials(pair, directory.ca_certificate.read_bytes(), require_client_auth=True),
    )
    keys = server.add_secure_port("localhost:0", grpc.ssl_server_credentials(pair))
    await server.start()
    try:
        yield Ports(directory, certificates, keys)
    finally:
        await server.stop(None)
        registry.close()


def issued(backend: dict[str, Any]) -> tls.Credential:
    files = backend["certificate"]
    return tls.Credential(Path(files["certificate_file"]).read_bytes(), Path(files["key_file"]).read_bytes())


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


def test_each_port_knows_its_callers_and_refuses_what_is_no_good(
    directory: DataDirectory, backend: dict[str, Any]
) -> None:
    key = backend["key"]["api_key"]

    async def scenario() -> None:
        async with serving(directory) as ports:
            assert await ports.ask(ports.certificates, issued(backend)) == "default/backend"
            assert await ports.ask(ports.keys, metadata=[bearer(key)]) == "default/backend"
            assert await ports.ask(ports.keys) == "CREDENTIAL_MISSING"
            assert await ports.ask(ports.keys, issued(backend)) == "CREDENTIAL_MISSING"
            assert await ports.ask(ports.keys, metadata=[bearer(key[:-1] + "!")]) == "CREDENTIAL_INVALID"
            assert await ports.ask(ports.keys, metadata=[bearer(key), bearer(key)]) == "CREDENTIAL_AMBIGUOUS"
            claimed = [bearer("rgk_nonsense"), ("x-tenant-id", "shop")]
            assert await ports.ask(ports.certificates, issued(backend), claimed) == "default/backend"

    asyncio.run(scenario())


def test_certificates_that_tls_must_refuse_do_not_get_as_far_as_being_asked(
    directory: DataDirectory, backend: dict[str, Any]
) -> None:
    now = datetime.now(UTC)
    authority = tls.Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())
    stranger = tls.new_authority(now)
    bad = {
        "none": None,
        "of another authority": tls.issue_client(stranger, URI, now),
        "expired": tls.issue_client(authority, URI, now - timedelta(days=3), timedelta(days=1)),
        "not yet valid": tls.issue_client(authority, URI, now + timedelta(days=1)),
        "a server's": tls.issue_server(authority, (), now),
    }

    async def scenario() -> None:
        async with serving(directory) as ports:
            for name, credential in bad.items():
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await ports.ask(ports.certificates, credential)
                assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE, name

    asyncio.run(scenario())


def test_a_certificate_of_ours_for_a_caller_we_do_not_know_is_refused(directory: DataDirectory) -> None:
    authority = tls.Credential(directory.ca_certificate.read_bytes(), directory.ca_key.read_bytes())
    unknown = tls.issue_client(authority, URI.replace("backend", "nobody"), datetime.now(UTC))

    async def scenario() -> None:
        async with serving(directory) as ports:
            assert await ports.ask(ports.certificates, unknown) == "CREDENTIAL_INVALID"

    asyncio.run(scenario())


def test_a_revocation_is_felt_within_two_seconds_on_both_ports(directory: DataDirectory, tmp_path: Path) -> None:
    brief = riskgate(
        "callers", "add", "brief", "--data", directory.root,
        "--scope", "risk:check", "--key", "--certificate", "--out", tmp_path,
    )  # fmt: skip

    async def scenario() -> None:
        async with serving(directory) as ports:
            metadata = [bearer(brief["key"]["api_key"])]
            assert await ports.ask(ports.certificates, issued(brief)) == "default/brief"
            assert await ports.ask(ports.keys, metadata=metadata) == "default/brief"
            await asyncio.to_thread(riskgate, "callers", "revoke", "brief", "--data", directory.root)
            await asyncio.sleep(1.5)

            assert await ports.ask(ports.certificates, issued(brief)) == "CREDENTIAL_INVALID"
            assert await ports.ask(ports.keys, metadata=metadata) == "CREDENTIAL_INVALID"

    asyncio.run(scenario())
