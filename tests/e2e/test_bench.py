"""`tickring bench` against a real server: what it says is true, and it knows when it cannot say."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram

from tests.e2e.metrics import scrape
from tests.e2e.service import Service

PATIENCE_S = 90.0
Told = dict[str, Any]


def bench(service: Service, *arguments: str, code: int | None = 0, cwd: Path | None = None) -> Told:
    """Runs it; what it says as JSON, and its exit code, which `None` leaves open."""
    command = [sys.executable, "-m", "client.cli", "bench", *arguments, "--target", service.target]
    done = subprocess.run(
        [*command, "--json", *(() if cwd else ("--no-files",))],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        check=False,
    )
    assert code in (None, done.returncode), done.stderr + done.stdout[-2000:]
    told: Told = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return {**told, "code": done.returncode}


def metrics_url(service: Service) -> str:
    return f"{service.wait_for('ready')['status'].removesuffix('/status')}/metrics"


def only_flow(told: Told) -> Told:
    ((flow,),) = [run["flows"] for run in told["runs"]]
    found: Told = flow
    return found


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_latency_keeps_calls_in_flight(bundled: Service, mode: str) -> None:
    flow = only_flow(bench(bundled, "latency", "--seconds", "2", "--mode", mode, "--in-flight", "4"))
    assert flow["ends"] == {"RESULT": flow["calls"]}
    assert flow["per_s"] == pytest.approx(flow["results"] / 2, rel=0.05)
    assert flow["results"] > 50
    latency, server = flow["latency_ms"], flow["server_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"] < 5000
    # Little's law: calls in flight are as many as answers per second times how long each takes, on average.
    mean_us = HdrHistogram.decode(flow["histogram"]).get_mean_value()
    assert mean_us * flow["per_s"] / 1e6 == pytest.approx(4, rel=0.2)
    assert server["p50"] < latency["p50"]
    assert flow["wait_ms"]["p50"] + flow["compute_ms"]["p50"] < 1.5 * server["p50"]


@pytest.mark.parametrize("mode", ["unary", "stream"])
def test_load_offers_the_rate_with_several_processes(bundled: Service, mode: str) -> None:
    told = bench(
        bundled, "load", "--rate", "constant:100", "--seconds", "3", "--mode", mode, "--processes", "2",
        "--timeout", "5", "--max-lag", "2000",
    )  # fmt: skip
    flow = only_flow(told)
    assert (flow["calls"], flow["results"]) == (300, 300)
    assert len(told["runs"][0]["pace"]["cpu"]) == 2
    assert sum(moment["per_s"] for moment in flow["moments"]) == pytest.approx(300)


def test_flows_run_side_by_side_by_their_class(bundled: Service) -> None:
    told = bench(
        bundled, "load", "--seconds", "2", "--max-lag", "2000",
        "--flow", "rate=40 priority=high timeout=5",
        "--flow", "in_flight=2 priority=low rows=4 mode=stream",
    )  # fmt: skip
    urgent, bulk = told["runs"][0]["flows"]
    assert (urgent["name"], urgent["priority"], urgent["rows"]) == ("high", 1, 1)
    assert (bulk["name"], bulk["priority"], bulk["rows"]) == ("low", 5, 4)
    assert urgent["results"] > 40
    assert bulk["results"] > 10


def test_promises_decide_the_exit_code(bundled: Service) -> None:
    kept = bench(bundled, "latency", "--seconds", "1", "--slo", "p99_ms=5000", "--slo", "max_error_ratio=0.5")
    assert kept["holds"]
    assert {verdict["text"] for verdict in kept["verdicts"]} == {"holds"}
    missed = bench(bundled, "latency", "--seconds", "1", "--slo", "p50_ms=0.001", code=1)
    (verdict,) = missed["verdicts"]
    assert verdict["text"].startswith("missed by")


def test_reports_are_written(bundled: Service, tmp_path: Path) -> None:
    bench(bundled, "latency", "--seconds", "1", "--out", "here", cwd=tmp_path)
    page, told = sorted((tmp_path / "here").iterdir())
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(told.read_text())["scenario"] == "latency"


@pytest.mark.parametrize("loop", ["open", "closed"])
def test_stall_is_seen_by_the_open_loop_alone(bundled: Service, loop: str) -> None:
    """The engine stands still for a second of four. Whoever should have called then has waited, too; a closed
    loop sends nothing meanwhile, and has one long call.
    """
    offered = {"open": ("load", "--rate", "constant:100"), "closed": ("latency", "--in-flight", "1")}
    arguments = (*offered[loop], "--seconds", "4", "--warm-up", "0", "--timeout", "8", "--max-lag", "2000")
    before = answered(bundled)
    with ThreadPoolExecutor(1) as beside:
        told = beside.submit(bench, bundled, *arguments)
        while answered(bundled) < before + 20 and not told.done():
            time.sleep(0.05)
        with bundled.paused("engine-0"):
            time.sleep(1.0)
        latency = only_flow(told.result())["latency_ms"]
    assert latency["max"] > 900
    if loop == "open":
        assert latency["p90"] > 300
    else:
        assert latency["p90"] < 300


def answered(service: Service) -> float:
    return scrape(service).value("tickring_requests_total", code="OK")


def test_compare_finds_that_batching_pays(bundled: Service) -> None:
    told = bench(
        bundled, "compare", "--bypass", "--in-flight", "32", "--rounds", "3", "--seconds", "1",
        "--mode", "stream", "--connections", "2",
    )  # fmt: skip
    (table,) = told["tables"]
    (row,) = [row for row in table["rows"] if row[0] == "answers per second"]
    assert table["header"][1:3] == ["batched", "plain"]
    assert float(row[3]) < 0.9, row
    assert [run["title"] for run in told["runs"]] == [
        "batched 1",
        "plain 1",
        "batched 2",
        "plain 2",
        "batched 3",
        "plain 3",
    ]


def test_mixed_tells_what_bulk_costs(bundled: Service) -> None:
    told = bench(
        bundled, "mixed", "--rate", "50", "--bulk-in-flight", "16", "--seconds", "2", "--max-lag", "2000"
    )
    alone, beside = told["runs"]
    assert [flow["name"] for flow in beside["flows"]] == ["urgent", "bulk"]
    assert [flow["priority"] for flow in beside["flows"]] == [1, 5]
    assert alone["flows"][0]["results"] > 50
    assert beside["flows"][1]["results"] > 20


def test_stress_finds_what_a_server_stands(bundled: Service) -> None:
    """No machine answers 200,000 calls a second from one process; where the search ends depends on it."""
    arguments = ("stress", "--rate", "50", "--factor", "8", "--seconds", "1", "--slo", "p99_ms=2000")
    told = bench(bundled, *arguments, "--max-lag", "2000")
    rates = [float(run["title"].removesuffix("/s")) for run in told["runs"]]
    assert rates[0] == 50
    assert rates == sorted(rates)
    assert any(word in told["notes"][-1] for word in ("the knee is between", "nothing broke up to"))
    (levels,) = told["tables"]
    assert [float(row[0].replace(",", "")) for row in levels["rows"]] == rates
    assert levels["rows"][0][-1] == "holds"


def test_validate_asks_for_what_a_platform_does(bundled: Service) -> None:
    """Whether all of it is kept is the machine's matter; the verdicts are told, and decide the exit code."""
    arguments = ("validate", "--seconds", "2", "--max-lag", "2000", "--metrics", metrics_url(bundled))
    told = bench(bundled, *arguments, code=None)
    assert told["code"] == (0 if told["holds"] else 1)
    assert [run["title"] for run in told["runs"]] == ["200/s", "500/s"]
    names = [verdict["name"] for verdict in told["verdicts"]]
    promised = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "max_error_ratio", "min_rps")
    assert names[:6] == [f"load: {name}" for name in promised]
    assert {"peak: answers of 500/s", "machine: CPU used, mean", "machine: memory used, mean"} <= set(names)
    assert all(verdict["figure"] is not None for verdict in told["verdicts"])
    assert told["runs"][0]["flows"][0]["ends"] == {"RESULT": told["runs"][0]["flows"][0]["calls"]}


def test_soak_watches_the_server(bundled: Service) -> None:
    told = bench(
        bundled, "soak", "--rate", "50", "--seconds", "3", "--max-lag", "2000",
        "--metrics", metrics_url(bundled),
    )  # fmt: skip
    names = [verdict["name"] for verdict in told["verdicts"]]
    assert "processes that died" in names
    assert {"memory of supervisor beside before", "memory of engine-0 beside before"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("load", "--rate", "fast"), 2, "is no number"),
        (("load", "--flow", "priority=high"), 2, "needs either rate= or in_flight="),
        (("load", "--flow", "speed=5"), 2, "allowed are name="),
        (("load", "--flow", "rate=5 priority=urgent"), 2, "unknown priority"),
        (("load", "--slo", "p98_ms=5"), 2, "unknown objective"),
        (("load", "--model", "nobody"), 2, "the server has no model 'nobody'"),
        (("load", "--input", "/nowhere.npy"), 2, "cannot read /nowhere.npy"),
        (("compare",), 2, "needed is one of them"),
        (("compare", "--set", "scheduler.latency_budget_ms=5"), 2, "--admin-target"),
    ],
)
def test_what_cannot_be_is_refused(
    bundled: Service, arguments: tuple[str, ...], code: int, says: str
) -> None:
    told = bench(bundled, *arguments, code=code)
    assert says in told["error"]
    assert told["error"].count("\n") == 1


def test_generator_that_falls_behind_reports_nothing(bundled: Service) -> None:
    """More than one Python process can send."""
    told = bench(bundled, "load", "--rate", "50000", "--seconds", "1", "--warm-up", "0", code=1)
    assert told["error"].startswith("tickring: the generator")
    assert "--processes" in told["error"]


def test_nobody_there_is_one_line() -> None:
    command = [sys.executable, "-m", "client.cli", "bench", "load", "--target", "127.0.0.1:1", "--no-files"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tickring: UNAVAILABLE")
    assert done.stderr.count("\n") == 1


def test_interrupt_shows_what_was_measured(bundled: Service) -> None:
    command = [sys.executable, "-m", "client.cli", "bench", "load", "--rate", "50", "--seconds", "60"]
    command += ["--target", bundled.target, "--no-files", "--json", "--max-lag", "2000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "")
    told = json.loads(out)
    assert told["runs"][0]["interrupted"]
    assert 0.5 < told["runs"][0]["counted_s"] < 6
    assert told["notes"] == ["interrupted: what is shown was measured until then"]
