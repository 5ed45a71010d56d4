"""Real rows beside a model, to compare the forms of it on: `samples.npz` with an array for each input."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scheduler.executor.runner import Array, ModelUnusable
from scheduler.signature import ModelSignature

FILE = "samples.npz"
MAX_BYTES = 256 << 20
MOST_ROWS = 256


def read_samples(path: Path, signature: ModelSignature) -> Sequence[Array] | None:
    """The first `MOST_ROWS` rows, one array `[n, *shape]` per input; None where there is no such file.

    Nothing in it is run, and nothing pickled is read.

    Raises:
        ModelUnusable: it is not what its name says, or does not fit the model.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as file:
            found = [np.ascontiguousarray(file[spec.name]) for spec in signature.inputs]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelUnusable(f"{path}: {error}") from error
    rows = found[0].shape[0]
    for spec, array in zip(signature.inputs, found, strict=True):
        fits = array.shape[:1] == (rows,) and spec.allows(array.shape[1:])
        if rows == 0 or not fits or array.dtype != spec.data_type.dtype:
            wanted = ", ".join(["n", *spec.allowed_sizes])
            raise ModelUnusable(
                f"{path}: {spec.name} is {array.dtype} {list(array.shape)}, "
                f"needed is {spec.data_type.dtype} [{wanted}]"
            )
    return [array[:MOST_ROWS] for array in found]
