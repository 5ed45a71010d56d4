"""A `.pt2` archive may hold tensors and a graph of torch's operators; whatever else it holds is never run."""

import io
import json
import operator
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from scheduler.executor.exported import _check_node
from scheduler.executor.exported_archive import GRAPH
from scheduler.executor.runner import DeviceSettings, ModelUnusable, load_runner
from scheduler.signature import DataType, TensorSpec
from tests.scheduler.executor.passage import signature
from tests.scheduler.executor.programs import program

ROWS = torch.arange(12.0).reshape(3, 4)
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
Change = Callable[[Any], object]


class Affine(nn.Module):
    """A parameter, a constant, and an operator that takes a text."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        scaled = torch.einsum("bi,i->bi", x, self.scale) + torch.tensor([1.0, 2.0, 3.0, 4.0])
        answer: Tensor = nn.functional.gelu(scaled, approximate="tanh")
        return answer


class Touch:
    """What a pickle can do: leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


@pytest.fixture(scope="module")
def good() -> bytes:
    """A program as torch writes it."""
    return program(Affine(), ROWS)


def altered(file: bytes, parts: dict[str, Callable[[bytes], bytes]]) -> bytes:
    """The archive with these parts made from what they were, empty where they were not there."""
    reader = PT2ArchiveReader(io.BytesIO(file))
    names = reader.get_file_names()
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name in [*names, *(name for name in parts if name not in names)]:
            if not name.startswith((".data/", "byteorder")):  # the writer's own
                content = reader.read_bytes(name) if name in names else b""
                writer.write_bytes(name, parts.get(name, bytes)(content))
    return buffer.getvalue()


def json_part(change: Change) -> Callable[[bytes], bytes]:
    """Changes a part that is JSON."""

    def alter(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    return alter


def answer(file: bytes) -> list[list[float]]:
    """Loads and runs it."""
    its = signature(
        inputs=(TensorSpec("x", DataType.FP32, (4,)),), outputs=(TensorSpec("y", DataType.FP32, (4,)),)
    )
    (y,) = load_runner("exported_program", file, its, DeviceSettings()).run([ROWS.numpy()])
    values: list[list[float]] = y.tolist()
    return values


def test_a_program_as_torch_writes_it_passes(good: bytes) -> None:
    """Also with notes of its writer, and altered by `altered` in nothing."""
    with torch.inference_mode():
        wanted = Affine()(ROWS).tolist()
    assert answer(good) == wanted
    assert answer(altered(good, {"extra/notes.txt": lambda _: b"trained on a Tuesday"})) == wanted


def test_sample_inputs_are_never_unpickled(good: bytes, tmp_path: Path) -> None:
    """torch would, without restriction; nobody needs them."""
    mark = tmp_path / "unpickled"
    buffer = io.BytesIO()
    torch.save(((Touch(mark),), {}), buffer)
    bad = altered(good, {SAMPLE_INPUTS: lambda _: buffer.getvalue()})
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert mark.exists(), "the pickle does nothing, so this test shows nothing"
    mark.unlink()
    assert answer(bad) == answer(good)
    assert not mark.exists()


def pickled(config: str, part: str) -> Change:
    """Says of a tensor that it is pickled, in this part."""

    def change(table: Any) -> None:
        entry = next(iter(table["config"].values()))
        entry["use_pickle"] = True
        entry["path_name"] = part

    return change


def renamed(config: str, part: str) -> Change:
    """Says of a tensor that it is in this part."""
    return lambda table: next(iter(table["config"].values())).update(path_name=part)


@pytest.mark.parametrize(
    ("config", "part", "change"),
    [
        (WEIGHTS, "weight_0", pickled),
        (CONSTANTS, "tensor_0", pickled),
        (CONSTANTS, "opaque_obj_0", renamed),
        (CONSTANTS, "custom_obj_0", renamed),
        (WEIGHTS, "../../extra/weight_0", renamed),
    ],
)
def test_pickled_tensors_are_refused(
    good: bytes, tmp_path: Path, config: str, part: str, change: Callable[[str, str], Change]
) -> None:
    """Before anything is unpickled."""
    mark = tmp_path / "unpickled"
    bad = altered(
        good,
        {
            config: json_part(change(config, part)),
            f"{Path(config).parent}/{part}": lambda _: pickle.dumps(Touch(mark)),
        },
    )
    with pytest.raises(ModelUnusable, match=r"is pickled, allowed are plain tensors$"):
        answer(bad)
    assert not mark.exists()


@pytest.mark.parametrize(
    "part",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/aotinductor/model/model.so",
        "data/aotinductor/model/wrapper.cpp",
        "models/other.json",
        "something/else",
    ],
)
def test_other_parts_are_refused(good: bytes, part: str) -> None:
    """Pickles of older torch, compiled code, and what a later torch may think of."""
    bad = altered(good, {part: lambda _: b"anything"})
    with pytest.raises(
        ModelUnusable, match=f"^the file of m cannot be served: its part '{part}' may hold code"
    ):
        answer(bad)


def node(program: Any, position: int = 0) -> Any:
    """A node of the graph."""
    return program["graph_module"]["graph"]["nodes"][position]


def sizes(program: Any) -> list[Any]:
    """The sizes of the input."""
    tensors: dict[str, Any] = program["graph_module"]["graph"]["tensor_values"]
    found: list[Any] = tensors["x"]["sizes"]
    return found


def module_call(program: Any) -> Any:
    """How inputs and outputs are nested."""
    return program["graph_module"]["module_call_graph"][0]["signature"]


def renamed_node(name: str) -> Change:
    """Gives the first node's value, and what reads it, another name."""

    def change(program: Any) -> None:
        old = node(program)["name"]
        text = json.dumps(program).replace(json.dumps(old), json.dumps(name))
        program.clear()
        program.update(json.loads(text))

    return change


def calling(target: str, *texts: str) -> Change:
    """Makes the first node a call of any function."""

    def change(program: Any) -> None:
        arguments = [{"name": "", "arg": {"as_string": text}, "kind": 1} for text in texts]
        node(program).update(target=target, inputs=arguments)

    return change


def of_type(kind: str, context: str) -> Change:
    """Nests the inputs in another container."""

    def change(program: Any) -> None:
        tree = json.loads(module_call(program)["in_spec"])
        tree[1]["children_spec"][1].update(type=kind, context=context)
        module_call(program)["in_spec"] = json.dumps(tree)

    return change


FACTORY = json.dumps({"default_factory_module": "this", "default_factory_name": "s", "dict_context": []})
ENUM = json.dumps([{"__enum__": True, "fqn": "this:s", "name": "x"}])
CODE = "__import__('pathlib').Path('MARK').touch()"
GRAPHS: dict[str, Change] = {
    "expression": lambda p: sizes(p)[0]["as_expr"].update(expr_str=CODE),
    "expression of builtins": lambda p: sizes(p)[0]["as_expr"].update(expr_str="eval(chr(49))"),
    "expression with an attribute": lambda p: sizes(p)[0]["as_expr"].update(expr_str="Integer.mro()"),
    "condition": lambda p: p.update(guards_code=[CODE]),
    "node's name": renamed_node(f"a = {CODE}; b"),
    "node's name, dotted": renamed_node("torch.relu"),
    "argument's name": lambda p: module_call(p).update(forward_arg_names=[f"x={CODE}"]),
    "function": calling("torch.os.system", "touch MARK"),
    "function from operators": calling("_operator.attrgetter", "__class__"),
    "loading of a library": calling("torch.ops.load_library", "MARK"),
    "container": of_type("collections.defaultdict", FACTORY),
    "enumeration": of_type("builtins.dict", ENUM),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph_that_would_run_python_is_refused(good: bytes, tmp_path: Path, case: str) -> None:
    """Wherever in it the code hides."""
    mark = tmp_path / "ran"

    def change(program: Any) -> None:
        before = json.dumps(program)
        GRAPHS[case](program)
        text = json.dumps(program)
        assert text != before
        program.clear()
        program.update(json.loads(text.replace("MARK", str(mark))))

    with pytest.raises(ModelUnusable):
        answer(altered(good, {GRAPH: json_part(change)}))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (os.system, ("true",)),
        (operator.attrgetter, ("__class__",)),
        (torch.ops.higher_order.flat_apply, ()),
        (torch.ops.higher_order.cond, (True, os.system, os.system, ())),
    ],
    ids=["function", "function from operators", "operator that calls anything", "function as an argument"],
)
def test_a_call_of_anything_but_an_operator_is_refused(target: Any, arguments: tuple[Any, ...]) -> None:
    """torch looks at most of these too, when a program is made; that is not promised."""
    node = torch.fx.Graph().call_function(target, arguments)
    with pytest.raises(ModelUnusable, match=r"^it calls .*, allowed are torch's operators$"):
        _check_node(node)


def test_a_long_expression_is_refused_at_once(good: bytes) -> None:
    """However it is put together."""
    with pytest.raises(ModelUnusable, match="which is no plain name"):
        answer(
            altered(
                good,
                {GRAPH: json_part(lambda p: sizes(p)[0]["as_expr"].update(expr_str="1" * 100_000 + "?"))},
            )
        )
