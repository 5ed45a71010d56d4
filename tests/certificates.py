"""Certificates for tests, made by the openssl command, without a network."""

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIG = """
[ca]
default_ca = own
[own]
new_certs_dir = {folder}
database = {folder}/index.txt
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    def move_to(self, other: "Pair") -> None:
        """Becomes the other pair, the certificate first: for a moment they do not fit together."""
        self.cert.replace(other.cert)
        self.key.replace(other.key)


class Authority:
    """One that signs what it is asked to. Skips the test where there is no openssl."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command")
        self._folder = folder
        folder.mkdir()
        (folder / "index.txt").touch()
        (folder / "openssl.cnf").write_text(_CONFIG.format(folder=folder))
        self.cert = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-subj", "/CN=authority", "-days", "2"),
            *("-keyout", self._key, "-out", self.cert),
        )

    def sign(self, name: str, *, host: str = "IP:127.0.0.1", from_days: int = -1, to_days: int = 1) -> Pair:
        """A certificate for a server or a client, good between these days from now."""
        request = self._folder / f"{name}.csr"
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        _openssl(
            *("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"),
            *("-keyout", pair.key, "-out", request),
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", self._folder / "openssl.cnf"),
            *("-cert", self.cert, "-keyfile", self._key, "-in", request, "-out", pair.cert),
            *("-startdate", _date(from_days), "-enddate", _date(to_days)),
        )
        return pair


def _date(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y%m%d%H%M%SZ}"


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
