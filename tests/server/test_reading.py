"""What a reading of a service is made of: counts of the arena, and what the supervisor knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler import _ring
from scheduler.partition import Outcome
from scheduler.priority import PriorityClass
from server.books import EngineState
from server.lineup import Lineup, Seat
from server.repository import Manifest, ModelVersion
from server.telemetry import names
from server.telemetry.reading import Known, read
from server.telemetry.totals import BATCH_SIZE_BOUNDS, DURATION_BOUNDS_S, Exemplar, Totals
from server.telemetry.trace_context import Origin
from tests.server.world import SIGNATURE, FrontEnd, request

ORIGIN = Origin("a/B")
NORMAL, LOW = "batch_processing", "background_tasks"
LABELS = [member.label for member in PriorityClass]


def seat(place: int, name: str = "pair", version: int = 3) -> Seat:
    found = ModelVersion(version, Path(f"{name}/{version}/model.pt"), "a" * 64)
    manifest = Manifest(
        name, "", "torchscript", "fp32", True, True, SIGNATURE.inputs, SIGNATURE.outputs, (found,)
    )
    return Seat(place, manifest, found)


def lineup(*seats: Seat, rows: dict[str, int] | None = None) -> Lineup:
    names_of = dict.fromkeys(each.manifest.name for each in seats)
    return Lineup((), seats, None, rows or {name: row for row, name in enumerate(names_of)})


PAIR = lineup(seat(0))


def engine(served: Lineup = PAIR, *, device: str = "cpu", ready: bool = True) -> EngineState:
    return EngineState(device, ready, {}, served)


def reading(front_end: FrontEnd, served: Lineup = PAIR, **engines: EngineState) -> Totals:
    """With these engines, by `e0` and so on; without any, one that serves it."""
    there = {int(name[1:]): state for name, state in engines.items()} or {0: engine(served)}
    known = Known(served, there, {"engine-0": 1}, {"engine-0": 2}, {("tickring_x", ""): 0.5})
    return read(front_end.arena, known, 7.0)


def only(counts: Any) -> dict[Any, int]:
    """What is not 0."""
    return {key: count for key, count in counts.items() if count}


def test_bounds_are_those_of_the_arena() -> None:
    """Seconds here and nanoseconds there, and rows."""
    assert [round(bound * 1e9) for bound in DURATION_BOUNDS_S] == _ring.duration_bounds_ns()
    assert list(BATCH_SIZE_BOUNDS) == _ring.batch_size_bounds()


def test_everything_is_there_before_the_first_request(front_end: FrontEnd) -> None:
    """With 0, so that the first of anything is one more and not the first that is known."""
    totals = reading(front_end)
    flows = {("pair", label) for label in LABELS}
    assert only(totals.requests) == only(totals.shed) == only(totals.depth) == {}
    assert totals.request_s.keys() == totals.queue_wait_s.keys() == totals.depth.keys() == flows
    assert {
        ("pair", NORMAL, "OK"),
        ("pair", NORMAL, "INTERNAL"),
        ("", "", "UNAUTHENTICATED"),
    } <= totals.requests.keys()
    assert {
        (*flow, reason) for flow in {*flows, ("", "")} for reason in names.SHED_REASONS
    } == totals.shed.keys()
    assert all(each.count == 0 for each in totals.request_s.values())
    assert totals.batch_size["pair"].count == totals.padding["pair"] == totals.target["pair"] == 0
    assert (totals.expired, totals.cancelled, totals.in_flight_batches) == (0, 0, {"cpu": 0})
    assert totals.compute_s == {}
    assert totals.slots_free == {"frontend-0": 16}


def test_what_the_supervisor_knows_is_passed_on(front_end: FrontEnd) -> None:
    """As it is."""
    totals = reading(front_end)
    assert (totals.at_s, totals.up, totals.restarts) == (7.0, {"engine-0": 1}, {"engine-0": 2})
    assert totals.readings == {("tickring_x", ""): 0.5}


def test_requests_are_told_by_model_class_and_code(front_end: FrontEnd) -> None:
    """With their durations in seconds; refused ones have none."""
    arrived_ns = _ring.now_ns() - 40_000_000
    front_end.submit(request(2), arrived_ns=arrived_ns, origin=ORIGIN)
    front_end.submit(request(priority=5), origin=ORIGIN)
    front_end.complete(Outcome.RESULT, Outcome.RESULT, Outcome.ERROR)
    front_end.admission.draining = True
    for _ in range(2):
        with pytest.raises(Exception, match="draining"):
            front_end.submit(request(), origin=ORIGIN)
    with pytest.raises(Exception, match="draining"):
        front_end.submit(request(model_name="none"), origin=ORIGIN)
    totals = reading(front_end)
    assert only(totals.requests) == {
        ("pair", NORMAL, "OK"): 1,
        ("pair", LOW, "INTERNAL"): 1,
        ("pair", "", "UNAVAILABLE"): 2,
        ("", "", "UNAVAILABLE"): 1,
    }
    assert only(totals.shed) == {("pair", "", "DRAINING"): 2, ("", "", "DRAINING"): 1}
    assert {flow for flow, each in totals.request_s.items() if each.count} == {
        ("pair", NORMAL),
        ("pair", LOW),
    }
    took, waited = totals.request_s["pair", NORMAL], totals.queue_wait_s["pair", NORMAL]
    assert 0.04 <= waited.total <= took.total < 40
    assert (took.count, waited.count) == (1, 1)


def test_items_that_end_unserved_are_told(front_end: FrontEnd) -> None:
    """By rows."""
    front_end.submit(request(3), origin=ORIGIN).cancel()
    front_end.complete(Outcome.RESULT)
    front_end.submit(request(2), expires_ns=_ring.now_ns() + 900_000_000, origin=ORIGIN)
    front_end.complete(Outcome.RESULT, after_ns=1_000_000_000)
    totals = reading(front_end)
    assert (totals.expired, totals.cancelled) == (2, 3)
    assert only(totals.requests) == {
        ("pair", NORMAL, "CANCELLED"): 1,
        ("pair", NORMAL, "DEADLINE_EXCEEDED"): 1,
    }


def test_batches_are_told_by_model_and_bucket(make_front_end: Callable[..., FrontEnd]) -> None:
    """Of all engines; their sizes without padding."""
    front_end = make_front_end(engine_count=2)
    front_end.ports[0].count_batch(0, 3, 4, 2_000_000)
    front_end.ports[1].count_batch(0, 4, 4, 2_000_000)
    front_end.ports[1].count_batch(0, 1, 1, 1_000)
    totals = reading(front_end)
    assert {key: (each.count, each.total) for key, each in totals.compute_s.items()} == {
        ("pair", 4): (2, 0.004),
        ("pair", 1): (1, 0.000_001),
    }
    assert (totals.batch_size["pair"].count, totals.batch_size["pair"].total) == (3, 8.0)
    assert totals.padding == {"pair": 1}


def test_exemplars_are_told_by_the_bucket_of_their_duration(front_end: FrontEnd) -> None:
    """As hexadecimal digits and seconds."""
    recorder = _ring.RequestRecorder(front_end.arena.native, 0)
    recorder.exemplar(0, PriorityClass.BATCH_PROCESSING.index, 60_000, (0xAB).to_bytes(16), 1_500_000_000)
    assert reading(front_end).exemplars["pair", NORMAL] == {1: Exemplar(f"{0xAB:032x}", 0.000_06, 1.5)}


def test_depth_is_what_waits_in_lanes_and_at_the_entrance(make_front_end: Callable[..., FrontEnd]) -> None:
    """By model and class, also of an engine that retires, and not twice."""
    front_end = make_front_end(model_count=2)
    front_end.hold_all_but_two()
    for _ in range(5):
        front_end.submit(request(priority=5), origin=ORIGIN)
    assert front_end.entrance.held_rows[4] == 3
    assert only(reading(front_end).depth) == {("pair", LOW): 5}
    retiring, other = engine(PAIR), lineup(seat(1, "other"), rows={"pair": 0, "other": 1})
    assert only(reading(front_end, other, e0=retiring).depth) == {("pair", LOW): 5}
    front_end.complete(Outcome.RESULT, count=2)
    front_end.entrance.let_in(_ring.now_ns())
    assert front_end.entrance.held_rows[4] == 2
    assert only(reading(front_end).depth) == {("pair", LOW): 3}


def test_held_items_that_expire_do_not_wait_any_more(front_end: FrontEnd) -> None:
    """Nor those of a front end that is gone."""
    front_end.hold_all_but_two()
    now_ns = _ring.now_ns()
    for _ in range(4):
        front_end.submit(request(priority=5), expires_ns=now_ns + 200 * 10**9, origin=ORIGIN)
    front_end.submit(request(2, priority=5), expires_ns=now_ns + 30 * 10**9, origin=ORIGIN)
    assert reading(front_end).depth["pair", LOW] == 6
    front_end.entrance.let_in(now_ns + 31 * 10**9)
    assert reading(front_end).depth["pair", LOW] == 4
    front_end.arena.native.reset_frontend(0)
    assert only(reading(front_end).depth) == {}


def test_target_is_the_largest_of_any_version_and_engine(make_front_end: Callable[..., FrontEnd]) -> None:
    """Of what is served now."""
    front_end = make_front_end(engine_count=2, model_count=3)
    for port, model, target in ((0, 0, 8), (1, 0, 16), (0, 1, 4), (0, 2, 64)):
        front_end.ports[port].publish_forecast(model, target, 1, [1], [1], [1], [1])
    served = lineup(seat(0), seat(1, version=4))
    assert reading(front_end, served, e0=engine(served), e1=engine(served)).target == {"pair": 16}


def test_batches_in_flight_are_told_by_device(make_front_end: Callable[..., FrontEnd]) -> None:
    """Of a device both chairs together; what a dead engine has published says nothing."""
    front_end = make_front_end(engine_count=3)
    for port, batches in enumerate((2, 3, 4)):
        front_end.ports[port].publish_in_flight(batches)
    first, second = engine(device="cuda:0"), engine(device="cuda:1", ready=False)
    totals = reading(front_end, e0=first, e1=second, e2=engine(device="cuda:0"))
    assert totals.in_flight_batches == {"cuda:0": 6, "cuda:1": 0}


def test_version_is_ready_while_an_engine_serves_it(make_front_end: Callable[..., FrontEnd]) -> None:
    """That very version, in its place."""
    front_end = make_front_end(engine_count=2, model_count=2)
    served = lineup(seat(0), seat(1, version=4))
    assert reading(front_end, served, e0=engine(PAIR)).model_ready == {("pair", "3"): 1, ("pair", "4"): 0}
    assert reading(front_end, served, e0=engine(served, ready=False)).model_ready == {
        ("pair", "3"): 0,
        ("pair", "4"): 0,
    }
    both = reading(front_end, served, e0=engine(served, ready=False), e1=engine(served))
    assert both.model_ready == {("pair", "3"): 1, ("pair", "4"): 1}


def test_a_model_that_is_gone_keeps_its_counts(front_end: FrontEnd) -> None:
    """Under its name, though nothing is loaded of it."""
    front_end.submit(origin=ORIGIN)
    front_end.complete(Outcome.RESULT)
    gone = Lineup((), (), None, {"pair": 0})
    totals = reading(front_end, gone, e0=engine(gone))
    assert only(totals.requests) == {("pair", NORMAL, "OK"): 1}
    assert totals.model_ready == {}


def test_models_without_a_row_are_told_together(front_end: FrontEnd) -> None:
    """Only when all rows are taken there can be any."""
    assert not [flow for flow in reading(front_end).request_s if flow[0] == names.OTHER]
    recorder = _ring.RequestRecorder(front_end.arena.native, 0)
    recorder.ended(_ring.OTHER_MODELS, 2, 0, 1, 1)
    rows = {f"m{row}": row for row in range(_ring.MAX_MODELS)}
    totals = reading(front_end, lineup(seat(0), rows=rows))
    assert only(totals.requests) == {(names.OTHER, NORMAL, "OK"): 1}


def test_completed_batch_is_counted_before_its_answers(front_end: FrontEnd) -> None:
    """Whoever has an answer and looks finds it counted: the slots go back last."""
    slots = np.empty(1, np.uint32)
    front_end.submit(origin=ORIGIN)
    front_end.engine.take(0, 0, 0, slots)
    front_end.engine.complete(slots, np.ones(1, np.uint8), 0, 1, 2, 1, 1)
    counted: list[int] = []
    answer = front_end.answers.append

    def look(result: Any) -> None:
        counted.append(sum(only(reading(front_end).requests).values()))
        answer(result)

    front_end.answers = type("Answers", (list,), {"append": lambda _, result: look(result)})()
    front_end.partition.drain()
    assert counted == [1]
