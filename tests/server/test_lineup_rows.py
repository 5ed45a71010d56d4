"""Where each model is counted: a name keeps its row through every change."""

from collections.abc import Sequence
from pathlib import Path

from scheduler import _ring
from server.lineup import Lineup, Wishes, line_up
from server.repository import Manifest, ModelVersion, Repository
from server.served import served
from server.settings import Settings
from tests.server.world import SIGNATURE

PLACES = _ring.MAX_MODELS


def model(name: str) -> Manifest:
    """With two versions, of which the newer one is loaded."""
    versions = tuple(
        ModelVersion(number, Path(f"{name}/{number}/model.pt"), f"{number:064}") for number in (1, 2)
    )
    return Manifest(
        name, "", "torchscript", "fp32", True, True, SIGNATURE.inputs, SIGNATURE.outputs, versions
    )


def after(before: Lineup | None, names: Sequence[str], wishes: Wishes | None = None) -> Lineup:
    """The next lineup, when the repository holds these models."""
    found = tuple(model(name) for name in sorted(names))
    return line_up(Repository(found, None), wishes or Wishes(), PLACES, before)


def test_each_name_has_a_row_however_many_versions_are_loaded() -> None:
    """And it survives the way to another process."""
    lineup = after(None, ["b", "a"], Wishes().load(model("a"), 1))
    assert len(lineup.seats) == 3
    assert lineup.rows == {"a": 0, "b": 1}
    assert Lineup.from_json(lineup.to_json()).rows == lineup.rows


def test_a_name_keeps_its_row_when_others_come_and_go() -> None:
    """Nobody else gets it, and it is the same again when the model comes back."""
    first = after(None, ["a", "b"])
    second = after(first, ["b", "c"])
    third = after(second, ["a", "b", "c"])
    assert first.rows.items() <= second.rows.items() <= third.rows.items()
    assert third.rows == {"a": 0, "b": 1, "c": 2}


def test_model_that_is_not_loaded_keeps_its_row() -> None:
    """One that never was has none yet: what is asked of it is counted with no model."""
    away = Wishes().unload("b", None)
    lineup = after(None, ["a", "b"], away)
    assert (lineup.rows, lineup.row("b")) == ({"a": 0}, _ring.NO_MODEL)
    loaded = after(lineup, ["a", "b"])
    gone = after(loaded, ["a", "b"], away)
    assert [each.row("b") for each in (loaded, gone)] == [1, 1]
    rows = {each.standard.signature.name: each.standard.row for each in served(gone, Settings())}
    assert rows == {"a": 0, "b": 1}


def test_names_that_come_when_all_rows_are_taken_share_one() -> None:
    """They are served all the same."""
    many = [f"m{number:02}" for number in range(PLACES)]
    full = after(None, many)
    assert sorted(full.rows.values()) == list(range(PLACES))
    fewer = after(full, many[2:])
    late = after(fewer, ["late", "later", *many[2:]])
    assert {late.row("late"), late.row("later")} == {_ring.OTHER_MODELS}
    assert late.rows == full.rows
    assert late.row("never seen") == _ring.NO_MODEL
