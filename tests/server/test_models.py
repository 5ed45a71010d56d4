"""Which model answers a request, and how ModelService describes the models."""

from dataclasses import replace
from typing import Any, cast

import pytest

from scheduler.errors import ModelNotReady, UnknownModel
from server.models import ModelTable
from server.rpc.models import ModelService
from tests.server.world import SIGNATURE, served, table
from tickring.v1 import model_pb2

OLD = served(versions=(1, 2, 3))
OTHER = served(replace(SIGNATURE, name="another", version=1), index=1)


@pytest.fixture
def models() -> ModelTable:
    """`pair` in version 3 of three, and another."""
    return table(OLD, OTHER, default="pair")


@pytest.mark.parametrize("version", ["", "3", "latest"])
@pytest.mark.parametrize("name", ["", "pair"])
def test_default_model_at_its_version(models: ModelTable, name: str, version: str) -> None:
    """Named or not."""
    assert models.route(name, version) is OLD


def test_other_model(models: ModelTable) -> None:
    """By name only."""
    assert models.route("another", "") is OTHER
    assert models.route("another", "1") is OTHER


@pytest.mark.parametrize("name", ["Pair", "pair ", "../pair", "\n", "x" * 500])
def test_unknown_model(models: ModelTable, name: str) -> None:
    """Names are compared as they are; a long one is not repeated whole."""
    with pytest.raises(UnknownModel, match=r"; models are pair, another$") as refused:
        models.route(name, "")
    assert refused.value.reason == "MODEL_NOT_FOUND"
    assert len(str(refused.value)) < 200
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", ["4", "03", "3.0", " 3", "Latest", "-3", "x" * 500])
def test_unknown_version(models: ModelTable, version: str) -> None:
    """Versions are compared as text; what there is, is listed."""
    with pytest.raises(UnknownModel, match=r" of pair; versions are 1, 2, 3$") as refused:
        models.route("pair", version)
    assert refused.value.reason == "VERSION_NOT_FOUND"
    assert len(str(refused.value)) < 100


def test_version_that_is_not_loaded(models: ModelTable) -> None:
    """Known, on disk, and not served."""
    with pytest.raises(ModelNotReady, match=r"^version 1 of pair is not loaded, loaded is 3$"):
        models.route("pair", "1")


def test_nothing_is_ready_before_it_is_said(models: ModelTable) -> None:
    """But an unknown model is unknown already."""
    models = table(OLD, default="pair", ready=False)
    with pytest.raises(ModelNotReady, match=r"^pair is loading or warming up$"):
        models.route("", "")
    with pytest.raises(UnknownModel):
        models.route("other", "")


# -- ModelService -------------------------------------------------------------------------------

# ListModels needs no context, and GetModel only where it fails.
NO_CONTEXT = cast(Any, None)


async def described(models: ModelTable) -> list[model_pb2.Model]:
    """As ListModels answers."""
    return list((await ModelService(models).list_models(model_pb2.ListModelsRequest(), NO_CONTEXT)).models)


@pytest.mark.parametrize(
    ("ready", "state"), [(True, model_pb2.MODEL_STATE_READY), (False, model_pb2.MODEL_STATE_LOADING)]
)
async def test_models_by_name_with_the_state_of_each_version(ready: bool, state: int) -> None:
    """All versions on disk, oldest first; only the one that is served has the state of its engine."""
    another, pair = await described(table(OLD, OTHER, default="pair", ready=ready))
    assert (another.name, another.is_default, pair.name, pair.is_default) == ("another", False, "pair", True)
    assert [(version.version, version.state) for version in pair.versions] == [
        ("1", model_pb2.MODEL_STATE_AVAILABLE),
        ("2", model_pb2.MODEL_STATE_AVAILABLE),
        ("3", state),
    ]
    assert [version.sha256 for version in pair.versions] == [f"{number:064x}" for number in (1, 2, 3)]


async def test_model_is_described_completely(models: ModelTable) -> None:
    """What a request must carry and a response will."""
    _, pair = await described(models)
    assert (pair.description, pair.format, pair.max_rows) == ("for tests", "torchscript", 8)
    assert [(spec.name, spec.data_type, list(spec.shape)) for spec in (*pair.inputs, *pair.outputs)] == [
        ("x", 8, [2, 3]),
        ("k", 6, []),
        ("y", 8, [2]),
        ("z", 9, []),
        ("ok", 1, [1]),
    ]
    answer = await ModelService(models).get_model(model_pb2.GetModelRequest(), NO_CONTEXT)
    assert answer.model == pair
