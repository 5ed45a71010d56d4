"""What an installed tickring depends on and consists of."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_repo import OURS, ROOT, imported_modules, python_files

PACKAGES = ("server", "client", "scheduler", "tickring")
# Wants another protobuf than we do: tests/e2e/test_tritonclient.py gives it an environment of its own.
APART = {"tritonclient"}
# Folder -> the extras that its imports may come from, beside the plain dependencies.
EXTRAS = {
    "client": {"bench"},
    "scheduler": {"server", "gpu", "onnx"},
    "server": {"server", "gpu", "calendar"},
    "examples": {"server", "demo"},
    "bench": {"server", "demo", "dev"},
    "tests": {"server", "demo", "dev"},
}


def declared() -> dict[str, list[Requirement]]:
    """Requirements by extra; "" are the plain dependencies, "build" those of the build."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {
        "": tables["project"]["dependencies"],
        "build": tables["build-system"]["requires"],
        **tables["project"]["optional-dependencies"],
    }
    return {extra: [Requirement(text) for text in texts] for extra, texts in extras.items()}


def pins() -> dict[str, str]:
    """Version by canonical name, from constraints.txt; every line is an exact pin."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
            assert pin, line
            found[canonicalize_name(pin[1])] = pin[2]
    return found


@cache
def owners() -> dict[str, set[str]]:
    """Installed distributions by the top-level names that they have files under."""
    found = defaultdict[str, set[str]](set)
    for distribution in importlib.metadata.distributions():
        owner = canonicalize_name(distribution.metadata["Name"])
        for line in (distribution.read_text("RECORD") or "").splitlines():
            top, slash, _ = line.partition("/")
            found[top if slash else top.partition(".")[0]].add(owner)
    return found


def test_no_other_distribution_owns_our_package_names() -> None:
    """`server` and `client` are common names; of two owners the later would overwrite the earlier."""
    found = owners()
    assert "tickring" in found["scheduler"], "installed files are not seen"
    assert {name: other for name in PACKAGES if (other := found[name] - {"tickring"})} == {}


def test_every_declared_dependency_is_pinned() -> None:
    """To a version that the declaration allows."""
    pinned = pins()
    assert [
        str(requirement)
        for requirements in declared().values()
        for requirement in requirements
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"))
    ] == []


def test_every_import_is_declared_by_its_own_extra() -> None:
    """`pip install tickring` is enough for the client, `tickring[server]` for the server, and so on."""
    requirements = declared()
    found = owners()
    problems = []
    for folder, extras in EXTRAS.items():
        known = {canonicalize_name(each.name) for extra in {"", *extras} for each in requirements[extra]}
        for path in python_files(ROOT, folder):
            if path.match("bench/peers/serve_*.py"):
                continue  # run by the peer's own interpreter, with what bench/peers/requirements-*.txt pins
            for line, module in imported_modules(path):
                top = module.partition(".")[0]
                if top not in OURS | APART and top not in sys.stdlib_module_names and not known & found[top]:
                    problems.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert problems == []


def test_torch_is_the_pinned_version() -> None:
    """What a TorchScript file does, and how fast, is known for one version of torch."""
    assert pins()["torch"] == "2.13.0"
    assert importlib.metadata.version("torch").partition("+")[0] == "2.13.0"


def test_grpc_knows_the_switch_that_front_ends_rely_on() -> None:
    """Decision 0004. Of a name that it does not know, gRPC only logs a line."""
    switch = re.search(r'"GRPC_EXPERIMENTS", "(.*?)"', (ROOT / "server" / "boot.py").read_text())
    assert switch is not None
    assert "Unknown experiment" not in grpc_says(switch[1])
    assert "Unknown experiment" in grpc_says("-no_such_switch")


def grpc_says(experiments: str) -> str:
    """What gRPC writes to stderr when it starts with these experiments."""
    done = subprocess.run(
        [sys.executable, "-c", "import grpc; grpc.insecure_channel('localhost:1').close()"],
        env={**os.environ, "GRPC_EXPERIMENTS": experiments},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.slow
def test_wheel_has_what_an_installed_server_needs_and_no_more(tmp_path: Path) -> None:
    """Profiles, bundled models, native part and typing markers; and a server that finds them."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    build += ["--config-settings", f"build-dir={tmp_path / 'build'}", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    files = files_below(installed)

    assert len([file for file in files if re.fullmatch(r"scheduler/_ring\..*\.so", file)]) == 1
    assert {f"server/bundled_models/{file}" for file in files_below(ROOT / "models")} <= files
    assert {f"server/profiles/{file}" for file in files_below(ROOT / "server" / "profiles")} <= files
    assert {"server/page/index.html", "client/load/page.css"} <= files
    assert {f"{package}/py.typed" for package in PACKAGES} <= files
    assert {"scheduler/_ring.pyi", "tickring/v1/inference_pb2.pyi"} <= files
    ours = {file for file in files if ".dist-info/" not in file}
    assert {file.split("/")[0] for file in ours} == set(PACKAGES)
    kinds = {Path(file).suffix for file in ours if "/bundled_models/" not in file}
    assert kinds == {".css", ".html", ".py", ".pyi", ".so", ".toml", ".typed"}
    assert default_model(installed) == "sp500_direction"


def files_below(folder: Path) -> set[str]:
    """Paths relative to `folder`."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def default_model(installed: Path) -> str:
    """What a server that runs from these files, and from nothing in the checkout, would serve."""
    libraries = str(Path(pytest.__file__).parents[1])
    code = (
        f"import sys; sys.path[:0] = [{str(installed)!r}, {libraries!r}]\n"
        "from server import repository, settings\n"
        f"assert settings.__file__.startswith({str(installed)!r}), settings.__file__\n"
        "print(repository.load_repository(settings.bundled_repository()).default_model)"
    )
    # -S: without the .pth files of this environment, which lead into the checkout.
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(
        command, cwd=installed.parent, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
