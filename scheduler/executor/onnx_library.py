"""ONNX Runtime, where it is installed: imported when the first model is tried with it."""

import os
from importlib.util import find_spec
from typing import Any

# What the extra `onnx` brings; `onnx` itself is what torch writes the format with.
NEEDED = ("onnx", "onnxruntime")


def missing() -> list[str]:
    """Those of `NEEDED` that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def runtime() -> Any:
    """The module `onnxruntime`.

    Raises:
        ImportError: it is not there, or does not fit this machine.
    """
    # As it comes, it notes what it does in a database under the user's cache folder and sends that to its
    # maker by a thread of its own. This is read once, when the library is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
