"""What became of calls: counted once, in the right place, and added up over processes."""

import json

import pytest

from client.load.recorder import KINDS, Record, Recorder, add_up, from_json, to_json


def filled(offset_ms: float = 0.0, calls: int = 100) -> Record:
    """A hundred calls in ten seconds, with latencies of 1 to 100 ms; every tenth fails besides."""
    recorder = Recorder(10.0, 1.0)
    for number in range(calls):
        due_s = number * 10.0 / calls
        latency_s = (number + 1 + offset_ms) / 1e3
        recorder.sent(due_s, 0.0001)
        recorder.result(due_s, due_s + latency_s)
        recorder.told(due_s, latency_s / 4, latency_s / 2, latency_s * 0.8)
        if number % 10 == 0:
            recorder.sent(due_s, 0.002)
            recorder.failure(due_s, "RESOURCE_EXHAUSTED QUEUE_FULL")
    return recorder.record


def test_quantiles() -> None:
    record = filled()
    assert record.ms("latency", 0.5) == pytest.approx(50, rel=2e-3)
    assert record.ms("latency", 0.99) == pytest.approx(99, rel=2e-3)
    assert record.ms("latency", 1.0) == pytest.approx(100, rel=2e-3)
    assert record.ms("wait", 0.5) == pytest.approx(12.5, rel=2e-3)
    assert record.ms("compute", 0.5) == pytest.approx(25, rel=2e-3)
    assert record.ms("server", 0.5) == pytest.approx(40, rel=2e-3)
    assert record.ms("lag", 1.0) == pytest.approx(2, rel=2e-3)


def test_every_call_is_counted_once() -> None:
    record = filled()
    assert (record.offered, record.results, record.failures) == (110, 100, 10)
    assert record.error_ratio == pytest.approx(10 / 110)
    assert [interval.results for interval in record.intervals] == [10] * 10
    assert [interval.failures for interval in record.intervals] == [1] * 10


@pytest.mark.parametrize("due_s", [-0.001, 10.0, 11.0])
def test_what_is_before_or_after_does_not_count(due_s: float) -> None:
    recorder = Recorder(10.0, 1.0, timeout_s=0.5)
    recorder.sent(due_s, 0.5)
    recorder.result(due_s, due_s + 1)
    recorder.told(due_s, 0.1, 0.1, 0.1)
    recorder.failure(due_s, "CANCELLED")
    assert to_json(recorder.record) == to_json(Recorder(10.0, 1.0).record)


def test_answers_in_time_count_when_they_come() -> None:
    """Due in the warm-up or not; what is late, or comes after the end, does not count."""
    recorder = Recorder(10.0, 1.0, timeout_s=0.5)
    for due_s, ended_s in [(-0.3, 0.2), (1.0, 1.5), (1.0, 1.501), (3.9, 4.1), (9.8, 10.0), (-0.5, -0.1)]:
        recorder.result(due_s, ended_s)
    assert [interval.in_time for interval in recorder.record.intervals] == [1, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert add_up([recorder.record, from_json(to_json(recorder.record))]).in_time == 6


def test_without_a_timeout_every_answer_is_in_time() -> None:
    assert filled().in_time == 99  # the last one comes at the end


def test_nothing_recorded_has_no_quantiles() -> None:
    record = Record()
    assert [record.ms(kind, 0.99) for kind in KINDS] == [None] * len(KINDS)
    assert record.error_ratio == 0


def test_what_processes_saw_is_added_up() -> None:
    together = add_up([filled(), filled(100)])
    assert (together.offered, together.results, together.failures) == (220, 200, 20)
    assert together.ms("latency", 0.5) == pytest.approx(100, rel=2e-3)
    assert together.ms("latency", 1.0) == pytest.approx(200, rel=2e-3)
    assert [interval.results for interval in together.intervals] == [20] * 10
    assert together.intervals[9].latency.get_total_count() == 20


def test_json_keeps_all_of_it() -> None:
    told = json.loads(json.dumps(to_json(filled())))
    assert to_json(from_json(told)) == told
    assert from_json(told).ms("latency", 0.99) == filled().ms("latency", 0.99)


@pytest.mark.parametrize(("seconds", "expected_ms"), [(0.0, 0.001), (-1.0, 0.001), (1e9, 3_600_000)])
def test_extremes_are_kept_within_bounds(seconds: float, expected_ms: float) -> None:
    recorder = Recorder(10.0, 1.0)
    recorder.result(1.0, 1.0 + seconds)
    assert recorder.record.ms("latency", 1.0) == pytest.approx(expected_ms, rel=2e-3)
