"""Arrays for a model from `.npy`, `.csv` or standard input."""

import io
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.model_info import ModelInfo, TensorInfo

STDIN = "-"
NPY_MAGIC = b"\x93NUMPY"

_NAMED = re.compile(r"([A-Za-z_][\w.-]*)=(.+)", re.DOTALL)


class BadInput(ValueError):
    """What the caller gave cannot be read, or does not fit the model; says what would."""


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of one input. `name` is None where the caller left it to the model; `label` is for people."""

    name: str | None
    label: str
    data: bytes

    @property
    def is_npy(self) -> bool:
        """By content, so that it holds for standard input too."""
        return self.data.startswith(NPY_MAGIC)


def read_sources(options: Sequence[str]) -> list[Source]:
    """Reads every `NAME=FILE` or `FILE`; `-` is standard input. Raises `BadInput`.

    What looks like a name before the first `=` is one: write `./a=b.npy` for a file of that name.
    """
    sources: list[Source] = []
    for option in options:
        named = _NAMED.fullmatch(option)
        name, path = (named[1], named[2]) if named else (None, option)
        if any(source.name == name for source in sources):
            raise BadInput(f"input {name!r} is given twice" if name else "several inputs need NAME=FILE each")
        if path == STDIN and any(source.label == "standard input" for source in sources):
            raise BadInput("standard input can be read for one input only")
        sources.append(_read_source(name, path))
    return sources


def arrays_for(model: ModelInfo, sources: Sequence[Source]) -> Mapping[str, npt.NDArray[np.generic]]:
    """One array per input of `model`: its dtype, shape [n, *per-item shape], n the same for all.

    Raises `BadInput` where names, dtypes, shapes or numbers of rows do not fit the model.
    """
    specs = {spec.name: spec for spec in model.inputs}
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for source in sources:
        name = _only_input(model) if source.name is None else source.name
        if name not in specs:
            raise BadInput(f"model {model.name!r} has no input {name!r}; it has {', '.join(specs)}")
        arrays[name] = _decode(source, specs[name])
    missing = [name for name in specs if name not in arrays]
    if missing:
        raise BadInput(f"model {model.name!r} also needs {', '.join(missing)} (--input NAME=FILE)")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise BadInput(f"inputs differ in their number of rows: {rows}")
    return arrays


def _read_source(name: str | None, path: str) -> Source:
    if path == STDIN:
        return Source(name, "standard input", sys.stdin.buffer.read())
    try:
        source = Source(name, path, Path(path).read_bytes())
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    suffix = Path(path).suffix
    if suffix not in (".npy", ".csv"):
        raise BadInput(f"{path}: unknown kind of file {suffix!r}; allowed: .npy, .csv")
    if source.is_npy != (suffix == ".npy"):
        raise BadInput(f"{path}: the content is not that of a {suffix} file")
    return source


def _only_input(model: ModelInfo) -> str:
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise BadInput(f"model {model.name!r} has the inputs {names}; say --input NAME=FILE for each")
    return model.inputs[0].name


def _decode(source: Source, spec: TensorInfo) -> npt.NDArray[np.generic]:
    array = _decode_npy(source, spec) if source.is_npy else _decode_csv(source, spec)
    if spec.allows(array.shape):
        array = array[np.newaxis]
    if array.ndim == 0 or not spec.allows(array.shape[1:]):
        item = ", ".join(spec.allowed_sizes)
        raise BadInput(
            f"{source.label}: shape is {list(array.shape)}; {spec.name!r} takes [{item}] or [n, {item}]"
        )
    return array


def _decode_npy(source: Source, spec: TensorInfo) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = np.load(io.BytesIO(source.data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{source.label}: {error}") from error
    if array.dtype != spec.dtype:
        raise BadInput(f"{source.label}: dtype is {array.dtype}; {spec.name!r} takes {spec.dtype}")
    return array


def _decode_csv(source: Source, spec: TensorInfo) -> npt.NDArray[np.generic]:
    """One item per line, all its numbers; or, for items of several dimensions, items below each other
    with one line per last dimension. Where an item has any number of lines, the file is one item.
    """
    try:
        text = source.data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{source.label}: neither .npy nor text: {error}") from error
    if not text.strip():
        raise BadInput(f"{source.label}: holds no numbers")
    try:
        lines: npt.NDArray[np.generic] = np.loadtxt(io.StringIO(text), spec.dtype, delimiter=",", ndmin=2)
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{source.label}: {error}") from error
    if spec.max_shape:
        return _in_sizes(lines, source, spec)
    item = math.prod(spec.shape)
    if lines.shape[1] == item:
        return lines.reshape((-1, *spec.shape))
    if spec.shape and lines.shape[1] == spec.shape[-1] and lines.size % item == 0:
        return lines.reshape((-1, *spec.shape))
    raise BadInput(
        f"{source.label}: {lines.shape[0]} lines of {lines.shape[1]} numbers; {spec.name!r} takes {item} per"
        f" line, or items of {list(spec.shape)} below each other"
    )


def _in_sizes(lines: npt.NDArray[np.generic], source: Source, spec: TensorInfo) -> npt.NDArray[np.generic]:
    """Items whose sizes follow from the lines: their length is the last dimension."""
    count, width = lines.shape
    *above, _ = spec.shape
    per_line = math.prod(size for size in above if size > 0)
    if above.count(-1) <= 1 and count % per_line == 0:
        sizes = [count // per_line if size < 0 else size for size in above]
        items = lines.reshape((-1, *sizes, width))
        if spec.allows(items.shape[1:]):
            return items
    raise BadInput(
        f"{source.label}: {count} lines of {width} numbers; {spec.name!r} takes "
        f"[{', '.join(spec.allowed_sizes)}], a line being the last dimension, or an array as .npy"
    )
