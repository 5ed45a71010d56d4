"""The monitor of a GPU: what it passes on, and when it calls the GPU lost."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import pytest
from structlog.testing import capture_logs

from server import gpu
from server.gpu import GpuMonitor
from tests.server.fake_nvml import DOUBLE_BIT_EVENT, UUID, XID_EVENT, FakeNvml

LOST = "lost"
DRAIN = "drain"
LOGGED, DRAINED, DEADLY = 31, 64, 79


class Watched:
    """A monitor over a fake GPU, and what it has said."""

    def __init__(self, nvml: FakeNvml) -> None:
        self.nvml = nvml
        self.told = queue.Queue[tuple[str, str]]()
        self.published: list[dict[str, float]] = []
        self.monitor = GpuMonitor(
            UUID,
            on_lost=lambda reason: self.told.put((LOST, reason)),
            on_drain=lambda reason: self.told.put((DRAIN, reason)),
            on_readings=self.published.append,
            nvml=nvml,
        )

    def report(self, *xids: int) -> None:
        for xid in xids:
            self.nvml.events.put((XID_EVENT, xid))

    def hears(self) -> tuple[str, str]:
        return self.told.get(timeout=30)

    def hears_no_more(self) -> None:
        """Once everything reported so far has been taken and dealt with."""
        while self.nvml.timed_out.acquire(blocking=False):
            pass
        # The first of these may have found nothing before the newest was reported.
        assert self.nvml.timed_out.acquire(timeout=30)
        assert self.nvml.timed_out.acquire(timeout=30)
        assert self.told.empty()

    @property
    def waiting(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "gpu errors"]


@pytest.fixture
def make_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watched]]:
    monkeypatch.setattr(gpu, "WAIT_MS", 20)
    monkeypatch.setattr(gpu, "RETRY_S", 0.0)
    monkeypatch.setattr(gpu, "STUCK_S", 30.0)
    made: list[Watched] = []

    def make(*, failing: dict[str, int] | None = None, **state: Any) -> Watched:
        nvml = FakeNvml()
        nvml.failing |= failing or {}
        for name, value in state.items():
            setattr(nvml, name, value)
        made.append(Watched(nvml))
        made[-1].monitor.start()
        return made[-1]

    yield make
    for watched in made:
        watched.monitor.stop()


@pytest.fixture
def watched(make_watched: Callable[..., Watched]) -> Watched:
    return make_watched()


def ended(watched: Watched) -> None:
    for thread in watched.waiting:
        thread.join(30)
    assert watched.waiting == []


# -- readings -----------------------------------------------------------------------------------


def test_every_read_is_passed_on_as_numbers_of_json(watched: Watched) -> None:
    """By the names of the metrics, with the count of Xids so far."""
    first = watched.monitor.read()
    watched.report(LOGGED, LOGGED, DRAINED)
    watched.hears()
    second = watched.monitor.read()
    assert watched.published == [first, second]
    assert json.loads(json.dumps(first)) == first
    assert first["gpu_utilization_ratio"] == 0.42
    assert (first["gpu_xid_total"], second["gpu_xid_total"]) == (0, 3)


def test_a_gpu_that_is_not_watched_reads_nothing(make_watched: Callable[..., Watched]) -> None:
    """It can compute all the same, so nobody is told that it is lost."""
    with capture_logs() as lines:
        watched = make_watched(failing={"nvmlInit": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH})
    assert watched.monitor.read() == {}
    assert (watched.published, watched.told.empty(), watched.waiting) == ([], True, [])
    (line,) = lines
    assert (line["event"], line["unwatched"]) == ("GPU is not watched", "readings and errors")
    assert "version mismatch" in line["error"]


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByUUID", "nvmlDeviceGetSupportedEventTypes"])
def test_a_gpu_that_is_lost_at_the_start_is_told(make_watched: Callable[..., Watched], function: str) -> None:
    """Whatever is asked first."""
    watched = make_watched(failing={function: pynvml.NVML_ERROR_GPU_IS_LOST})
    assert watched.hears() == (LOST, "NVML: GPU is lost")
    assert watched.monitor.read() == {}
    assert watched.waiting == []


def test_a_gpu_that_is_lost_later_is_told_by_the_reading(watched: Watched) -> None:
    """Once; then it is not asked again."""
    assert watched.monitor.read() != {}
    watched.nvml.failing["nvmlDeviceGetTemperature"] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert [watched.monitor.read() for _ in range(3)] == [{}, {}, {}]
    assert watched.hears() == (LOST, "NVML: GPU is lost")
    watched.hears_no_more()
    assert watched.nvml.calls["nvmlDeviceGetTemperature"] == 2
    assert len(watched.published) == 1


# -- errors -------------------------------------------------------------------------------------


def test_an_xid_ends_drains_or_is_logged(watched: Watched) -> None:
    """Each as its policy says, with its meaning; the logged one stays between us."""
    with capture_logs() as lines:
        watched.report(LOGGED, DRAINED, DEADLY)
        assert watched.hears() == (DRAIN, "Xid 64: a memory row could not be replaced")
        assert watched.hears() == (LOST, "Xid 79: fallen off the bus")
        watched.hears_no_more()
    assert [(line["xid"], line["does"]) for line in lines if "xid" in line] == [
        (LOGGED, "log"),
        (DRAINED, "drain"),
        (DEADLY, "exit"),
    ]


@pytest.mark.parametrize(
    ("xids", "told"),
    [([DRAINED, DRAINED, 156, DEADLY, DEADLY, DRAINED, 95], [DRAIN, LOST]), ([DEADLY, DRAINED], [LOST])],
)
def test_each_thing_is_told_once_and_no_drain_after_the_loss(
    watched: Watched, xids: list[int], told: list[str]
) -> None:
    """Errors come in showers."""
    watched.report(*xids)
    assert [watched.hears()[0] for _ in told] == told
    watched.hears_no_more()


def test_a_double_bit_error_ends_the_engine(watched: Watched) -> None:
    """It has an event of its own."""
    watched.nvml.events.put((DOUBLE_BIT_EVENT, 0))
    assert watched.hears() == (LOST, "Xid 48: memory error that could not be corrected")


@pytest.mark.parametrize(("action", "told"), [(1, LOST), (4, DRAIN), (0, None), (None, None)])
def test_a_changed_recovery_action_is_asked_for(
    watched: Watched, action: int | None, told: str | None
) -> None:
    """Xid 154 says only that there is another."""
    watched.nvml.recovery_action = action
    watched.report(154)
    if told is not None:
        assert watched.hears()[0] == told
    watched.hears_no_more()
    assert watched.nvml.calls["nvmlDeviceGetFieldValues"] == 1


def test_the_action_is_not_asked_for_otherwise(watched: Watched) -> None:
    """A driver in trouble may take long to answer."""
    watched.report(LOGGED, DEADLY)
    watched.hears()
    assert watched.nvml.calls["nvmlDeviceGetFieldValues"] == 0


def test_a_gpu_that_is_lost_while_waiting_is_told(watched: Watched) -> None:
    """And the waiting ends."""
    watched.nvml.events.put(pynvml.NVML_ERROR_GPU_IS_LOST)
    assert watched.hears() == (LOST, "NVML: GPU is lost")
    ended(watched)


def test_a_gpu_that_is_lost_between_an_xid_and_its_action_is_told(watched: Watched) -> None:
    """The loss counts, not the Xid."""
    watched.nvml.failing["nvmlDeviceGetFieldValues"] = pynvml.NVML_ERROR_GPU_IS_LOST
    watched.report(154)
    assert watched.hears() == (LOST, "NVML: GPU is lost")


def test_both_threads_find_the_loss_and_one_tells(watched: Watched) -> None:
    """Reading and waiting."""
    watched.nvml.failing |= dict.fromkeys(
        ["nvmlDeviceGetUtilizationRates", "nvmlEventSetWait_v2"], pynvml.NVML_ERROR_GPU_IS_LOST
    )
    watched.monitor.read()
    ended(watched)
    assert watched.hears()[0] == LOST
    assert watched.told.empty()


def test_errors_are_still_heard_after_a_long_silence(watched: Watched) -> None:
    """A wait that ends for want of events is followed by another."""
    for _ in range(5):
        assert watched.nvml.timed_out.acquire(timeout=30)
    watched.report(DEADLY)
    assert watched.hears()[0] == LOST


def test_a_gpu_that_reports_no_errors_is_still_read(make_watched: Callable[..., Watched]) -> None:
    """Some platforms have no events; a loss then shows in the readings."""
    with capture_logs() as lines:
        watched = make_watched(supported=0)
    assert [line["unwatched"] for line in lines] == ["errors"]
    assert watched.waiting == []
    assert watched.monitor.read()["gpu_xid_total"] == 0


def test_failed_waits_are_tried_again(watched: Watched) -> None:
    """One less than the most in a row, and again after a good one."""
    for _ in range(2):
        for _ in range(gpu.MAX_FAILURES - 1):
            watched.nvml.events.put(pynvml.NVML_ERROR_UNKNOWN)
        watched.report(LOGGED)
    watched.report(DEADLY)
    assert watched.hears()[0] == LOST


def test_waits_that_only_fail_are_given_up(watched: Watched) -> None:
    """Said in the log; the readings go on."""
    with capture_logs() as lines:
        for _ in range(gpu.MAX_FAILURES):
            watched.nvml.events.put(pynvml.NVML_ERROR_UNKNOWN)
        ended(watched)
    assert [line["event"] for line in lines] == ["GPU no longer reports its errors"]
    assert watched.told.empty()
    assert watched.monitor.read() != {}


def test_a_shower_of_errors_does_not_fill_the_log(watched: Watched) -> None:
    """Logged at 1, 2, 4, …; all are counted."""
    with capture_logs() as lines:
        watched.report(*[LOGGED] * 100, DRAINED)
        watched.hears()
    assert [line["times"] for line in lines if line.get("xid") == LOGGED] == [1, 2, 4, 8, 16, 32, 64]
    assert watched.monitor.read()["gpu_xid_total"] == 101


# -- the end ------------------------------------------------------------------------------------


def test_stop_ends_the_thread_and_gives_all_back(watched: Watched) -> None:
    """Also twice, and a reading afterwards finds nothing."""
    assert len(watched.waiting) == 1
    watched.monitor.stop()
    assert watched.waiting == []
    assert (watched.nvml.opened, watched.nvml.sets) == (0, 0)
    watched.monitor.stop()
    assert watched.monitor.read() == {}
    assert watched.nvml.calls["nvmlShutdown"] == 1


def test_stop_leaves_alone_what_a_stuck_wait_still_uses(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver in trouble may not return; freeing its event set would crash it."""
    stuck, release = threading.Event(), threading.Event()

    def wait(events: str, timeout_ms: int) -> None:
        stuck.set()
        release.wait()
        raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)

    monkeypatch.setattr(watched.nvml, "nvmlEventSetWait_v2", wait)
    assert stuck.wait(30)
    monkeypatch.setattr(gpu, "STUCK_S", 0.05)
    watched.monitor.stop()
    assert (watched.nvml.opened, watched.nvml.sets) == (1, 1)
    release.set()
    ended(watched)
