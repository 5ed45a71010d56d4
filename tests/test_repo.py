"""What holds for the sources as a whole: who imports whom, generated stubs, style of the protos, sizes."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500

# Folder -> the packages of ours that its files may import. Nothing imports tests or bench.
DIRECTIONS = {
    "proto": {"tickring"},
    "scheduler": {"scheduler"},
    "server": {"server", "scheduler", "tickring"},
    "client": {"client", "tickring"},
    "examples": {"examples", "client", "tickring"},
    "bench": {"bench", "server", "client", "scheduler", "tickring", "examples"},
    "tests": {"tests", "server", "client", "scheduler", "tickring", "examples"},
}
OURS = (set(DIRECTIONS) - {"proto"}) | {"tickring"}
SERVICE = ("server", "client", "scheduler")
TORCH_HOME = "scheduler/executor/"
# What the scheduler must work without: RPCs, stores and telemetry are the server's business.
FOREIGN_TO_SCHEDULER = {
    *("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google"),
    *("redis", "opentelemetry", "prometheus_client", "pydantic", "structlog", "uvloop"),
}


def python_files(root: Path, folder: str) -> Iterator[Path]:
    """Every Python file below a folder of `root`, build outputs aside."""
    yield from sorted(path for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, inside functions too.

    Relative imports are left out: they never leave the top-level package, which is all the rules look at.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import(names=names):
                for name in names:
                    yield node.lineno, name.name
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module
            case _:
                pass


def wrong_imports(root: Path) -> list[str]:
    """Every import of a checkout that runs against the rules, as `file:line imports module`."""
    found = []
    for folder, allowed in DIRECTIONS.items():
        for path in python_files(root, folder):
            name = path.relative_to(root).as_posix()
            for line, module in imported_modules(path):
                top = module.partition(".")[0]
                if (
                    (top in OURS and top not in allowed)
                    or (folder == "scheduler" and top in FOREIGN_TO_SCHEDULER)
                    or (folder in SERVICE and top == "torch" and not name.startswith(TORCH_HOME))
                ):
                    found.append(f"{name}:{line} imports {module}")
    return found


def test_imports_follow_the_rules_of_direction() -> None:
    """Server to scheduler, server and client to tickring, torch in scheduler/executor; see DIRECTIONS."""
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "module"),
    [
        ("client/a.py", "import server.settings", "server.settings"),
        ("client/a.py", "def f():\n    from scheduler import arena", "scheduler"),
        ("client/sub/a.py", "if True:\n    import scheduler as s", "scheduler"),
        ("scheduler/a.py", "import server", "server"),
        ("scheduler/a.py", "from tickring.v1 import types_pb2", "tickring.v1"),
        ("scheduler/a.py", "import grpc.aio", "grpc.aio"),
        ("scheduler/a.py", "from opentelemetry import trace", "opentelemetry"),
        ("scheduler/a.py", "from torch import nn", "torch"),
        ("server/a.py", "class A:\n    def f(self):\n        import torch", "torch"),
        ("server/a.py", "import importlib\nimportlib.import_module('torch.cuda')", "torch.cuda"),
        ("server/a.py", "from client import Client", "client"),
        ("server/a.py", "import tests.scheduler.world", "tests.scheduler.world"),
        ("proto/tickring/a.py", "import server", "server"),
        ("examples/a.py", "import server", "server"),
        ("tests/a.py", "from bench import gates", "bench"),
        ("bench/a.py", "import tests", "tests"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, source: str, module: str) -> None:
    """Wherever in a file it hides."""
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(source)
    (message,) = wrong_imports(tmp_path)
    assert message.startswith(f"{file}:")
    assert message.endswith(f" imports {module}")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("scheduler/executor/a.py", "import torch"),
        ("server/a.py", "from scheduler import arena\nfrom tickring.v1 import types_pb2\nimport grpc"),
        ("client/a.py", "from client.errors import NotFound\nfrom . import codec\nimport torchvision"),
        ("tests/a.py", "import server, client, scheduler, torch\nfrom tests.scheduler import world"),
    ],
)
def test_an_allowed_import_is_not_reported(tmp_path: Path, file: str, source: str) -> None:
    """Neither what the rules permit nor what merely looks alike."""
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert wrong_imports(tmp_path) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("server.frontend", {"torch", "scheduler.executor", "client"}),
        ("server.supervisor", {"torch", "scheduler.executor", "client"}),
        ("server.engine", {"client"}),
        ("client", {"torch", "server", "scheduler", "pydantic", "structlog"}),
        ("client.cli", {"torch", "server", "scheduler"}),
        ("scheduler.dispatcher", {"torch", "grpc", "google.protobuf", "server"}),
    ],
)
def test_a_process_loads_only_what_it_needs(tmp_path: Path, module: str, absent: set[str]) -> None:
    """At run time, with all that its libraries drag in; from another folder, as an installed package."""
    code = f"import sys, {module}; print(*sorted({absent} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


# -- protos -------------------------------------------------------------------------------------


def test_checked_in_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    """`make proto` would change nothing."""
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True)
    fresh, checked_in = stubs(tmp_path), stubs(ROOT / "proto")
    assert fresh.keys() == checked_in.keys()
    assert [name for name in fresh if fresh[name] != checked_in[name]] == []


def stubs(root: Path) -> dict[str, str]:
    """Content of every generated file, by its path below `root`."""
    paths = (path for path in root.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def test_proto_is_a_source_root_and_no_package() -> None:
    """A proto/__init__.py would shadow the `proto` package of other libraries (proto-plus)."""
    assert not (ROOT / "proto" / "__init__.py").exists()


def test_protos_follow_the_standard_style() -> None:
    """What buf's STANDARD rules ask for, as far as descriptors show it."""
    files = [importlib.import_module(name).DESCRIPTOR for name in stub_modules()]
    rpc_types = [
        part.full_name
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        for part in (method.input_type, method.output_type)
    ]
    problems = [problem for file in files for problem in style_problems(file)]
    problems += [f"{name}: used by several RPCs" for name in set(rpc_types) if rpc_types.count(name) > 1]
    assert problems == []
    assert rpc_types, "no RPC was looked at"


def stub_modules() -> list[str]:
    """Import names of our message stubs. KServe's protocol has a style of its own, Triton's."""
    paths = sorted((ROOT / "proto" / "tickring" / "v1").rglob("*_pb2.py"))
    return [".".join(path.relative_to(ROOT / "proto").with_suffix("").parts) for path in paths]


def style_problems(file: FileDescriptor) -> Iterator[str]:
    """What a proto file does differently from the standard."""
    if file.package != Path(file.name).parent.as_posix().replace("/", "."):
        yield f"{file.name}: package is {file.package}, not its folder"
    if not re.search(r"\.v\d+$", file.package):
        yield f"{file.package}: no version at the end"
    for enum in file.enum_types_by_name.values():
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper()
        for value in enum.values:
            if not value.name.startswith(f"{prefix}_"):
                yield f"{value.name}: does not start with {prefix}_"
        if enum.values_by_number[0].name != f"{prefix}_UNSPECIFIED":
            yield f"{enum.name}: its zero is not {prefix}_UNSPECIFIED"
    for message in file.message_types_by_name.values():
        if not re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name):
            yield f"{message.name}: not PascalCase"
        for field in message.fields:
            if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name):
                yield f"{field.full_name}: not lower_snake_case"
    for service in file.services_by_name.values():
        if not service.name.endswith("Service"):
            yield f"{service.name}: does not end in Service"
        for method in service.methods:
            wanted = (f"{method.name}Request", f"{method.name}Response")
            if (method.input_type.name, method.output_type.name) != wanted:
                yield f"{method.full_name}: not from {wanted[0]} to {wanted[1]}"


def test_no_two_test_modules_have_one_name() -> None:
    """The folders of tests are no packages, so pytest would take the second for the first."""
    names = Counter(path.name for path in python_files(ROOT, "tests") if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_stay_readable() -> None:
    """A few hundred lines; what grows beyond wants to be two files."""
    long = {}
    for folder in DIRECTIONS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".hpp", ".cpp", ".proto") and "_pb2" not in path.name:
                lines = path.read_text().count("\n")
                if lines > MAX_LINES:
                    long[path.relative_to(ROOT).as_posix()] = lines
    assert long == {}
