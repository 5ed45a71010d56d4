"""Programs that some tests need and not every machine has."""

import os
import shutil

import pytest


def need(found: bool, what: str) -> None:
    """Skips the test where a tool is missing, except where all have to be there."""
    if found:
        return
    if os.environ.get("TEST_TOOLS_REQUIRED"):
        pytest.fail(f"not here: {what}")
    pytest.skip(f"needs {what}")


def need_tools(*names: str) -> None:
    """See `need`."""
    missing = [name for name in names if shutil.which(name) is None]
    need(not missing, ", ".join(missing))
