"""What a front end makes of a lineup: which version answers a request, and which refuses it for now."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from scheduler.errors import ModelNotReady, UnknownModel
from server.configuration import load_settings
from server.lineup import Lineup, Wishes, line_up
from server.models import ModelTable
from server.repository import Manifest, Repository, SchedulerOverrides
from server.served import model_limits, served
from tests.server.test_lineup import model

# a: 1 is stable, 2 only on disk, 3 canary, 4 the latest. b: the only version is not loaded.
A = model("a", 1, 2, 3, 4, aliases={"stable": 1, "canary": 3})
B = model("b", 6)


def lineup(*manifests: Manifest, wishes: Wishes | None = None, default: str | None = None) -> Lineup:
    return line_up(Repository(manifests, default), wishes or Wishes(), 8)


def table(lineup: Lineup, **tables: Any) -> ModelTable:
    """As a front end that serves."""
    found = ModelTable(served(lineup, load_settings(tables, environ={})), lineup.default_model)
    found.ready = True
    return found


@pytest.fixture
def models() -> ModelTable:
    return table(lineup(A, B, wishes=Wishes().unload("b", None), default="a"))


@pytest.mark.parametrize("name", ["a", ""])
@pytest.mark.parametrize(
    ("version", "answers", "place"),
    [
        ("1", 1, 0),
        ("3", 3, 1),
        ("4", 4, 2),
        ("stable", 1, 0),
        ("canary", 3, 1),
        ("latest", 4, 2),
        ("", 1, 0),
    ],
)
def test_each_version_answers_by_its_names(
    models: ModelTable, name: str, version: str, answers: int, place: int
) -> None:
    """From lanes of its own; without a word it is the stable one."""
    found = models.route(name, version)
    assert (found.signature.version, found.index, found.loaded) == (answers, place, (1, 3, 4))


def test_without_a_stable_version_the_latest_answers() -> None:
    """Whatever else is loaded."""
    manifest = replace(A, aliases={"canary": 3})
    assert table(lineup(manifest)).route("a", "").signature.version == 4


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("a", "2", "version 2 of a is not loaded, loaded is 1, 3, 4"),
        ("b", "6", "version 6 of b is not loaded, loaded is nothing"),
        ("b", "", "b is not loaded"),
    ],
)
def test_what_is_on_disk_only_is_not_ready(models: ModelTable, name: str, version: str, said: str) -> None:
    """Known, and told what there is."""
    with pytest.raises(ModelNotReady) as refused:
        models.route(name, version)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("a", "5", "no version '5' of a; versions are 1, 2, 3, 4"),
        ("a", "Stable", "no version 'Stable' of a; versions are 1, 2, 3, 4"),
        ("b", "stable", "no version of b that is loaded is stable"),
        ("b", "latest", "no version of b that is loaded is latest"),
    ],
)
def test_what_nobody_has_heard_of(models: ModelTable, name: str, version: str, said: str) -> None:
    """Of an alias that nothing has, too."""
    with pytest.raises(UnknownModel) as refused:
        models.route(name, version)
    assert (str(refused.value), refused.value.reason) == (said, "VERSION_NOT_FOUND")


def test_a_model_is_described_whether_it_is_loaded_or_not(models: ModelTable) -> None:
    """At the version of requests that name none; every version that is loaded is there on its own."""
    assert [(each.signature.name, each.signature.version, each.index) for each in models] == [
        ("a", 1, 0),
        ("b", 6, -1),
    ]
    assert [each.signature.version for each in models.loaded()] == [1, 3, 4]
    assert set(models.find("a").sha256) == {1, 2, 3, 4}


def test_other_models_from_one_request_to_the_next(models: ModelTable) -> None:
    """A request that was routed before keeps what it has."""
    old = models.route("", "stable")
    after = lineup(replace(A, aliases={"stable": 4}), B, default="b")
    models.change(served(after, load_settings({}, environ={})), after.default_model)
    assert models.route("a", "").signature.version == 4
    assert models.route("", "").signature.name == "b"
    with pytest.raises(UnknownModel, match=r"^no version of a that is loaded is canary$"):
        models.route("a", "canary")
    assert old.signature.version == 1
    models.change([], None)
    with pytest.raises(UnknownModel, match=r"^no model 'a'; models are none$"):
        models.route("a", "")
    with pytest.raises(
        UnknownModel, match=r"^model_name is empty and no default model is set; models are none$"
    ):
        models.route("", "")


@pytest.mark.parametrize(
    ("own", "limits"), [((None, None), {}), ((None, 7), {3: 7}), ((5, 7), {0: 5, 1: 5, 2: 5, 3: 7})]
)
def test_limits_of_models_are_by_place(own: Sequence[int | None], limits: dict[int, int]) -> None:
    """Each version has the whole limit of its model to itself."""
    manifests = [
        replace(manifest, scheduler=SchedulerOverrides(queue_limit=limit))
        for manifest, limit in zip((A, B), own, strict=True)
    ]
    assert model_limits(lineup(*manifests)) == limits
