"""TLS peers: wrong certificates get no key, and a cut response is refused inside TLS too."""

from __future__ import annotations

import datetime
import ipaddress
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from peer import answer
from torture.client import KEY, attempt, batch, transport

from hubqueue.domain.outcome import Blocked, Delivered, Outcome, RetryLater, Scope

_DAY = datetime.timedelta(days=1)
_Key = ec.EllipticCurvePrivateKey


def run(*, step: int) -> list[str]:
    """Try every wrong certificate, and the right one with every `step`th cut of a valid response. Yields problems or ""."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_certificates(Path(folder)), *_cuts(Path(folder), step)]


def _certificates(folder: Path) -> Iterator[str]:
    ours, theirs = _Authority("ours"), _Authority("theirs")
    trusted = ours.write(folder / "trusted.pem")
    now = datetime.datetime.now(datetime.UTC)
    right = ours.sign("localhost")
    cases = {
        "right": right,
        "for another name": ours.sign("other.example"),
        "expired": ours.sign("localhost", begin=now - 9 * _DAY, end=now - _DAY),
        "not yet valid": ours.sign("localhost", begin=now + _DAY, end=now + 9 * _DAY),
        "of an unknown authority": theirs.sign("localhost"),
        "self-signed": theirs.own("localhost"),
    }
    for name, (certificate, key) in cases.items():
        context = _context(folder, certificate, key)
        for kind in ("metrics", "registration", "heartbeat", "ckpt"):
            outcome, received = _ask(context, trusted, kind, lambda secure: secure.sendall(answer()))
            good = isinstance(outcome, Delivered) if name == "right" else _is_refused(outcome, received)
            yield "" if good else f"a certificate {name}, {kind}: {outcome}"
    # Without our own bundle the machine's authorities are used, and our certificate is unknown to them.
    outcome, received = _ask(
        _context(folder, *right), None, "metrics", lambda secure: secure.sendall(answer())
    )
    yield "" if _is_refused(outcome, received) else f"a certificate of an unknown authority: {outcome}"
    outcome, received = _ask(None, trusted, "metrics", lambda plain: plain.sendall(answer()))
    yield (
        ""
        if isinstance(outcome, RetryLater) and KEY.encode() not in received
        else f"no encryption: {outcome}"
    )


def _cuts(folder: Path, step: int) -> Iterator[str]:
    """Cut responses, ended with and without the close_notify that TLS requires."""
    ours, whole = _Authority("ours"), answer()
    trusted, context = ours.write(folder / "trusted.pem"), _context(folder, *ours.sign("localhost"))
    for cut in range(0, len(whole), step):
        for polite in (True, False):

            def act(secure: socket.socket, cut: int = cut, polite: bool = polite) -> None:
                secure.sendall(whole[:cut])
                if polite and isinstance(secure, ssl.SSLSocket):
                    secure.unwrap()

            outcome, _ = _ask(context, trusted, "metrics", act)
            yield "" if isinstance(outcome, RetryLater) else f"cut after {cut} bytes in TLS: {outcome}"


def _is_refused(outcome: Outcome, received: bytes) -> bool:
    held = (
        isinstance(outcome, Blocked)
        and outcome.scope is Scope.DESTINATION
        and "certificate" in outcome.reason
    )
    return held and KEY.encode() not in received and b"HTTP" not in received


def _ask(
    context: ssl.SSLContext | None, trusted: Path | None, kind: str, act: Callable[[socket.socket], None]
) -> tuple[Outcome, bytes]:
    """One exchange with a server of this context. Returns the outcome, and what the server could read."""
    with _server(context, act) as (port, received):
        hub = transport(f"https://localhost:{port}", seconds=5.0, ca_bundle=trusted)
        outcome = hub.send(batch(kind), attempt())
        hub.close()
    return outcome, b"".join(received)


@contextmanager
def _server(
    context: ssl.SSLContext | None, act: Callable[[socket.socket], None]
) -> Iterator[tuple[int, list[bytes]]]:
    listener, received = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with connection:
                secure = context.wrap_socket(connection, server_side=True) if context else connection
                with secure:
                    received.append(_request(secure) if context else secure.recv(65536))
                    act(secure)
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], received
    finally:
        thread.join(20)
        listener.close()


def _request(secure: socket.socket) -> bytes:
    """A whole request: unread bytes would turn the end of the connection into a reset."""
    data = b""
    while block := secure.recv(65536):
        data += block
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
        if end and len(body) >= int(length[1] if length else 0):
            break
    return data


def _context(folder: Path, certificate: x509.Certificate, key: _Key) -> ssl.SSLContext:
    path = folder / "server.pem"
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class _Authority:
    """Signs certificates."""

    def __init__(self, name: str) -> None:
        self._name = _named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._build(self._name, self._key, authority=True)

    def write(self, path: Path) -> Path:
        """The server's own certificate, for clients that trust it."""
        path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def sign(
        self, host: str, *, begin: datetime.datetime | None = None, end: datetime.datetime | None = None
    ) -> tuple[x509.Certificate, _Key]:
        """A certificate for a host, and for 127.0.0.1 if it is this machine; valid now by default."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._build(_named(host), key, host=host, begin=begin, end=end), key

    def own(self, host: str) -> tuple[x509.Certificate, _Key]:
        """A certificate that signs itself."""
        return _Authority(host)._sign_self(host)

    def _sign_self(self, host: str) -> tuple[x509.Certificate, _Key]:
        return self._build(self._name, self._key, host=host), self._key

    def _build(
        self,
        subject: x509.Name,
        key: _Key,
        *,
        host: str | None = None,
        authority: bool = False,
        begin: datetime.datetime | None = None,
        end: datetime.datetime | None = None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        draft = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin or now - _DAY)
            .not_valid_after(end or now + 9 * _DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if host:
            names: list[x509.GeneralName] = [x509.DNSName(host)]
            if host == "localhost":
                names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
            draft = draft.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return draft.sign(self._key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
