"""Exported programs as files."""

import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn

BATCH = torch.export.Dim("batch")


def program(
    module: nn.Module, *inputs: Tensor, rows: Any = BATCH, columns: Any = None, training: bool = False
) -> bytes:
    """A `.pt2` file; `rows` is the batch dimension, `columns` the one after it, None for a fixed one."""
    dynamic = tuple({0: rows, 1: columns} if columns else {0: rows} for _ in inputs)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # that an LSTM keeps its weights in a list as well
        warnings.simplefilter("ignore")
        exported = torch.export.export(module.train(training), inputs, dynamic_shapes=dynamic)
        torch.export.save(exported, buffer)
    return buffer.getvalue()
