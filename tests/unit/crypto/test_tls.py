from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import ClientVerifier, PolicyBuilder, Store, VerificationError

from riskgate_server.crypto import tls

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
URI = "spiffe://riskgate/tenant/t/caller/backend"


@pytest.fixture(scope="module")
def authority() -> tls.Credential:
    return tls.new_authority(NOW)


def parsed(credential: tls.Credential) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credential.certificate_pem)


def client_verifier(authority: tls.Credential, at: datetime) -> ClientVerifier:
    return PolicyBuilder().store(Store([parsed(authority)])).time(at).build_client_verifier()


def test_a_client_certificate_names_exactly_its_uri_and_is_for_clients_only(authority: tls.Credential) -> None:
    certificate = parsed(tls.issue_client(authority, URI, NOW))

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(URI)]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_server_certificate_names_localhost_and_what_was_asked_for(authority: tls.Credential) -> None:
    certificate = parsed(tls.issue_server(authority, ("risk.example.com", "10.0.0.7", "localhost"), NOW))

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "risk.example.com"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.0.0.7"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_an_independent_verifier_accepts_both(authority: tls.Credential) -> None:
    policy = PolicyBuilder().store(Store([parsed(authority)])).time(NOW)

    policy.build_server_verifier(x509.DNSName("localhost")).verify(parsed(tls.issue_server(authority, (), NOW)), [])
    policy.build_server_verifier(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))).verify(
        parsed(tls.issue_server(authority, (), NOW)), []
    )
    verified = client_verifier(authority, NOW).verify(parsed(tls.issue_client(authority, URI, NOW)), [])

    assert verified.subjects == [x509.UniformResourceIdentifier(URI)]


def test_no_certificate_serves_the_other_purpose_another_authority_or_another_time(
    authority: tls.Credential,
) -> None:
    server = parsed(tls.issue_server(authority, (), NOW))
    client = parsed(tls.issue_client(authority, URI, NOW, timedelta(days=1)))
    now = client_verifier(authority, NOW)

    for verifier, certificate in (
        (now, server),
        (client_verifier(tls.new_authority(NOW), NOW), client),
        (client_verifier(authority, NOW + timedelta(days=2)), client),
        (client_verifier(authority, NOW - timedelta(hours=1)), client),
    ):
        with pytest.raises(VerificationError):
            verifier.verify(certificate, [])


def test_the_authority_cannot_found_further_ones_and_nothing_outlives_it(authority: tls.Credential) -> None:
    constraints = parsed(authority).extensions.get_extension_for_class(x509.BasicConstraints).value
    late = NOW + tls.AUTHORITY_LIFETIME - timedelta(days=1)

    assert constraints.ca
    assert constraints.path_length == 0
    assert tls.issue_server(authority, (), late).expires() == parsed(authority).not_valid_after_utc


@pytest.mark.parametrize(
    "name", ["", "a b", "-a", "a_b", "*.example.com", "a..b", "x" * 64, "host\n", "https://host", "a." * 127 + "com"]
)
def test_a_name_that_is_no_host_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        tls.alternative_name(name)


def test_a_credential_shows_no_key(authority: tls.Credential) -> None:
    assert repr(authority) == "Credential(***)"
    assert "PRIVATE" not in f"{[authority]}"


def test_a_handshake_with_both_sides_proven_works(tmp_path: Path) -> None:
    """OpenSSL as the judge, by today's clock."""
    authority = tls.new_authority(datetime.now(UTC))
    for name, credential in (
        ("server", tls.issue_server(authority, (), datetime.now(UTC))),
        ("client", tls.issue_client(authority, URI, datetime.now(UTC))),
    ):
        (tmp_path / f"{name}.crt").write_bytes(credential.certificate_pem)
        (tmp_path / f"{name}.key").write_bytes(credential.key_pem)
    pem = authority.certificate_pem.decode()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=pem)
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client_context = ssl.create_default_context(cadata=pem)
    client_context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    seen: list[object] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with server_context.wrap_socket(connection, server_side=True) as wrapped:
            certificate = wrapped.getpeercert() or {}
            seen.append(certificate.get("subjectAltName"))
            wrapped.sendall(b"!")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client_context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.recv(1) == b"!"
        thread.join()

    assert seen == [(("URI", URI),)]
