"""What of a `.pt2` archive is data, and nothing else.

`torch.export.load` of torch 2.11 and 2.13 does what an archive tells it to: it unpickles sample inputs,
weights and constants without restriction, loads compiled code, evaluates the expressions of shapes, turns
names into Python source, and looks functions up by dotted names. So a new archive is made of the parts that
are plain data: the bytes of tensors, tables of their shapes, and the graph, of which every text is a plain
name, a shape's arithmetic, or left out. `exported.py` looks at the functions once they are found, before any
of them runs.
"""

import io
import json
import re
from typing import Any

from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from scheduler.executor.runner import ModelUnusable

GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_TABLES = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
# What torch writes anew, or does without: a caller's own notes, and what the program was exported with.
_LEFT_OUT = re.compile(r"\.data/.*|byteorder|archive_format|extra/.*|data/sample_inputs/model\.pt")
_VERSION = "archive_version"

_NAME = re.compile(r"[A-Za-z0-9_.]*")
# Symbols such as s77, numbers, sympy's classes and their keywords, arithmetic and comparison. Python's own
# functions have lower-case names without digits. Possessive, so that no text takes long to refuse.
_EXPRESSION = re.compile(
    r"(?:Symbol\('[a-z]{1,3}\d++'|[a-z]{1,3}\d++|[A-Z][A-Za-z]*+|(?:positive|integer|nonnegative|real)="
    r"|precision=|'\d++(?:\.\d++)?'|\d++(?:\.\d++)?|[-+*/%(),<>=!&|~ ])*+"
)
# A condition that the graph states too, by the same symbol for both: inputs have as many rows as each other.
_SAME_SIZE = re.compile(r"L\['\w+'\]\.size\(\)\[\d+\] == L\['\w+'\]\.size\(\)\[\d+\]")
# A node and a graph module, by their fields: a tensor may be called metadata too.
_WITH_METADATA = ({"target", "inputs", "outputs", "metadata"}, {"graph", "signature", "metadata"})
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
# Never evaluated: arguments of operators, and who wrote the file.
_FREE_TEXTS = ("as_string", "as_strings", "torch_version")


def plain_data(file: bytes) -> bytes:
    """The same program in an archive without anything that loading would run.

    Raises:
        ModelUnusable: it is no such archive, or cannot do without what must not be in it.
        Exception: of many kinds, for a file that is broken in some other way.
    """
    reader = PT2ArchiveReader(io.BytesIO(file))
    names = reader.get_file_names()
    clean = io.BytesIO()
    with PT2ArchiveWriter(clean) as writer:
        for name in names:
            if name == GRAPH:
                writer.write_bytes(name, _checked_graph(reader.read_bytes(name)))
            elif name in _TABLES:
                writer.write_bytes(name, _checked_table(name, reader.read_bytes(name)))
            elif name == _VERSION or _TENSORS.fullmatch(name):
                writer.write_bytes(name, reader.read_bytes(name))
            elif not _LEFT_OUT.fullmatch(name):
                raise ModelUnusable(f"its part {name[:100]!r} may hold code, allowed are a graph and tensors")
        # Loading asks for it, and takes nothing for an answer.
        writer.write_bytes(_SAMPLE_INPUTS, b"")
    return clean.getvalue()


def _checked_table(name: str, content: bytes) -> bytes:
    table = json.loads(content)
    for key, entry in table["config"].items():
        if entry["use_pickle"] or not _TABLES[name].fullmatch(entry["path_name"]):
            raise ModelUnusable(f"{key[:100]!r} is pickled, allowed are plain tensors")
    _check_texts(table, "")
    return content


def _checked_graph(content: bytes) -> bytes:
    program = json.loads(content)
    conditions = [text for text in program.pop("guards_code", []) if not _SAME_SIZE.fullmatch(text)]
    if conditions:
        raise ModelUnusable(
            f"it was exported on the condition that {' and '.join(conditions)[:200]}, "
            f"allowed are batches of any size"
        )
    _drop_metadata(program)
    _check_texts(program, "")
    return json.dumps(program).encode()


def _drop_metadata(part: Any) -> None:
    """Where a node came from, in the words of the source: nothing computes with it."""
    if isinstance(part, dict):
        if any(fields <= part.keys() for fields in _WITH_METADATA):
            part["metadata"] = {}
        for inner in part.values():
            _drop_metadata(inner)
    elif isinstance(part, list):
        for inner in part:
            _drop_metadata(inner)


def _check_texts(part: Any, key: str) -> None:
    if isinstance(part, dict):
        for name, inner in part.items():
            _check_text(name, "")
            _check_texts(inner, name)
    elif isinstance(part, list):
        for inner in part:
            _check_texts(inner, key)
    elif isinstance(part, str):
        _check_text(part, key)


def _check_text(text: str, key: str) -> None:
    if key in ("in_spec", "out_spec"):
        good = not text or _is_plain_tree(json.loads(text))
    elif key == "expr_str":
        good = _EXPRESSION.fullmatch(text) is not None
    else:
        good = key in _FREE_TEXTS or _NAME.fullmatch(text) is not None
    if not good:
        raise ModelUnusable(f"its graph holds {text[:100]!r} as {key or 'a name'}, which is no plain name")


def _is_plain_tree(tree: Any) -> bool:
    """How inputs or outputs are nested: `[version, node]`, a node being a container and what is in it."""
    if isinstance(tree, list):
        return len(tree) == 2 and tree[0] == 1 and _is_plain_tree(tree[1])
    context = json.loads(tree["context"] or "null")
    return (
        tree["type"] in _CONTAINERS
        and (context is None or all(isinstance(k, str) and _NAME.fullmatch(k) for k in context))
        and all(isinstance(child, dict) and _is_plain_tree(child) for child in tree["children_spec"])
    )
