"""What the documents say exists: commands, links. And nothing in them belongs to one machine."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.test_repo import ROOT

DOCUMENTS = sorted(
    {*ROOT.glob("*.md")}
    | {
        path
        for folder in ("bench", "deploy", "docs", "examples", "models", "proto", "tests")
        for path in (ROOT / folder).rglob("*.md")
        if "node_modules" not in path.parts
    }
)
# By the name it is called, the module that it runs.
COMMANDS = {"tickring": "client.cli", "tickring-server": "server"}
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@cache
def help_of(*command: str) -> str:
    """What a command says of itself."""
    arguments = [sys.executable, "-m", *command, "--help"]
    return subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True).stdout


def make_targets() -> set[str]:
    """Targets of the Makefile that people call."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code_lines(text: str) -> Iterator[str]:
    """Everything that a document marks as code, line by line, continued lines joined."""
    text = text.replace("\\\n", " ")
    for block in FENCED.findall(text):
        yield from block.splitlines()[1:-1]
    text = FENCED.sub("", text)
    yield from re.findall(r"^ {4,}(.*)$", text, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", text)


def unknown_commands(line: str) -> Iterator[str]:
    """Commands, subcommands, options, make targets and modules that a line names and that do not exist."""
    targets = re.findall(r"\bmake ([a-z][a-z-]*)", line)
    yield from (f"make {name}" for name in targets if name not in make_targets())
    for module in re.findall(r"\bpython3? -m ([\w.]+)", line):
        if importlib.util.find_spec(module) is None:
            yield f"python -m {module}"
    for name, rest in re.findall(r"(?<![\w/.-])(tickring-server|tickring) ([^|>&;#]*)", line):
        words = shlex.split(rest)
        described = help_of(COMMANDS[name])
        if name == "tickring" and words and re.fullmatch(r"[a-z]+", words[0]):
            if not re.search(rf"^  {words[0]}\b", described, re.MULTILINE):
                yield f"tickring {words[0]}"
                continue
            described = help_of(COMMANDS[name], words[0])
            if "Commands:" in described and words[1:]:
                if not re.search(rf"^  {re.escape(words[1])}\b", described, re.MULTILINE):
                    yield f"tickring {words[0]} {words[1]}"
                    continue
                described = help_of(COMMANDS[name], words[0], words[1])
        known = re.findall(r"--[a-z][a-z-]*", described)
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        yield from (f"{name} {option}" for option in options if option not in known)


def test_every_command_in_a_document_exists() -> None:
    """With its subcommand and options."""
    assert [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in DOCUMENTS
        for line in code_lines(path.read_text())
        for problem in unknown_commands(line)
    ] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("run `make coffee` now", "make coffee"),
        ("```bash\ntickring brew --hot\n```", "tickring brew"),
        ("```\ntickring predict \\\n  --input x.npy --hot\n```", "tickring --hot"),
        ("`tickring admin brew --hot`", "tickring admin brew"),
        ("`tickring admin drain --hot`", "tickring --hot"),
        ("    FOO=1 tickring-server --grpc-prt=1", "tickring-server --grpc-prt"),
        ("`python -m examples.sp500.demos`", "python -m examples.sp500.demos"),
    ],
)
def test_a_planted_command_is_found(text: str, problem: str) -> None:
    """In every kind of code that a document has."""
    assert [found for line in code_lines(text) for found in unknown_commands(line)] == [problem]


def test_a_correct_command_is_not_reported() -> None:
    """Nor is a word that only looks like one."""
    text = "make sense of `make test`, `tickring predict --input x.npy` and `tickring-server --help`"
    assert [found for line in code_lines(text) for found in unknown_commands(line)] == []


def test_promised_make_targets_exist_and_are_listed() -> None:
    """What a fresh machine needs; `make` alone lists everything."""
    promised = {"setup", "demo", "serve", "test", "check", "bench", "proto", "gpu-check", "gpu-bench"}
    assert promised <= make_targets()
    listed = subprocess.run(["make", "-C", ROOT], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert {name for name in make_targets() if f"make {name} " not in listed} == set()


def test_relative_links_resolve() -> None:
    """To a file of the checkout, and to a heading where they name one."""
    problems = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                problems.append(f"{path.relative_to(ROOT)}: {target}")
    assert problems == []


def anchors(path: Path) -> set[str]:
    """What the headings of a document can be linked by."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_no_document_names_a_path_of_one_machine() -> None:
    """What is written must hold elsewhere too."""
    pattern = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work)/\w")
    assert [str(path.relative_to(ROOT)) for path in DOCUMENTS if pattern.search(path.read_text())] == []


@pytest.mark.slow
def test_examples_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    """Export a model, serve it beside the bundled one, and call both as the README says."""
    shutil.copytree(ROOT / "models" / "sp500_direction", tmp_path / "repository" / "sp500_direction")
    (call,) = blocks("Call it", "python")
    (call_commands,) = blocks("Call it", "bash")
    (export,) = blocks("Serve your own model", "python")
    export_commands, predict_commands = blocks("Serve your own model", "bash")
    (tmp_path / "call.py").write_text(call)
    (tmp_path / "export.py").write_text(export)
    windows = np.zeros((3, 50, 60), dtype=np.float32)
    np.save(tmp_path / "windows.npy", windows)
    np.save(tmp_path / "window.npy", windows[0])
    environment = dict(os.environ)
    # As in a shell where .venv is active.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    export_command, serve_command = export_commands.splitlines()
    shell(export_command, tmp_path, environment)

    with serving(serve_command, tmp_path, environment) as target:
        environment["TICKRING_TARGET"] = target
        (tmp_path / "call.py").write_text(call.replace("127.0.0.1:8001", target))
        assert shell("python call.py", tmp_path, environment).startswith("[[")
        answers = shell(call_commands.replace(".venv/bin/", ""), tmp_path, environment)
        assert "classification_probs" in answers
        assert "SERVING" in answers.splitlines()
        assert "momentum version 1" in shell(predict_commands, tmp_path, environment)


def blocks(heading: str, language: str) -> list[str]:
    """The README's code of one section in one language."""
    section = re.search(
        rf"^## {heading}\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert section is not None
    return re.findall(rf"^```{language}\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def shell(commands: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What the commands print; the first that fails ends the test."""
    arguments = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def serving(command: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Runs a server command on free ports until the block ends; gives the target for clients."""
    arguments = [*shlex.split(command), "--grpc-port=0", "--http-port=0", "--admin-port=0"]
    settings = {"TICKRING_MODELS__DEFAULT_MODEL": "sp500_direction"}
    process = subprocess.Popen(
        arguments, cwd=folder, env={**environment, **settings}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if ready := re.search(r"\] ready .*target=(\S+)", line):
                yield ready[1]
                break
        else:
            pytest.fail("the server ended before it was ready:\n" + "".join(lines))
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
