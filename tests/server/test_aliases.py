"""What a manifest may call its versions; one manifest read again; the model of requests that name none."""

import hashlib
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from server.problems import SettingsError
from server.repository import Manifest, RepositoryError, load_manifest, load_repository, with_default
from tests.server.test_repository import FILE, MANIFEST, SHA256, problems, write

TWO = f'{MANIFEST}[versions.2]\nsha256 = "{SHA256[2]}"\n'
NUMBER = "must be the number of a version under [versions]"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of the one model of a good repository, in two versions."""
    return write(tmp_path / "repository" / "spread", TWO, (1, 2))


def read(model: Path) -> Manifest:
    [manifest] = load_repository(model.parent).manifests
    return manifest


def test_aliases_are_of_versions(model: Path) -> None:
    """Both may be the same; they cross to a child process, and are no part of what an engine serves."""
    assert read(model).aliases == {}
    for aliases in ({"stable": 1}, {"stable": 2, "canary": 2}):
        table = "".join(f"{alias} = {number}\n" for alias, number in aliases.items())
        (model / "model.toml").write_text(f"{TWO}[aliases]\n{table}")
        manifest = read(model)
        assert manifest.aliases == Manifest.from_json(manifest.to_json()).aliases == aliases
        assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("latest = 1", "aliases.latest = 1: is no key, allowed are stable, canary"),
        ("1 = 1", "aliases.1 = 1: is no key, allowed are stable, canary"),
        ('"a\\nb" = 1', 'aliases."a\\nb" = 1: is no key, allowed are stable, canary'),
        ("stable = 3", f"aliases.stable = 3: {NUMBER}"),
        ("stable = 0", f"aliases.stable = 0: {NUMBER}"),
        ("stable = true", f"aliases.stable = true: {NUMBER}"),
        ("canary = 1.0", f"aliases.canary = 1.0: {NUMBER}"),
        ('canary = "1"', f"aliases.canary = 1: {NUMBER}"),
        ("canary = [1]", f"aliases.canary = [1]: {NUMBER}"),
    ],
)
def test_a_bad_alias_is_one_line(model: Path, text: str, line: str) -> None:
    """With its value and what is allowed."""
    (model / "model.toml").write_text(f"{TWO}[aliases]\n{text}\n")
    assert problems(model.parent) == [f"spread/model.toml: {line}"]


def test_aliases_that_are_no_table(model: Path) -> None:
    """One line, too."""
    (model / "model.toml").write_text(TWO.replace("[[inputs]]", "aliases = 5\n[[inputs]]", 1))
    assert problems(model.parent) == ["spread/model.toml: aliases = 5: must be a table"]


# -- one model alone ----------------------------------------------------------------------------


def test_one_manifest_is_read_as_with_all_the_others(model: Path) -> None:
    """Whatever state the others are in."""
    manifest = read(model)
    write(model.parent / "broken", "name =")
    assert load_manifest(model.parent, "spread") == manifest


@pytest.mark.parametrize("name", ["other", "", ".", "..", "../spread", "spread/1", "a\nb", ".git", "x" * 200])
def test_what_is_no_model_is_none(model: Path, name: str) -> None:
    """Nor is anything read that a name could lead to."""
    (model.parent / ".git").mkdir()
    assert load_manifest(model.parent, name) is None


def test_a_bad_manifest_says_all_that_is_wrong(model: Path) -> None:
    """In lines, as ever."""
    (model / "model.toml").write_text(f"{TWO}[aliases]\nstable = 3\n".replace('"fp32"', '"int4"'))
    with pytest.raises(RepositoryError) as raised:
        load_manifest(model.parent, "spread")
    assert [line.partition(": ")[2].partition(" = ")[0] for line in raised.value.problems] == [
        "precision",
        "aliases.stable",
    ]


def test_a_manifest_that_names_another_file_is_another_version(model: Path) -> None:
    """So that a file that was mended is loaded again."""
    mended = hashlib.sha256(b"mended").hexdigest()
    before = load_manifest(model.parent, "spread")
    (model / "2" / "model.pt").write_bytes(b"mended")
    (model / "model.toml").write_text(TWO.replace(SHA256[2], mended))
    after = load_manifest(model.parent, "spread")
    assert before is not None
    assert after is not None
    assert (before.find(1), before.find(2).sha256) == (after.find(1), hashlib.sha256(FILE % 2).hexdigest())
    assert after.latest == replace(before.latest, sha256=mended)


def test_a_folder_that_goes_while_it_is_read(model: Path) -> None:
    """Is a problem like others: whoever looks at the repository now and then looks again."""
    manifest = model / "model.toml"
    manifest.unlink()
    os.mkfifo(manifest)

    def remove() -> None:
        with manifest.open("w") as pipe:  # once somebody reads it
            shutil.rmtree(model)
            pipe.write(TWO)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    lines = problems(model.parent)
    thread.join()
    assert lines[-1] == "spread: must be a readable folder: No such file or directory"


# -- the default --------------------------------------------------------------------------------


def test_the_default_is_the_one_that_is_set_or_the_only_one(model: Path) -> None:
    """Where there are several, none is, unless it is set."""
    write(model.parent / "zeta", MANIFEST.replace("spread", "zeta"))
    both = load_repository(model.parent)
    only = replace(both, manifests=both.manifests[:1])
    assert with_default(only, None).default_model == "spread"
    assert with_default(both, None).default_model is None
    assert with_default(both, "zeta").default_model == "zeta"
    assert with_default(with_default(both, "zeta"), None).default_model is None
    for found in (only, both):
        with pytest.raises(SettingsError) as raised:
            with_default(found, "beta")
        names = ", ".join(manifest.name for manifest in found.manifests)
        assert [str(problem) for problem in raised.value.problems] == [
            f"models.default_model = beta: must be one of {names}"
        ]
