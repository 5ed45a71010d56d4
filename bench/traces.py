"""What traces cost: the same load on servers that trace nothing, one request in a hundred, and every one.

    python -m bench.traces [--rounds 6] [--calls 6000] [--in-flight 64] [--mode unary|stream]

The servers and a collector, which takes spans and forgets them, run side by side on this machine; rounds take
turns and each server is first in turn, so that a change of the machine's speed meets all. The figures are
medians of the ratios to the server without traces in the same round, and the processor time of the front end
for each call, which other load hardly touches. No request says that it is to be traced: the server's own
ratio does.

Exits with 1 when the server that traces one in a hundred carries less than 0.98 of what the one without does.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from bench.kserve import PREDICT, measure
from bench.report import Check, print_checks, print_table
from bench.server_process import ServerProcess

LEAST = 0.98
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
OFF, SOME, ALL = "off", "1 %", "100 %"
RATIOS = {SOME: "0.01", ALL: "1"}


class _Sink(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # no generic class when it runs
    """Answers every export as taken: an empty message says so."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method != EXPORT:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")


def collect() -> None:
    """A collector, until its stdin ends; prints its port first."""
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Sink(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None)


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """One in a process of its own; its endpoint."""
    command = [sys.executable, "-m", "bench.traces", "--collect"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate()


def main() -> int:
    """Prints rounds and verdict; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--mode", choices=["unary", "stream"], default="unary")
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)  # the collector process
    arguments = parser.parse_args()
    if arguments.collect:
        collect()
        return 0
    calls, in_flight, mode = arguments.calls, arguments.in_flight, arguments.mode
    rates: dict[str, list[float]] = {OFF: [], SOME: [], ALL: []}
    cpu_us: dict[str, list[float]] = {OFF: [], SOME: [], ALL: []}
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        servers = {OFF: stack.enter_context(ServerProcess({"TICKRING_SERVER__FRONTENDS": "1"}))}
        for name, ratio in RATIOS.items():
            settings = {
                "TICKRING_SERVER__FRONTENDS": "1",
                "TICKRING_TELEMETRY__OTLP_ENDPOINT": endpoint,
                "TICKRING_TELEMETRY__TRACE_SAMPLE_RATIO": ratio,
                # None is traced for being slow: at 64 in flight all may be.
                "TICKRING_SLO__P99_MS": "3600000",
            }
            servers[name] = stack.enter_context(ServerProcess(settings))
        names = list(servers)
        for number in range(arguments.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                frontend = servers[name].child("frontend")
                before = sum(frontend.cpu_times()[:2])
                rates[name].append(measure(servers[name].target, PREDICT, mode, in_flight, calls))
                cpu_us[name].append((sum(frontend.cpu_times()[:2]) - before) / (calls + in_flight) * 1e6)
    rows, ratios = [], {}
    for name in names:
        ratios[name] = [rate / off for rate, off in zip(rates[name], rates[OFF], strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(rates[name]):.0f}",
                f"{statistics.median(ratios[name]):.3f}",
                f"{min(ratios[name]):.3f} to {max(ratios[name]):.3f}",
                f"{statistics.median(cpu_us[name]):.1f}",
            ]
        )
    print_table(["traced", "calls/s", "beside off", "spread", "front end, us of processor a call"], rows)
    return print_checks(
        [Check("throughput at 1 % beside off", statistics.median(ratios[SOME]), LEAST, "x", at_most=False)]
    )


if __name__ == "__main__":
    sys.exit(main())
