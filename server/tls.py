"""TLS on the gRPC port: certificates that are checked before they are served, and change while it runs.

What is checked is what is served: the files are read once, and OpenSSL gets the very bytes that gRPC gets.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from server.problems import Problem, SettingsError
from server.settings import TlsTable
from server.watched import Signature, open_to_others, signature

# Messages of a TLS handshake between two ends in the same process; three are enough.
HANDSHAKE_ROUNDS = 8
MAX_FILE_BYTES = 1 << 20
# Of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED = 9, 10

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Files that fit together, and the end of the certificate's life as OpenSSL writes it."""

    configuration: grpc.ServerCertificateConfiguration
    expires: str


class Certificates:
    """The certificate, key and client authority of one server, as they were when last found good.

    `refresh` may run in another thread than gRPC's fetcher, and neither in the event loop's.
    """

    def __init__(self, table: TlsTable) -> None:
        """Raises SettingsError where the files cannot be served."""
        self._table = table
        self._signatures = self._look()
        self._loaded = load(table)
        self._given = self._loaded  # what gRPC has

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`; each new connection gets what was loaded last."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self._fetch,  # type: ignore[arg-type]  # None is "no change", which the stubs do not know
            require_client_authentication=self._table.client_ca is not None,
        )

    def refresh(self) -> bool:
        """Reads the files again if they have changed; what is wrong is logged once, and changes nothing."""
        found = self._look()
        if found == self._signatures:
            return False
        self._signatures = found
        try:
            self._loaded = load(self._table)
        except SettingsError as error:
            log.error("certificate not reloaded, the old one stays", problems=str(error).splitlines())
            return False
        log.info("certificate reloaded", expires=self._loaded.expires)
        return True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC for each new connection, in a thread of its own: it reads no file and cannot fail.
        loaded = self._loaded
        if loaded is self._given:
            return None
        self._given = loaded
        return loaded.configuration

    def _look(self) -> tuple[Signature, ...]:
        files = (self._table.cert, self._table.key, self._table.client_ca)
        return tuple(signature(file) for file in files if file is not None)


def load(table: TlsTable) -> _Loaded:
    """Reads and tries the files.

    Raises:
        SettingsError: one cannot be read, is no PEM, does not fit the others, or is out of its time.
    """
    assert table.cert is not None
    assert table.key is not None
    cert, key = _read("tls.cert", table.cert), _read("tls.key", table.key)
    authority = None if table.client_ca is None else _read("tls.client_ca", table.client_ca)
    if table.client_ca is not None and authority is not None:
        _trust("tls.client_ca", table.client_ca, authority)
    # Trusting every certificate of the file leaves only the first to be looked at: whether clients trust
    # those above it is theirs to say.
    client = _trust("tls.cert", table.cert, cert)
    expires = _try(client, _pair(table.cert, cert, table.key, key), table.cert)
    return _Loaded(grpc.ssl_server_certificate_configuration([(key, cert)], authority), expires)


def warn_of_key(table: TlsTable) -> None:
    """Logs what is allowed but unwise about the files."""
    if table.key is not None and open_to_others(table.key):
        log.warning("everybody on this machine may read the key", setting="tls.key", file=str(table.key))


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _problem(setting, path, f"must be a readable file: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise _problem(setting, path, f"must be at most {MAX_FILE_BYTES} bytes")
    return content


def _trust(setting: str, path: Path, pem: bytes) -> ssl.SSLContext:
    """A client's side that trusts every certificate of this text, and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # names are the client's business
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise _problem(setting, path, "must be a certificate as PEM") from error
    return context


def _pair(cert_file: Path, cert: bytes, key_file: Path, key: bytes) -> ssl.SSLContext:
    """The server's side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _as_file(cert) as cert_path, _as_file(key) as key_path:
        try:
            # Instead of asking at the terminal for the password of a key that has one.
            context.load_cert_chain(cert_path, key_path, password="")
        except ssl.SSLError as error:
            reason = error.reason or "PEM lib"
            if reason == "KEY_VALUES_MISMATCH":
                raise _problem("tls.key", key_file, "must be the key of tls.cert") from error
            if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
                raise _problem("tls.cert", cert_file, f"is too weak: {reason}") from error
            raise _problem("tls.key", key_file, "must be a key as PEM, without a password") from error
        except ValueError as error:  # OpenSSL's words for an empty password
            raise _problem("tls.key", key_file, "must be a key as PEM, without a password") from error
    return context


def _try(client: ssl.SSLContext, server: ssl.SSLContext, path: Path) -> str:
    """A handshake between the two; returns when the certificate expires."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_end = client.wrap_bio(to_client, to_server)
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(HANDSHAKE_ROUNDS):
            waiting = False
            for end in (client_end, server_end):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    waiting = True
            if not waiting:
                break
    except ssl.SSLCertVerificationError as error:
        said = {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}
        allowed = said.get(error.verify_code, f"cannot be served: {error.verify_message}")
        raise _problem("tls.cert", path, allowed) from error
    except ssl.SSLError as error:
        raise _problem("tls.cert", path, f"cannot be served: {error.reason}") from error
    found = client_end.getpeercert() or {}
    return str(found.get("notAfter", "unknown"))


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path of these bytes, which never touch a disk. The ssl module takes a key by path only."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _problem(setting: str, path: Path, allowed: str) -> SettingsError:
    return SettingsError([Problem(setting, str(path), allowed)])
