"""Settings that change while the service runs: validated here, taken up by all or by nobody."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler.errors import Unavailable
from server.administration import CannotLoad, InvalidSettings, NeedsRestart, VersionConflict
from tests.server.changes_world import Service, rounds

LIVE = "scheduler.latency_budget_ms"
BY_ENGINES = "scheduler.max_batch_size"

Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **options: Service(tmp_path, **options)


@pytest.fixture
async def service(make: Make) -> Service:
    return make()


async def refusal(change: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as refused:
        await change
    return str(refused.value)


def unchanged(service: Service) -> bool:
    """Nobody has been told anything."""
    return (service.supervisor.changes, service.supervisor.revision.number, service.version) == ([], 0, 1)


# -- by a call ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "by_new_engines"),
    [
        (LIVE, "3", False),
        ("scheduler.classes.background_tasks.queue_limit", "7", False),
        ("telemetry.log_level", "error", False),
        (BY_ENGINES, "16", True),
        ("executor.precision", "bf16", True),
    ],
)
async def test_what_a_change_takes(service: Service, path: str, text: str, by_new_engines: bool) -> None:
    """Running processes are told, or new engines take over; the same models are served in the same places."""
    before = service.supervisor.revision
    change = await service.update(**{path.replace(".", "__"): text})
    assert (change.version, change.paths) == (2, (path,))
    assert service.supervisor.changes == [by_new_engines]
    assert service.value(path)[1] == "run time"
    assert service.settings.leaves()[path] != before.settings.leaves()[path]
    assert service.supervisor.revision.lineup == before.lineup


async def test_several_at_once(service: Service) -> None:
    """One change, of everything; what already is as it is wanted does not count."""
    with capture_logs() as logged:
        change = await service.changes.update_settings(
            {LIVE: "3", BY_ENGINES: "32", "telemetry.log_level": "info"},
            expected_version=1,
            validate_only=False,
            author="tester",
        )
    assert (change.version, set(change.paths)) == (2, {LIVE, BY_ENGINES})
    assert service.supervisor.changes == [True]
    assert [line for line in logged if line["event"] == "settings changed"] == [
        {
            "event": "settings changed",
            "log_level": "info",
            "author": "tester",
            "version": 2,
            "changes": {BY_ENGINES: ["64", "32"], LIVE: ["10.0", "3.0"]},
        }
    ]


async def test_what_changes_nothing_disturbs_nobody(service: Service) -> None:
    """Though the origin of the value is another one then."""
    assert (await service.update(scheduler__max_batch_size="64")).paths == ()
    assert unchanged(service)
    assert service.value(BY_ENGINES) == ("64", "run time")


async def test_a_change_is_taken_back(make: Make) -> None:
    """To what the layers below say."""
    service = make(text="[scheduler]\nlatency_budget_ms = 7")
    await service.update(scheduler__latency_budget_ms="3")
    assert service.settings.scheduler.latency_budget_ms == 3
    assert (await service.update(scheduler__latency_budget_ms=None)).version == 3
    assert service.settings.scheduler.latency_budget_ms == 7
    assert service.value(LIVE) == ("7.0", "file")


async def test_a_profile_is_a_setting_too(service: Service) -> None:
    """What it sets changes, and that by what it takes."""
    change = await service.update(profile="off_hours")
    assert change.paths[:3] == ("profile", BY_ENGINES, LIVE)
    assert service.changes.current_settings().profile == "off_hours"
    assert service.supervisor.changes == [True]
    assert service.value(LIVE) == ("20.0", "profile off_hours")


async def test_what_takes_a_restart_is_refused(service: Service) -> None:
    """All of it, with what it names."""
    change = service.update(
        server__grpc_port="9999", models__max_loaded="3", scheduler__latency_budget_ms="3"
    )
    assert await refusal(change, NeedsRestart) == (
        "server.grpc_port, models.max_loaded: a change takes a restart of the server"
    )
    assert unchanged(service)
    assert service.value(LIVE) == ("10.0", "profile market_hours")
    # As long as it is as it was it may be named.
    await service.update(models__max_loaded="16", scheduler__latency_budget_ms="3")
    assert service.supervisor.changes == [False]


@pytest.mark.parametrize(
    ("updates", "lines"),
    [
        ({"scheduler.latency_budget_ms": "-1"}, ["scheduler.latency_budget_ms = -1: must be more than 0"]),
        ({"scheduler.budget": "1"}, ["scheduler.budget = 1: is no setting"]),
        ({"models.default_model": "c"}, ["models.default_model = c: must be one of a, b"]),
        (
            {"scheduler.latency_budget_ms": "-1", "slo.p50_ms": "x"},
            ["scheduler.latency_budget_ms = -1: must be", "slo.p50_ms = x: must be"],
        ),
        ({"profile": "night"}, ["profile = night: must be one of"]),
    ],
)
async def test_what_is_wrong_is_refused(service: Service, updates: dict[str, str], lines: list[str]) -> None:
    """With every problem; good ones beside them are not taken up either."""
    with pytest.raises(InvalidSettings) as refused:
        await service.changes.update_settings(
            {**updates, "telemetry.log_level": "error"},
            expected_version=None,
            validate_only=False,
            author="tester",
        )
    assert len(refused.value.problems) == len(lines)
    for problem, line in zip(refused.value.problems, lines, strict=True):
        assert str(problem).startswith(line)
    assert unchanged(service)
    assert service.value("telemetry.log_level") == ("info", "default")


async def test_another_default_model(service: Service) -> None:
    """Engines need not know; it is named by what is asked without a name from then on."""
    await service.update(models__default_model="b")
    assert service.supervisor.changes == [False]
    assert service.supervisor.revision.lineup.default_model == "b"
    assert (service.changes.describe("b").is_default, service.changes.describe("a").is_default) == (
        True,
        False,
    )
    await service.update(models__default_model=None)
    assert service.supervisor.revision.lineup.default_model is None


async def test_somebody_elses_change_comes_between(service: Service) -> None:
    """Who has read version 1 is told that it is another one by now."""
    await service.update(scheduler__latency_budget_ms="3")
    for expected in (1, 3):
        change = service.changes.update_settings(
            {LIVE: "4"}, expected_version=expected, validate_only=False, author="tester"
        )
        assert await refusal(change, VersionConflict) == (
            f"the settings are of version 2, expected is {expected}: read them again"
        )
    assert service.settings.scheduler.latency_budget_ms == 3
    change = service.changes.update_settings(
        {LIVE: "4"}, expected_version=2, validate_only=False, author="tester"
    )
    assert (await change).version == 3


async def test_a_rehearsal_changes_nothing(service: Service) -> None:
    """What would be refused is refused; what would change is told."""

    async def rehearse(**updates: str) -> Any:
        return await service.changes.update_settings(
            {path.replace("__", "."): text for path, text in updates.items()},
            expected_version=1,
            validate_only=True,
            author="tester",
        )

    change = await rehearse(scheduler__latency_budget_ms="3", scheduler__max_batch_size="64")
    assert (change.version, change.paths) == (1, (LIVE,))
    await refusal(rehearse(scheduler__latency_budget_ms="-3"), InvalidSettings)
    await refusal(rehearse(models__default_model="c"), InvalidSettings)
    await refusal(rehearse(server__grpc_port="9999"), NeedsRestart)
    assert unchanged(service)
    assert service.value(LIVE) == ("10.0", "profile market_hours")


async def test_engines_that_cannot_serve_so(service: Service) -> None:
    """Nothing is changed; the next change is measured by what is still in use."""
    service.supervisor.failure = "a is not ready for fp16"
    assert await refusal(service.update(executor__precision="fp16"), CannotLoad) == (
        "engines cannot serve so: a is not ready for fp16"
    )
    assert unchanged(service)
    assert service.value("executor.precision") == ("model", "default")
    assert (await service.update(scheduler__latency_budget_ms="3")).paths == (LIVE,)
    assert service.settings.executor.precision == "model"


async def test_nothing_changes_any_more_while_the_server_drains(service: Service) -> None:
    """Who asks is told so, before, while and after new engines are prepared for it."""

    async def refused(change: Any) -> tuple[str, str]:
        with pytest.raises(Unavailable) as raised:
            await change
        return str(raised.value), raised.value.reason

    draining = ("the server is draining", "DRAINING")
    service.supervisor.failure = "the server is draining"
    service.supervisor.goes_on.clear()
    changing = asyncio.create_task(service.update(scheduler__max_batch_size="8"))
    await rounds()
    service.changes.drain()
    service.supervisor.goes_on.set()
    assert await refused(changing) == draining
    assert await refused(service.update(scheduler__max_batch_size="8")) == draining
    assert await refused(service.update(scheduler__latency_budget_ms="3")) == draining
    assert await refused(service.changes.unload_model("a", None, "tester")) == draining
    assert unchanged(service)


# -- what is shown ------------------------------------------------------------------------------


async def test_settings_are_shown_with_origin_and_effect(make: Make) -> None:
    """Every one of them, first the profile."""
    service = make(text="[slo]\nmin_rps = 9", environ={"TICKRING_SCHEDULER__BUCKETS": "[1, 64]"})
    shown = {
        setting.path: (setting.value_text, setting.origin, setting.effect.name)
        for setting in service.changes.current_settings().settings
    }
    assert shown["profile"] == ("market_hours", "default", "ENGINES")
    assert shown["slo.min_rps"] == ("9.0", "file", "LIVE")
    assert shown["scheduler.buckets"] == ("[1, 64]", "environment", "ENGINES")
    assert shown["models.default_model"] == ("", "default", "LIVE")
    assert shown["server.grpc_port"] == ("8001", "default", "RESTART")
    assert list(shown) == ["profile", *service.settings.leaves()]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis://user:secret@cache:6379/0", "redis://***@cache:6379/0"),
        ("redis://:secret@cache/0", "redis://***@cache/0"),
        ("rediss://user:sec@ret@cache/0", "rediss://***@cache/0"),
        ("redis://user:sec/ret@cache/0", "redis://***@cache/0"),
    ],
)
async def test_passwords_are_not_shown(make: Make, url: str, shown: str) -> None:
    """Neither to who asks for the settings nor in the log."""
    service = make(environ={"TICKRING_CACHE__REDIS_URL": url})
    assert service.value("cache.redis_url") == (shown, "environment")


# -- one at a time ------------------------------------------------------------------------------


async def test_changes_wait_for_each_other(service: Service) -> None:
    """Each is worked out from what the one before it has left, and the version that was expected as well."""
    service.supervisor.goes_on.clear()
    first, second, third = (
        asyncio.create_task(change)
        for change in (
            service.update(scheduler__latency_budget_ms="3"),
            service.update(scheduler__bulk_quantum_ms="4"),
            service.changes.update_settings(
                {LIVE: "5"}, expected_version=1, validate_only=False, author="tester"
            ),
        )
    )
    await rounds()
    assert service.supervisor.under_way == 1
    assert not any(task.done() for task in (first, second, third))
    service.supervisor.goes_on.set()
    assert [change.version for change in await asyncio.gather(first, second)] == [2, 3]
    await refusal(third, VersionConflict)
    scheduler = service.settings.scheduler
    assert (scheduler.latency_budget_ms, scheduler.bulk_quantum_ms) == (3, 4)


async def test_a_change_that_failed_holds_nobody_up(service: Service) -> None:
    """Whoever waits is next."""
    service.supervisor.failure = "no"
    service.supervisor.goes_on.clear()
    bad = asyncio.create_task(service.update(scheduler__max_batch_size="8"))
    good = asyncio.create_task(service.update(scheduler__latency_budget_ms="3"))
    await rounds()
    service.supervisor.goes_on.set()
    await refusal(bad, CannotLoad)
    assert (await good).version == 2


async def test_a_caller_that_leaves_stops_no_change(service: Service) -> None:
    """Half of one is worse than all of it or none; also one that has not begun yet."""
    service.supervisor.goes_on.clear()
    for updates in ({"scheduler__latency_budget_ms": "3"}, {"scheduler__bulk_quantum_ms": "4"}):
        leaving = asyncio.create_task(service.update(**updates))
        await rounds()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    assert unchanged(service)
    service.supervisor.goes_on.set()
    await service.idle()
    assert service.version == 3
    scheduler = service.settings.scheduler
    assert (scheduler.latency_budget_ms, scheduler.bulk_quantum_ms) == (3, 4)


# -- SIGHUP -------------------------------------------------------------------------------------


async def test_file_and_environment_are_read_again(make: Make) -> None:
    """What was set at run time stays on top."""
    service = make(text="[scheduler]\nlatency_budget_ms = 7\nbulk_quantum_ms = 6")
    await service.update(scheduler__latency_budget_ms="3")
    service.file.write_text("[scheduler]\nlatency_budget_ms = 8\nbulk_quantum_ms = 9")
    service.environ["TICKRING_TELEMETRY__LOG_LEVEL"] = "error"
    with capture_logs() as logged:
        await service.reload()
    assert (service.value(LIVE), service.version) == (("3.0", "run time"), 3)
    assert service.settings.scheduler.bulk_quantum_ms == 9
    assert service.settings.telemetry.log_level == "error"
    (line,) = (line for line in logged if line["event"] == "settings changed")
    assert line["author"] == "SIGHUP"
    assert line["changes"] == {
        "scheduler.bulk_quantum_ms": ["6.0", "9.0"],
        "telemetry.log_level": ["info", "error"],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[scheduler]\nlatency_budget_ms = -1\nspin_us = -1",
            ["scheduler.latency_budget_ms", "scheduler.spin_us"],
        ),
        ("[scheduler", ["config = "]),
        (
            "[scheduler]\nlatency_budget_ms = 8\nslots_per_frontend = 999",
            ["scheduler.slots_per_frontend: a ch"],
        ),
        ("[scheduler]\nlatency_budget_ms = 8\nmax_batch_size = 8", ["engines cannot serve so: no"]),
        ("[scheduler]\nlatency_budget_ms = 8\n[models]\ndefault_model = 'c'", ["models.default_model = c"]),
    ],
)
async def test_a_file_that_cannot_be_taken_up(service: Service, text: str, said: list[str]) -> None:
    """Says why, changes nothing, and can be mended."""
    service.supervisor.failure = "no"
    service.file.write_text(text)
    with capture_logs() as logged:
        await service.reload()
    (line,) = (line for line in logged if line["log_level"] == "error")
    assert line["event"] == "settings not reloaded, nothing was changed"
    assert [text.startswith(start) for text, start in zip(line["problems"], said, strict=True)] == [
        True
    ] * len(said)
    assert unchanged(service)
    service.file.write_text("[scheduler]\nlatency_budget_ms = 8")
    await service.reload()
    assert (service.value(LIVE), service.version) == (("8.0", "file"), 2)


async def test_a_signal_looks_at_the_repository_as_well(service: Service) -> None:
    """With good settings and with bad ones."""
    service.a.add(3)
    await service.reload()
    assert service.seated() == {1: ("b", 1), 2: ("a", 3)}
    service.file.write_text("[scheduler]\nlatency_budget_ms = -1")
    service.b.add(2)
    await service.reload()
    assert service.seated() == {0: ("b", 2), 2: ("a", 3)}


# -- the rest -----------------------------------------------------------------------------------


async def test_draining_and_books_are_the_supervisors(service: Service) -> None:
    """A second drain would end everything at once: that is no caller's business."""
    assert service.changes.books() == {"frontends": []}
    for _ in range(3):
        service.changes.drain()
    assert service.supervisor.drains == 1


async def test_models_are_described_as_front_ends_know_them(service: Service) -> None:
    """And ready when the service is."""
    described = service.changes.describe("a")
    assert (described.model.loaded, described.ready, set(described.model.sha256)) == ((2,), True, {1, 2})
    service.supervisor.ready = False
    assert not service.changes.describe("a").ready
