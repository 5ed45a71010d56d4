"""A collector of traces in a process of its own: a gRPC server for OTLP that prints every span it gets.

As a module, what a test sees of it; as a script, the server.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from tests.certificates import Pair

PATIENCE_S = 60.0
HOST = "127.0.0.1"
TAKE, SLEEP = "take", "sleep"  # other behaviours are the status that it refuses with
SLEEP_S = 3600.0

Span = dict[str, Any]


class Collector:
    """One in another process; with TLS where there are files for that."""

    def __init__(self, behaviour: str = TAKE, port: int = 0, tls: Pair | None = None) -> None:
        self._scheme = "https" if tls else "http"
        self._lines: list[dict[str, Any]] = []
        self._moved = threading.Condition()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.e2e.collector",
                behaviour,
                str(port),
                *([tls.cert, tls.key] if tls else []),
            ],
            stdin=subprocess.PIPE,  # its end is the server's
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.port: int = self._wait(
            lambda: next((x["port"] for x in self._lines if "port" in x), 0), "a port"
        )

    @property
    def endpoint(self) -> str:
        """For `telemetry.otlp_endpoint`."""
        return f"{self._scheme}://{HOST}:{self.port}"

    @property
    def calls(self) -> int:
        """Exports so far, taken or not."""
        with self._moved:
            return sum("spans" in line for line in self._lines)

    def called(self, times: int = 1) -> None:
        """Waits for so many exports."""
        self._wait(lambda: sum("spans" in line for line in self._lines) >= times, f"{times} exports")

    def spans(self, name: str = "", **wanted: object) -> list[Span]:
        """Those it has, with this name and these fields."""
        with self._moved:
            return self._find(name, wanted)

    def wait_for(self, name: str, *, count: int = 1, **wanted: object) -> list[Span]:
        """Waits until it has so many of these."""
        found: list[Span] = self._wait(
            lambda: spans if len(spans := self._find(name, wanted)) >= count else None,
            f"{count} {name} {wanted}",
        )
        return found

    def stop(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _find(self, name: str, wanted: dict[str, object]) -> list[Span]:
        spans = [span for line in self._lines for span in line.get("spans", ())]
        return [
            span for span in spans if (not name or span["name"] == name) and wanted.items() <= span.items()
        ]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._moved:
                self._lines.append(json.loads(line))
                self._moved.notify_all()

    def _wait(self, found: Callable[[], Any], what: str) -> Any:
        with self._moved:
            self._moved.wait_for(found, PATIENCE_S)
            result = found()
            assert result, f"no {what} at the collector, which has {self._lines}"
            return result


def serve(behaviour: str, port: int, *tls: str) -> None:
    """Until its stdin ends."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
            say({"spans": [] if behaviour != TAKE else list(spans_of(request))})
            if behaviour == SLEEP:
                time.sleep(SLEEP_S)
            elif behaviour != TAKE:
                context.abort(grpc.StatusCode[behaviour], "as the test wants it")
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    address = f"{HOST}:{port}"
    if tls:
        cert, key = (Path(file).read_bytes() for file in tls)
        bound = server.add_secure_port(address, grpc.ssl_server_credentials([(key, cert)]))
    else:
        bound = server.add_insecure_port(address)
    server.start()
    say({"port": bound})
    sys.stdin.read()


def spans_of(request: Any) -> Any:
    """Every span of an export as JSON values."""
    for of_resource in request.resource_spans:
        resource = values_of(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield {
                    "name": span.name,
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent_id": span.parent_span_id.hex(),
                    "trace_state": span.trace_state,
                    "kind": span.kind,
                    "start_ns": span.start_time_unix_nano,
                    "end_ns": span.end_time_unix_nano,
                    "status": span.status.code,
                    "why": span.status.message,
                    "attributes": values_of(span.attributes),
                    "links": [[link.trace_id.hex(), link.span_id.hex()] for link in span.links],
                    "resource": resource,
                }


def values_of(attributes: Any) -> dict[str, Any]:
    """As a dict."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def say(what: dict[str, Any]) -> None:
    """One line, whole."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
