"""A Prometheus of the tests' own, configured as deploy/prometheus says, and what it answers."""

import json
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.test_repo import ROOT

CONFIGURATION = ROOT / "deploy" / "prometheus"
# What the example has, and what a test has the patience for.
EVERY, OFTEN = "15s", "1s"
EXAMPLE_TARGET = "127.0.0.1:8002"
READY = "Server is ready to receive web requests."
PATIENCE_S = 30.0


class Prometheus:
    """One `prometheus` on a free port of 127.0.0.1, with its data in a folder, scraping one server."""

    def __init__(self, folder: Path, target: str) -> None:
        """Starts it with the example and the rules of the checkout. `target`: host and port of /metrics."""
        example = (CONFIGURATION / "prometheus.yml").read_text()
        assert EVERY in example
        assert EXAMPLE_TARGET in example
        configuration = folder / "prometheus.yml"
        configuration.write_text(example.replace(EVERY, OFTEN).replace(EXAMPLE_TARGET, target))
        (folder / "rules.yml").write_text((CONFIGURATION / "rules.yml").read_text())
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.output: list[str] = []
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ready(self) -> "Prometheus":
        """Waits until it answers queries."""
        self._is_ready.wait(PATIENCE_S)
        (listening,) = (
            connection
            for connection in psutil.Process(self._process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        )
        self._url = f"http://127.0.0.1:{listening.laddr.port}/api/v1"
        return self

    def query(self, expression: str) -> list[Mapping[str, Any]]:
        """The series that an expression gives at this moment, each with its labels. Fails if it is wrong."""
        result: list[Mapping[str, Any]] = self.get(f"query?{urllib.parse.urlencode({'query': expression})}")[
            "result"
        ]
        return result

    def get(self, path: str) -> Any:
        """The data of an answer. Fails with what it says is wrong."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}", timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{urllib.parse.unquote_plus(path)}: {error.read().decode()}") from error

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.output.append(line.rstrip("\n"))
            if READY in line:
                self._is_ready.set()
        self._process.stderr.close()
        self._is_ready.set()  # it has ended, and will not be ready any more
