"""Which versions are served and in which places; what a request may call them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.signature import DataType, TensorSpec
from server.lineup import Lineup, NoRoom, Seat, Wishes, line_up, route
from server.repository import Manifest, ModelVersion, Repository, SchedulerOverrides

PLACES = 6


def version(number: int, file: str = "") -> ModelVersion:
    """Of which the file is another one where `file` is."""
    return ModelVersion(number, Path(f"m/{number}/model.pt"), f"{file}{number}".rjust(64, "0"))


def model(name: str, *versions: int, aliases: dict[str, int] | None = None, file: str = "") -> Manifest:
    return Manifest(
        name=name,
        description="for tests",
        format="torchscript",
        precision="fp32",
        finite_inputs=True,
        finite_outputs=False,
        inputs=(TensorSpec("x", DataType.FP32, (2,)),),
        outputs=(TensorSpec("y", DataType.INT64, ()),),
        versions=tuple(version(number, file) for number in versions),
        aliases=aliases or {},
    )


def repository(*manifests: Manifest) -> Repository:
    return Repository(tuple(sorted(manifests, key=lambda manifest: manifest.name)), None)


def seated(lineup: Lineup) -> dict[int, tuple[str, int]]:
    """Name and version by place."""
    return {seat.place: (seat.manifest.name, seat.version.version) for seat in lineup.seats}


# -- what is loaded -----------------------------------------------------------------------------


def test_newest_and_what_an_alias_names() -> None:
    """Without any wish; what else is on disk stays there."""
    assert Wishes().versions(model("a", 1, 2, 7)) == {7}
    assert Wishes().versions(model("a", 1, 2, 3, 7, aliases={"stable": 2, "canary": 3})) == {2, 3, 7}


def test_a_version_that_was_asked_for_stays_when_a_newer_one_comes() -> None:
    """One that was loaded for being the newest does not."""
    wishes = Wishes().load(model("a", 1, 2), 1)
    assert wishes.versions(model("a", 1, 2)) == {1, 2}
    assert wishes.versions(model("a", 1, 2, 3)) == {1, 3}
    assert Wishes().load(model("a", 1, 2), None).versions(model("a", 1, 2, 3)) == {3}


def test_a_version_that_is_not_wanted_goes() -> None:
    """Also the newest; only loading it again brings it back. Others of the model and other models stay."""
    manifest = model("a", 1, 2)
    wishes = Wishes().load(manifest, 1).unload("a", 2)
    assert wishes.versions(manifest) == {1}
    assert wishes.versions(replace(manifest, name="b")) == {2}
    assert wishes.load(manifest, None).versions(manifest) == {1, 2}
    assert wishes.unload("a", 1).versions(manifest) == set()
    assert wishes.unload("a", 1).load(manifest, 1).versions(manifest) == {1}


def test_a_model_that_is_not_wanted_goes_whole() -> None:
    """With its aliases, and what newer versions may come; loaded again it is as the manifest says."""
    manifest = model("a", 1, 2, 3, aliases={"stable": 1})
    wishes = Wishes().load(manifest, 2).unload("a", None)
    assert wishes.versions(manifest) == wishes.versions(model("a", 1, 2, 3, 4)) == set()
    assert wishes.load(manifest, None).versions(manifest) == {1, 3}
    assert wishes.versions(model("b", 1)) == {1}


def test_wishes_for_versions_that_are_gone_from_disk_are_kept() -> None:
    """They cost nothing, and count again when the version is back."""
    wishes = Wishes().load(model("a", 1, 2), 1)
    assert wishes.versions(model("a", 2)) == {2}
    assert wishes.versions(model("a", 1, 2)) == {1, 2}


# -- routes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aliases", "loaded", "routes"),
    [
        ({}, [], {}),
        ({}, [2], {"2": 2, "latest": 2, "": 2}),
        ({}, [9, 10], {"9": 9, "10": 10, "latest": 10, "": 10}),  # as numbers, not as text
        ({"stable": 1}, [1, 2], {"1": 1, "2": 2, "latest": 2, "stable": 1, "": 1}),
        ({"canary": 2}, [1, 2], {"1": 1, "2": 2, "latest": 2, "canary": 2, "": 2}),
        ({"canary": 3}, [1, 2], {"1": 1, "2": 2, "latest": 2, "": 2}),
        # Nobody is served by another version than the stable one without saying so.
        ({"stable": 1}, [2], {"2": 2, "latest": 2}),
    ],
)
def test_what_a_request_may_call_a_version(
    aliases: dict[str, int], loaded: Sequence[int], routes: dict[str, int]
) -> None:
    """Only what is loaded; without a word the stable one, and where there is none the latest."""
    assert route(model("a", 1, 2, 3, aliases=aliases), loaded) == routes


# -- places -------------------------------------------------------------------------------------


def test_places_are_given_in_the_order_of_names_and_versions() -> None:
    """So two servers that start alike count alike."""
    lineup = line_up(repository(model("b", 1, 2, aliases={"stable": 1}), model("a", 3)), Wishes(), PLACES)
    assert seated(lineup) == {0: ("a", 3), 1: ("b", 1), 2: ("b", 2)}
    assert lineup.places == (0, 1, 2)
    assert list(lineup.loaded("b")) == [1, 2]
    assert lineup.loaded("c") == {}


def test_what_stays_keeps_its_place() -> None:
    """Though its neighbours change, or what its manifest says of other versions, of names and of itself."""
    before = line_up(repository(model("a", 1), model("b", 1), model("c", 1)), Wishes(), PLACES)
    changed = replace(model("b", 1, 2, aliases={"stable": 1}), description="better")
    after = line_up(repository(changed, model("c", 1)), Wishes(), PLACES, before)
    assert seated(after) == {1: ("b", 1), 2: ("c", 1), 3: ("b", 2)}
    numbers = {seat.place: seat.number for seat in before.seats}
    assert all(numbers.get(seat.place, seat.number) == seat.number for seat in after.seats)


@pytest.mark.parametrize(
    "other",
    [
        model("a", 1, file="f"),
        replace(model("a", 1), precision="bf16"),
        replace(model("a", 1), finite_outputs=True),
        replace(model("a", 1), outputs=(TensorSpec("y", DataType.INT64, (2,)),)),
        replace(model("a", 1), scheduler=SchedulerOverrides(max_batch_size=2)),
    ],
)
def test_what_an_engine_would_serve_otherwise_has_another_place(other: Manifest) -> None:
    """The same name and number, and not the same thing: what is queued for the old must not reach the new."""
    before = line_up(repository(model("a", 1)), Wishes(), PLACES)
    after = line_up(repository(other), Wishes(), PLACES, before)
    assert (before.places, after.places) == ((0,), (1,))
    assert after.seats[0].number != before.seats[0].number


def test_places_of_the_generation_before_are_taken_and_then_free() -> None:
    """Two take turns with two places."""
    lineup = line_up(repository(model("a", 1)), Wishes(), 2)
    places: list[int] = []
    for number in range(2, 6):
        lineup = line_up(repository(model("a", number)), Wishes(), 2, lineup)
        places += lineup.places
    assert places == [1, 0, 1, 0]


def test_no_more_than_there_is_room_for() -> None:
    """What is about to go counts as well; who has no room is named."""
    full = repository(*(model(name, 1) for name in "abcdef"))
    before = line_up(full, Wishes(), PLACES)
    with pytest.raises(NoRoom, match=r"^b version 2 has no room, all 6 places are taken$"):
        line_up(repository(model("b", 2)), Wishes(), PLACES, before)
    assert line_up(full, Wishes(), PLACES, before) == before
    with pytest.raises(NoRoom, match=r"^f version 1 has no room, all 5 places are taken$"):
        line_up(full, Wishes(), PLACES - 1)


def test_a_lineup_crosses_to_a_child_process_whole() -> None:
    """With what is not loaded."""
    manifests = (model("a", 1, 2, aliases={"stable": 1}), model("b", 4))
    lineup = line_up(Repository(manifests, "b"), Wishes().unload("b", None), PLACES)
    assert lineup.default_model == "b"
    again = Lineup.from_json(lineup.to_json())
    assert again == lineup
    assert [seat.identity for seat in again.seats] == [seat.identity for seat in lineup.seats]


# What may happen between two lineups: files appear, change and go, and calls ask for something.
models = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(
        st.sets(st.integers(1, 4), min_size=1, max_size=3),  # versions
        st.integers(0, 1),  # which files they have
        st.none() | st.integers(0, 2),  # which of them is the stable one
    ),
    max_size=3,
)
calls = st.lists(
    st.tuples(st.booleans(), st.sampled_from("abc"), st.none() | st.integers(1, 4)),
    max_size=3,
)


def made(found: dict[str, tuple[set[int], int, int | None]]) -> Repository:
    manifests = []
    for name, (versions, file, stable) in found.items():
        numbers = sorted(versions)
        aliases = {} if stable is None else {"stable": numbers[stable % len(numbers)]}
        manifests.append(model(name, *numbers, aliases=aliases, file=str(file)))
    return repository(*manifests)


@given(st.lists(st.tuples(models, calls), min_size=1, max_size=8))
def test_a_place_is_of_one_version_for_as_long_as_anybody_may_use_it(
    steps: list[tuple[dict[str, tuple[set[int], int, int | None]], list[tuple[bool, str, int | None]]]],
) -> None:
    """From one lineup to the next nobody moves, and nobody moves in where somebody still is."""
    wishes = Wishes()
    before: Lineup | None = None
    for found, asked in steps:
        here = made(found)
        by_name = {manifest.name: manifest for manifest in here.manifests}
        for loads, name, number in asked:
            if not loads:
                wishes = wishes.unload(name, number)
            elif name in by_name:
                wishes = wishes.load(by_name[name], number)
        wanted = sum(len(wishes.versions(manifest)) for manifest in here.manifests)
        try:
            after = line_up(here, wishes, PLACES, before)
        except NoRoom:
            assert wanted + len(before.seats if before else ()) > PLACES
            continue
        assert len(set(after.places)) == len(after.seats) == wanted
        assert all(place in range(PLACES) for place in after.places)
        assert {(seat.manifest.name, seat.version.version) for seat in after.seats} == {
            (manifest.name, number) for manifest in here.manifests for number in wishes.versions(manifest)
        }
        occupants: dict[int, Seat] = {seat.place: seat for seat in before.seats} if before else {}
        homes = {seat.identity: place for place, seat in occupants.items()}
        for seat in after.seats:
            assert homes.get(seat.identity, seat.place) == seat.place, "it has moved"
            if seat.place in occupants:
                assert occupants[seat.place].identity == seat.identity, "somebody else is there"
        before = after
