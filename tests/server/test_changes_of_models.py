"""Models that come and go while the service runs: by a call, by looking, and where they cannot."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from scheduler.errors import UnknownModel
from server import changes
from server.administration import CannotLoad, CannotUnload
from tests.server.changes_world import PLACES, ROW_BYTES, Model, Service, put, rounds

Make = Callable[..., Service]
DEADLINE_S = 20.0


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **options: Service(tmp_path, **options)


@pytest.fixture
async def service(make: Make) -> Service:
    return make()


async def load(service: Service, name: str, version: int | None = None) -> None:
    await service.changes.load_model(name, version, "tester")


async def unload(service: Service, name: str, version: int | None = None) -> None:
    await service.changes.unload_model(name, version, "tester")


async def refusal(change: Any, kind: type[Exception]) -> str:
    with pytest.raises(kind) as refused:
        await change
    return str(refused.value)


# -- loading ------------------------------------------------------------------------------------


async def test_a_new_version_takes_over(service: Service) -> None:
    """New engines serve it, from a place of its own; what stays has its place still."""
    assert service.seated() == {0: ("a", 2), 1: ("b", 1)}
    service.a.add(3)
    with capture_logs() as logged:
        await load(service, "a")
    assert service.seated() == {1: ("b", 1), 2: ("a", 3)}
    assert service.supervisor.changes == [True]
    assert logged == [
        {
            "event": "model loaded",
            "log_level": "info",
            "author": "tester",
            "model": "a",
            "version": None,
            "serving": ["b/1", "a/3"],
        }
    ]
    assert service.changes.describe("a").model.loaded == (3,)


async def test_an_older_version_is_loaded_beside_the_newest(service: Service) -> None:
    """And stays when a newer one comes."""
    await load(service, "a", 1)
    assert service.seated() == {0: ("a", 2), 1: ("b", 1), 2: ("a", 1)}
    service.a.add(3)
    await load(service, "a")
    assert sorted(service.seated().values()) == [("a", 1), ("a", 3), ("b", 1)]


async def test_a_new_model(service: Service) -> None:
    """Whose folder was not there when the server started; others on disk are not looked at."""
    Model(service.path / "c").add(4)
    (service.path / "broken").mkdir()
    service.b.add(2)
    await load(service, "c")
    assert service.seated() == {0: ("a", 2), 1: ("b", 1), 2: ("c", 4)}


async def test_a_file_that_was_mended(service: Service) -> None:
    """The same version with another file is something else."""
    service.a.add(2, b"mended")
    await load(service, "a", 2)
    assert service.seated() == {1: ("b", 1), 2: ("a", 2)}
    assert service.supervisor.changes == [True]


async def test_what_is_loaded_is_not_loaded_again(service: Service) -> None:
    """Nobody is disturbed, nothing is logged."""
    with capture_logs() as logged:
        await load(service, "a")
        await load(service, "a", 2)
    assert (service.supervisor.changes, logged) == ([], [])


async def test_what_a_manifest_says_beside_its_versions(service: Service) -> None:
    """A description is for front ends alone; aliases are too, where what they name is loaded."""
    service.a.write(rest='description = "better"', aliases={"canary": 2})
    await load(service, "a")
    assert service.supervisor.changes == [False]
    assert service.changes.describe("a").model.description == "better"
    service.a.write(aliases={"stable": 1})
    await load(service, "a")
    assert service.supervisor.changes == [False, True]
    assert service.seated() == {0: ("a", 2), 1: ("b", 1), 2: ("a", 1)}
    assert service.changes.describe("a").model.signature.version == 1


@pytest.mark.parametrize(
    ("name", "version", "said", "reason"),
    [
        ("c", None, "no model 'c' in the repository", "MODEL_NOT_FOUND"),
        ("../a", None, "no model '../a' in the repository", "MODEL_NOT_FOUND"),
        ("a", 3, "no version 3 of a; versions are 1, 2", "VERSION_NOT_FOUND"),
    ],
)
async def test_what_is_not_there(
    service: Service, name: str, version: int | None, said: str, reason: str
) -> None:
    """Neither to be loaded nor to be unloaded."""
    for change in (load, unload):
        with pytest.raises(UnknownModel) as refused:
            await change(service, name, version)
        assert (str(refused.value), refused.value.reason) == (said, reason)
    assert service.supervisor.changes == []


async def test_a_bad_manifest(service: Service) -> None:
    """Says all that is wrong with it, in one text; what was served before still is."""
    manifest = service.path / "a" / "model.toml"
    manifest.write_text(manifest.read_text().replace("fp32", "int4").replace("[2]", "[0]", 1))
    text = await refusal(load(service, "a"), CannotLoad)
    assert text.count("; ") == 1
    assert f"{manifest}: precision = int4: must be one of" in text
    assert f"{manifest}: inputs[0].shape = [0]: must be" in text
    assert service.supervisor.changes == []


async def test_a_model_that_engines_cannot_serve(service: Service) -> None:
    """With the engine's words; another load does not take it up again, mended or not."""
    service.a.add(3)
    service.supervisor.failure = "a/3/model.pt: sha256 is 1, the manifest says 2"
    assert await refusal(load(service, "a"), CannotLoad) == (
        "engines cannot serve so: a/3/model.pt: sha256 is 1, the manifest says 2"
    )
    service.supervisor.failure = ""
    service.b.add(2)
    await load(service, "b")
    assert sorted(service.seated().values()) == [("a", 2), ("b", 2)]
    await load(service, "a", 1)
    assert sorted(service.seated().values()) == [("a", 1), ("a", 3), ("b", 2)]


@pytest.mark.parametrize(("values", "fits"), [(ROW_BYTES // 4, True), (ROW_BYTES // 4 + 1, False)])
async def test_rows_too_large_for_the_arena(service: Service, values: int, fits: bool) -> None:
    """Its size was fixed when the server started; told is which setting it takes."""
    large = Model(service.path / "large", {1: b"1"})
    large.write(shape=f"[{values}]")
    if fits:
        await load(service, "large")
        assert ("large", 1) in service.seated().values()
        return
    text = await refusal(load(service, "large"), CannotLoad)
    # Tensors are aligned.
    assert text == (
        f"the inputs of one item of large take {2 * ROW_BYTES} bytes, there is room for {ROW_BYTES}; "
        "models.max_row_bytes sets how much, with a restart"
    )
    assert service.supervisor.changes == []


async def test_no_room_for_one_more(service: Service) -> None:
    """Also where something else goes for it: both are there for a while."""
    await load(service, "a", 1)
    Model(service.path / "c").add(1)
    await load(service, "c")
    assert len(service.seated()) == PLACES
    service.b.add(2)
    assert await refusal(load(service, "b"), CannotLoad) == (
        "b version 2 has no room, all 4 places are taken; "
        "models.max_loaded sets how many there are, with a restart"
    )
    assert service.supervisor.changes == [True, True]
    await unload(service, "c")
    await load(service, "b")
    assert sorted(service.seated().values()) == [("a", 1), ("a", 2), ("b", 2)]


# -- unloading ----------------------------------------------------------------------------------


async def test_a_version_goes(service: Service) -> None:
    """It returns once its engines have answered what they had; looking at the disk does not bring it back."""
    await load(service, "a", 1)
    with capture_logs() as logged:
        await unload(service, "a", 2)
    assert sorted(service.seated().values()) == [("a", 1), ("b", 1)]
    assert service.supervisor.seen_offs == 1
    (line,) = logged
    assert (line["event"], line["model"], line["version"]) == ("model unloaded", "a", 2)
    assert line["serving"] == ["b/1", "a/1"]
    await service.reload()
    assert sorted(service.seated().values()) == [("a", 1), ("b", 1)]


async def test_a_model_goes_whole(service: Service) -> None:
    """It is still known, and told to be not loaded; the last one may go as well, and come back."""
    await load(service, "a", 1)
    await unload(service, "a")
    assert service.seated() == {1: ("b", 1)}
    assert service.changes.describe("a").model.loaded == ()
    await unload(service, "b")
    assert service.seated() == {}
    await load(service, "a")
    assert list(service.seated().values()) == [("a", 2)]


async def test_what_is_not_loaded_is_not_missed(service: Service) -> None:
    """No new engines for nothing."""
    await unload(service, "a", 1)
    assert (service.supervisor.changes, service.supervisor.seen_offs) == ([], 1)


async def test_what_an_alias_names_stays(service: Service) -> None:
    """Requests ask for it by that name. The whole model may go."""
    service.a.write(aliases={"stable": 1, "canary": 2})
    await load(service, "a")
    for number, alias in ((1, "stable"), (2, "canary")):
        assert await refusal(unload(service, "a", number), CannotUnload) == (
            f"version {number} of a is its {alias} version, by its manifest"
        )
    assert sorted(service.seated().values()) == [("a", 1), ("a", 2), ("b", 1)]
    await unload(service, "a")
    assert list(service.seated().values()) == [("b", 1)]


async def test_unloading_that_fails_changes_nothing(service: Service) -> None:
    """It takes new engines, too."""
    service.supervisor.failure = "no"
    assert await refusal(unload(service, "a"), CannotLoad) == "engines cannot serve so: no"
    service.supervisor.failure = ""
    await service.reload()
    assert service.seated() == {0: ("a", 2), 1: ("b", 1)}


# -- by looking ---------------------------------------------------------------------------------


@pytest.fixture
async def following(make: Make) -> Any:
    """A service that looks at its repository all the time."""
    service = make(text="[models]\npoll_s = 0.001")
    task = asyncio.create_task(service.changes.follow_repository())
    yield service
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool]) -> None:
    """Polls what has no event to await."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_what_is_new_on_disk_is_found(following: Service) -> None:
    """New versions, new models, and what is there no more."""
    following.a.add(3)
    await until(lambda: ("a", 3) in following.seated().values())
    Model(following.path / "c").add(1)
    await until(lambda: ("c", 1) in following.seated().values())
    (following.path / "b" / "model.toml").unlink()
    (following.path / "b").rename(following.path.parent / "b")
    await until(lambda: ("b", 1) not in following.seated().values())
    with pytest.raises(UnknownModel):
        following.changes.describe("b")


async def test_what_is_wrong_on_disk_is_told_once(following: Service) -> None:
    """As often as it changes; nothing is served otherwise until all is good."""
    manifest = following.path / "a" / "model.toml"
    good = manifest.read_bytes()
    looks = following.supervisor
    with capture_logs() as logged:
        for number, text in enumerate((b"name =", b'name = "b"', b"name ="), 1):
            put(manifest, text)
            await until(lambda number=number: len(logged) == number)  # type: ignore[misc]
            seen = looks.readiness_asked
            await until(lambda seen=seen: looks.readiness_asked > seen + 5)  # type: ignore[misc]
        following.b.versions[2] = b"2"
        following.b.write()
        seen = looks.readiness_asked
        await until(lambda: looks.readiness_asked > seen + 5)
        assert following.supervisor.changes == []
        put(manifest, good)
        await until(lambda: ("b", 2) in following.seated().values())
    errors = [line for line in logged if line["log_level"] == "error"]
    assert [line["event"] for line in errors] == ["repository not taken up, nothing has changed"] * len(
        errors
    )
    assert [line["problems"][0].partition(": ")[2][:4] for line in errors[:3]] == ["must", "name", "must"]


async def test_models_that_cannot_be_served_do_not_end_the_looking(following: Service) -> None:
    """Nor a default model that is gone."""
    with capture_logs() as logged:
        following.supervisor.failure = "no"
        following.a.add(3)
        await until(lambda: any("engines cannot serve so: no" in str(line) for line in logged))
        following.supervisor.failure = ""
        await until(lambda: ("a", 3) in following.seated().values())
        await following.update(models__default_model="b")
        (following.path / "b").rename(following.path.parent / "b")
        await until(lambda: any("models.default_model = b" in str(line) for line in logged))
        assert ("b", 1) in following.seated().values()


async def test_nobody_looks_while_the_service_is_not_ready(following: Service) -> None:
    """It has other things to do; nor while it is not asked to."""
    following.supervisor.ready = False
    await following.idle()
    following.a.add(3)
    seen = following.supervisor.readiness_asked
    await until(lambda: following.supervisor.readiness_asked > seen + 5)
    assert following.supervisor.changes == []
    following.supervisor.ready = True
    await until(lambda: following.supervisor.changes == [True])


async def test_looking_can_be_switched_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the service runs; without, the disk is left alone."""
    monkeypatch.setattr(changes, "LOOK_AT_SETTINGS_EVERY_S", 0)
    service = make()
    task = asyncio.create_task(service.changes.follow_repository())
    service.a.add(3)
    await rounds()  # in each it could have looked
    await service.idle()
    assert service.supervisor.changes == []
    await service.update(models__poll_s="0.001")
    await until(lambda: ("a", 3) in service.seated().values())
    task.cancel()


# -- one at a time ------------------------------------------------------------------------------


async def test_models_and_settings_wait_for_each_other(service: Service) -> None:
    """Whatever asks: each starts from what the one before has left."""
    service.supervisor.goes_on.clear()
    service.a.add(3)
    Model(service.path / "c").add(1)
    tasks = [
        asyncio.create_task(load(service, "a")),
        asyncio.create_task(load(service, "c")),
        asyncio.create_task(service.update(scheduler__max_batch_size="8")),
        asyncio.create_task(unload(service, "a", 3)),
    ]
    await until(lambda: service.supervisor.under_way == 1)
    await rounds()
    service.supervisor.goes_on.set()
    await asyncio.gather(*tasks)
    assert sorted(service.seated().values()) == [("b", 1), ("c", 1)]
    assert service.settings.scheduler.max_batch_size == 8


async def test_a_caller_that_leaves_stops_no_load(service: Service) -> None:
    """What was begun is done."""
    service.supervisor.goes_on.clear()
    service.a.add(3)
    leaving = asyncio.create_task(load(service, "a"))
    await until(lambda: service.supervisor.under_way == 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    service.supervisor.goes_on.set()
    await service.idle()
    assert ("a", 3) in service.seated().values()
