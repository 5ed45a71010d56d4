"""Dynamic shapes on the caller's side: what is read from files, and what is told of models."""

import io
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from client.cli_input import BadInput, Source, arrays_for
from client.cli_output import model_json, print_models
from client.codec import read_model
from client.model_info import ModelInfo, TensorInfo
from tickring.v1 import model_pb2, types_pb2

STEPS = TensorInfo("x", np.dtype(np.float32), (-1,), (6,), (2,))
ROWS_OF_THREE = TensorInfo("x", np.dtype(np.float32), (-1, 3), (6, 3), (1, 3))
TWO_OF_ANY = TensorInfo("x", np.dtype(np.float32), (2, -1), (2, 6), (2, 1))
GRID = TensorInfo("x", np.dtype(np.float32), (-1, -1, -1), (6, 6, 6), (1, 1, 1))


def model(spec: TensorInfo) -> ModelInfo:
    """A model with this input alone."""
    output = TensorInfo("y", np.dtype(np.float32), (-1,), (9,))
    return ModelInfo("m", "", "torchscript", True, 8, (), (spec,), (output,))


def read(spec: TensorInfo, data: bytes) -> npt.NDArray[np.generic]:
    """The array of that input from a file."""
    return arrays_for(model(spec), [Source(None, "x.file", data)])["x"]


def npy(shape: Sequence[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return file.getvalue()


def csv(lines: int, width: int) -> bytes:
    return "\n".join(
        ",".join(str(line * width + at) for at in range(width)) for line in range(lines)
    ).encode()


@pytest.mark.parametrize(
    ("spec", "shape", "wanted"),
    [
        (STEPS, (2,), (1, 2)),
        (STEPS, (6,), (1, 6)),
        (STEPS, (1, 4), (1, 4)),
        (STEPS, (9, 4), (9, 4)),
        (ROWS_OF_THREE, (5, 3), (1, 5, 3)),
        (ROWS_OF_THREE, (2, 5, 3), (2, 5, 3)),
    ],
)
def test_an_array_is_one_item_or_several(
    spec: TensorInfo, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    array = read(spec, npy(shape))
    assert array.shape == wanted
    assert array.ravel().tolist() == list(range(array.size))


@pytest.mark.parametrize(
    ("spec", "shape", "said"),
    [
        (STEPS, (1,), "shape is [1]; 'x' takes [2 to 6] or [n, 2 to 6]"),
        (STEPS, (7,), "shape is [7]; 'x' takes [2 to 6] or [n, 2 to 6]"),
        (STEPS, (1, 7), "shape is [1, 7]; 'x' takes [2 to 6] or [n, 2 to 6]"),
        (STEPS, (), "shape is []; 'x' takes [2 to 6] or [n, 2 to 6]"),
        (ROWS_OF_THREE, (1, 4), "shape is [1, 4]; 'x' takes [1 to 6, 3] or [n, 1 to 6, 3]"),
    ],
)
def test_an_array_of_another_shape_is_refused(spec: TensorInfo, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(spec, npy(shape))
    assert str(raised.value) == f"x.file: {said}"


@pytest.mark.parametrize(
    ("spec", "lines", "width", "wanted"),
    [
        (STEPS, 1, 5, (1, 5)),
        (STEPS, 8, 2, (8, 2)),
        (ROWS_OF_THREE, 5, 3, (1, 5, 3)),
        (TWO_OF_ANY, 2, 4, (1, 2, 4)),
        (TWO_OF_ANY, 6, 4, (3, 2, 4)),
    ],
)
def test_lines_are_the_last_dimension(
    spec: TensorInfo, lines: int, width: int, wanted: tuple[int, ...]
) -> None:
    """Items below each other where one has a fixed number of them; else the file is one item."""
    array = read(spec, csv(lines, width))
    assert array.shape == wanted
    assert array.ravel().tolist() == list(range(array.size))


@pytest.mark.parametrize(
    ("spec", "lines", "width", "sizes"),
    [
        (STEPS, 1, 7, "2 to 6"),
        (ROWS_OF_THREE, 7, 3, "1 to 6, 3"),
        (ROWS_OF_THREE, 5, 2, "1 to 6, 3"),
        (TWO_OF_ANY, 3, 4, "2, 1 to 6"),
        (GRID, 4, 4, "1 to 6, 1 to 6, 1 to 6"),
    ],
)
def test_lines_that_make_no_item_are_refused(spec: TensorInfo, lines: int, width: int, sizes: str) -> None:
    with pytest.raises(BadInput) as raised:
        read(spec, csv(lines, width))
    assert str(raised.value) == (
        f"x.file: {lines} lines of {width} numbers; 'x' takes [{sizes}], a line being the last dimension, "
        "or an array as .npy"
    )


def test_what_is_told_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The largest and smallest shapes where there are some, in words and as JSON."""
    kind = types_pb2.DATA_TYPE_FP32
    told = read_model(
        model_pb2.Model(
            name="m",
            inputs=[
                model_pb2.TensorSpec(
                    name="x", data_type=kind, shape=[-1, 3], max_shape=[6, 3], min_shape=[1, 3]
                ),
                model_pb2.TensorSpec(name="k", data_type=kind, shape=[2]),
            ],
            outputs=[model_pb2.TensorSpec(name="y", data_type=kind, shape=[-1], max_shape=[9])],
        )
    )
    assert told.inputs == (ROWS_OF_THREE, TensorInfo("k", np.dtype(np.float32), (2,)))
    assert told.outputs == model(STEPS).outputs
    print_models([told])
    printed = capsys.readouterr().out
    assert all(shape in printed for shape in ("[n, 1 to 6, 3]", "[n, 2]", "[n, 0 to 9]"))
    assert json.loads(json.dumps(model_json(told)))["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [-1, 3], "max_shape": [6, 3], "min_shape": [1, 3]},
        {"name": "k", "dtype": "float32", "shape": [2]},
    ]
