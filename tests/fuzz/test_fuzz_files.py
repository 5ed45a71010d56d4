"""Whatever is in a file that an operator writes: it is taken, or refused in words."""

import string
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.auth import read_tokens
from server.configuration import load_settings
from server.problems import SettingsError
from server.repository import RepositoryError, load_repository

CASES = 400
MANIFEST = f"""\
name = "m"
description = "a model"
format = "torchscript"
precision = "fp32"
finite_inputs = true
[[inputs]]
name = "window"
data_type = "FP32"
shape = [50, 60]
[[outputs]]
name = "probs"
data_type = "FP16"
shape = [3]
[versions.1]
sha256 = "{"0" * 64}"
[scheduler]
max_batch_size = 8
buckets = [1, 8]
latency_budget_ms = 2.5
queue_limit = 100
default_priority = "high"
"""
SETTINGS = """\
[server]
host = "127.0.0.1"
grpc_port = 0
frontends = "auto"
max_message_bytes = 2000
max_cancels_per_s = 10.5
[scheduler]
max_batch_size = 8
buckets = [1, 8]
spin_us = "auto"
default_class = "high"
[scheduler.classes.batch_processing]
slack_ms = 50
max_wait_ms = 2.5
queue_limit = 100
default_timeout_ms = 1000
[executor]
device = "cpu,cpu"
instances = 1
cpu_affinity = [0, 1]
[telemetry]
log_level = "debug"
"""
TOKENS = f"""\
[tokens.engine-1]
roles = ["predict"]
sha256 = "{"1" * 64}"
expires = 2030-01-01T00:00:00Z
[tokens.second]
roles = ["observe", "admin"]
sha256 = "{"2" * 64}"
"""
# More than Python reads, and no ValueError.
DEEP = b"a = " + b"[" * 5000
# A number that Python reads and does not write.
LONG = b"name = 0x" + b"f" * 5000
values = st.sampled_from(
    [
        *("0", "1", "-1", "1.5", "true", '""', '"high"', '"auto"', "[]", "{}", "[[]]", "[{}]", "{a = 1}"),
        *("inf", "-inf", "nan", "1e400", "1979-05-27", "07:32:00", "0001-01-01T00:00:00+23:59", '"\\u0000"'),
        *(
            "9" * 400,
            "9" * 5000,
            "0x" + "f" * 5000,
            "[0x" + "f" * 5000 + "]",
            '"\\n\\u001b[31m"',
            '"\U0001f600"',
        ),
        *("[" * 500 + "]" * 500, '"' + "x" * 5000 + '"', "[true, 1]", "[1, 8, 8]", "9223372036854775808"),
        *("-9223372036854775809", "'''\n'''", "[9223372036854775807, 9223372036854775807]", "1e308"),
    ]
) | st.text(string.printable, max_size=20)


@st.composite
def mistaken(draw: st.DrawFn, good: str) -> str:
    """A good file with some lines changed, lost, repeated or moved."""
    lines = good.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                del lines[at]
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                lines.insert(at, draw(st.text(string.printable, max_size=30)))
            case _:
                key = lines[at].partition("=")[0]
                lines[at] = f"{key}= {draw(values)}"
        lines = lines or [""]
    return "\n".join(lines)


def contents(good: str) -> st.SearchStrategy[bytes]:
    """Of files: mistaken ones, and any bytes."""
    text = mistaken(good) | st.text(max_size=100)
    return text.map(lambda written: written.encode("utf-8", "surrogatepass")) | st.binary(max_size=100)


def check_words(error: Exception) -> None:
    """Printable lines, none of them very long."""
    lines = str(error).split("\n")
    assert all(line and line.isprintable() and len(line) < 1500 for line in lines), lines


def load_manifest(content: bytes) -> None:
    """As that of the only model of a repository."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m"
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.pt").write_bytes(b"")
        (model / "model.toml").write_bytes(content)
        try:
            assert load_repository(Path(folder)).manifests[0].name == "m"
        except RepositoryError as error:
            check_words(error)


@settings(max_examples=CASES, deadline=None)
@given(contents(MANIFEST))
@example(LONG)
@example(DEEP)
@example(MANIFEST.replace("[50, 60]", f"[0x{'f' * 5000}]").encode())
def test_manifest(content: bytes) -> None:
    """Of a repository with one model."""
    load_manifest(content)


def _written(content: bytes, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.toml"
        path.write_bytes(content)
        try:
            assert read(path)
        except SettingsError as error:
            check_words(error)


@settings(max_examples=CASES, deadline=None)
@given(contents(SETTINGS))
@example(DEEP)
@example(LONG)
def test_settings_file(content: bytes) -> None:
    """Alone."""
    _written(content, lambda path: load_settings({}, config=path, environ={}))


@settings(max_examples=CASES, deadline=None)
@given(contents(TOKENS))
@example(DEEP)
@example(b"[tokens.a]\nroles = [0x" + b"f" * 5000 + b"]\n")
def test_tokens_file(content: bytes) -> None:
    """As it is read at the start, and whenever it changes."""
    _written(content, read_tokens)


environments = st.dictionaries(
    st.sampled_from(
        [
            *("TICKRING_SERVER__GRPC_PORT", "TICKRING_SERVER__FRONTENDS", "TICKRING_SCHEDULER__BUCKETS"),
            *(
                "TICKRING_EXECUTOR__DEVICE",
                "TICKRING_SERVER",
                "TICKRING_",
                "TICKRING___",
                "TICKRING_SERVER__",
            ),
            *("TICKRING_EXECUTOR__CPU_AFFINITY", "TICKRING_SCHEDULER__CLASSES__BATCH_PROCESSING__SLACK_MS"),
        ]
    )
    | st.text(string.ascii_uppercase + "_", max_size=20).map(lambda name: f"TICKRING_{name}"),
    values,
    max_size=3,
)


@settings(max_examples=CASES, deadline=None)
@given(environments)
@example({"TICKRING_EXECUTOR__CPU_AFFINITY": "[" * 5000})
def test_environment(environ: dict[str, str]) -> None:
    """Every variable of our prefix."""
    try:
        assert load_settings({}, environ=environ)
    except SettingsError as error:
        check_words(error)


@pytest.mark.parametrize(
    ("good", "read"),
    [(SETTINGS, lambda path: load_settings({}, config=path, environ={})), (TOKENS, read_tokens)],
    ids=["settings", "tokens"],
)
def test_good_files_are_good(tmp_path: Path, good: str, read: Callable[[Path], object]) -> None:
    """Those that the mistakes are made in."""
    path = tmp_path / "a.toml"
    path.write_text(good)
    assert read(path)
