"""Which certificates are served, and that a bad one never takes the place of a good one."""

import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from server.problems import SettingsError
from server.settings import TlsTable
from server.tls import Certificates, load, warn_of_key
from server.watched import signature
from tests.certificates import Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs all of these."""
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture
def good(authority: Authority, short_path: Path) -> Pair:
    """Files of this test's own, which it may change."""
    pair = Pair(short_path / "server.pem", short_path / "server.key")
    authority.sign(short_path.name).move_to(pair)
    return pair


def table(pair: Pair, client_ca: Path | None = None) -> TlsTable:
    """The settings of a server with these files."""
    return TlsTable(cert=pair.cert, key=pair.key, client_ca=client_ca)


def problem(settings: TlsTable) -> str:
    """What is said of files that cannot be served, in one line."""
    with pytest.raises(SettingsError) as raised:
        load(settings)
    [found] = raised.value.problems
    return str(found)


def test_good_files_say_when_they_expire(good: Pair, authority: Authority) -> None:
    """With the authority of the clients, and without."""
    for client_ca in (None, authority.cert):
        expires = load(table(good, client_ca)).expires
        assert ssl.cert_time_to_seconds(expires) > good.cert.stat().st_mtime


def test_certificate_with_those_above_it(good: Pair, authority: Authority) -> None:
    """As many public authorities hand it out."""
    good.cert.write_bytes(good.cert.read_bytes() + authority.cert.read_bytes())
    assert load(table(good)).expires


@pytest.mark.parametrize(
    ("setting", "broken", "said"),
    [
        ("cert", Path.unlink, "must be a readable file: No such file or directory"),
        ("key", Path.unlink, "must be a readable file: No such file or directory"),
        ("cert", lambda path: path.write_bytes(b""), "must be a certificate as PEM"),
        ("cert", lambda path: path.write_bytes(b"\xff\x00"), "must be a certificate as PEM"),
        ("cert", lambda path: path.write_bytes(bytes(2 << 20)), "must be at most 1048576 bytes"),
        ("key", lambda path: path.write_bytes(b""), "must be a key as PEM, without a password"),
        (
            "key",
            lambda path: path.write_bytes(path.with_suffix(".pem").read_bytes()),
            "must be a key as PEM, without a password",
        ),
        ("client_ca", lambda path: path.write_bytes(b"nobody"), "must be a certificate as PEM"),
    ],
)
def test_file_that_cannot_be_served_is_named(
    good: Pair, short_path: Path, setting: str, broken: Callable[[Path], object], said: str
) -> None:
    """With its setting, its path, and what it must be."""
    client_ca = short_path / "clients.pem"
    client_ca.write_bytes(good.cert.read_bytes())
    path = {"cert": good.cert, "key": good.key, "client_ca": client_ca}[setting]
    broken(path)
    assert problem(table(good, client_ca)) == f"tls.{setting} = {path}: {said}"


def test_directory_is_no_certificate(good: Pair, tmp_path: Path) -> None:
    """The system's word for it."""
    said = problem(table(Pair(tmp_path, good.key)))
    assert said == f"tls.cert = {tmp_path}: must be a readable file: Is a directory"


def test_key_of_another_certificate(good: Pair, authority: Authority) -> None:
    """Both files are good, but not together."""
    other = authority.sign("other")
    assert problem(table(Pair(good.cert, other.key))) == f"tls.key = {other.key}: must be the key of tls.cert"


def test_key_with_a_password(good: Pair) -> None:
    """Nobody is there to type it, so it is refused, and not asked for."""
    plain = good.key.read_bytes()
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-out", str(good.key)],
        input=plain,
        check=True,
        capture_output=True,
    )
    assert problem(table(good)).endswith("must be a key as PEM, without a password")


@pytest.mark.parametrize(
    ("from_days", "to_days", "said"), [(-3, -1, "has expired"), (1, 3, "is not valid yet")]
)
def test_certificate_out_of_its_time(authority: Authority, from_days: int, to_days: int, said: str) -> None:
    """Clients would refuse it one by one; better the server says so at once."""
    pair = authority.sign(f"at{from_days}", from_days=from_days, to_days=to_days)
    assert problem(table(pair)) == f"tls.cert = {pair.cert}: {said}"


def fetched(certificates: Certificates) -> grpc.ServerCertificateConfiguration | None:
    """What gRPC is told for a new connection."""
    return certificates._fetch()


def test_new_files_are_given_to_grpc_once(good: Pair, authority: Authority) -> None:
    """None is "as before": gRPC builds its TLS context anew whenever it is given something."""
    certificates = Certificates(table(good))
    assert not certificates.refresh()
    assert fetched(certificates) is None
    authority.sign("next").move_to(good)
    with capture_logs() as logs:
        assert certificates.refresh()
    assert [line["event"] for line in logs] == ["certificate reloaded"]
    assert fetched(certificates) is not None
    assert fetched(certificates) is None
    assert not certificates.refresh()


def test_bad_files_change_nothing_and_are_told_once(good: Pair, authority: Authority) -> None:
    """Certificate and key change one after the other: between the two they do not fit."""
    certificates = Certificates(table(good))
    new = authority.sign("later")
    os.replace(new.cert, good.cert)
    with capture_logs() as logs:
        assert not certificates.refresh()
        assert not certificates.refresh()
    [line] = logs
    assert line["event"] == "certificate not reloaded, the old one stays"
    assert line["problems"] == [f"tls.key = {good.key}: must be the key of tls.cert"]
    assert fetched(certificates) is None
    os.replace(new.key, good.key)
    assert certificates.refresh()
    assert fetched(certificates) is not None


def test_files_behind_a_link_that_is_turned(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes changes a secret: the paths stay, the folder that they lead through is another."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        authority.sign(name).move_to(Pair(tmp_path / name / "tls.crt", tmp_path / name / "tls.key"))
    link = tmp_path / "current"
    link.symlink_to("one")
    certificates = Certificates(TlsTable(cert=link / "tls.crt", key=link / "tls.key"))
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(link)
    assert certificates.refresh()


def test_another_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    """As tools leave behind that keep the times of what they copy."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(0, 0))
    before = signature(tmp_path / "one")
    assert signature(tmp_path / "one") == before
    (tmp_path / "two").replace(tmp_path / "one")
    assert signature(tmp_path / "one") != before


def test_missing_files_change_nothing(good: Pair) -> None:
    """Whoever renews them may take them away first."""
    certificates = Certificates(table(good))
    content = good.cert.read_bytes()
    good.cert.unlink()
    assert not certificates.refresh()
    good.cert.write_bytes(content)
    assert certificates.refresh()


@pytest.mark.parametrize(("mode", "lines"), [(0o644, 1), (0o640, 0), (0o600, 0)])
def test_key_that_everybody_may_read(good: Pair, mode: int, lines: int) -> None:
    """Is served, with a warning: a group may be meant."""
    good.key.chmod(mode)
    with capture_logs() as logs:
        warn_of_key(table(good))
    assert [line["log_level"] for line in logs] == ["warning"] * lines
