"""Write a trained network as a model repository entry: TorchScript file and manifest."""

import hashlib
from pathlib import Path

import torch

from examples.sp500.model import CnnLstm

NAME = "sp500_direction"
DESCRIPTION = "Next-day direction and move of the S&P 500 from 60 days of 50 features; a demo, not a signal"

_MANIFEST = """\
# Written by examples/sp500/train.py; the README beside it is the model card.
name = "{name}"
description = "{description}"
format = "torchscript"
precision = "fp32"
finite_inputs = true # NaN/Inf in an input is refused
finite_outputs = true # a NaN/Inf in an output is an error of that item

[[inputs]]
name = "window"
data_type = "FP32"
shape = [50, 60]

[[outputs]]
name = "classification_probs"
data_type = "FP32"
shape = [3]

[[outputs]]
name = "regression_mean"
data_type = "FP32"
shape = [1]

[[outputs]]
name = "regression_uncertainty"
data_type = "FP32"
shape = [1]

[[outputs]]
name = "ensemble_weights"
data_type = "FP32"
shape = [3]

[[outputs]]
name = "features"
data_type = "FP32"
shape = [128]

[versions.1]
sha256 = "{sha256}"
"""


def export(model: CnnLstm, folder: Path) -> Path:
    """Write `1/model.pt` and `model.toml` under `folder`; returns the path of the former.

    The module is scripted in evaluation mode but not frozen: freezing turns the weights into constants,
    which a server can then no longer move to a GPU or cast to BF16. It can still freeze what it loads.
    """
    path = folder / "1" / "model.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    scripted = torch.jit.script(model.eval())
    scripted.save(str(path))  # type: ignore[no-untyped-call]
    _strip_debug_records(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = _MANIFEST.format(name=NAME, description=DESCRIPTION, sha256=sha256)
    (folder / "model.toml").write_text(manifest, encoding="utf-8")
    return path


def _strip_debug_records(path: Path) -> None:
    """Rewrite the archive without its source positions.

    They hold the absolute path of every source file on the machine that exported, so the same weights
    would give another sha256 elsewhere. Torch has no switch for it and loads an archive without them. Its
    own reader and writer are used because tensors must stay aligned to 64 bytes in the file.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    records = [name for name in reader.get_all_records() if not name.endswith(".debug_pkl")]
    contents = [(name, reader.get_record(name)) for name in records]
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in contents:
        # These two the writer adds itself.
        if name not in ("version", ".data/serialization_id"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()
