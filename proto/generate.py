"""Regenerates the Python stubs beside the protos: `make proto`, or `python proto/generate.py [OUT_DIR]`.

The stubs are checked in so that an install needs no protoc. `tests/test_repo.py` runs this into an
empty folder and fails when the result differs from what is checked in.
"""

import sys
from importlib import resources
from pathlib import Path

import google.rpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def generate(out_dir: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` of every proto below this folder to `out_dir`.

    Raises:
        SystemExit: protoc refused a file; it has printed why.
    """
    google_types = Path(next(iter(google.rpc.__path__))).parents[1]
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{google_types}",
        f"-I{resources.files('grpc_tools') / '_proto'}",
        f"--python_out={out_dir}",
        f"--pyi_out={out_dir}",
        f"--grpc_python_out={out_dir}",
        *protos,
    ]
    if status := protoc.main(arguments):
        raise SystemExit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
