"""What a model repository must hold, and what is said about one that does not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler.priority import ALLOWED
from scheduler.signature import DataType, TensorSpec
from server.repository import (
    ChecksumMismatch,
    Manifest,
    ModelVersion,
    RepositoryError,
    SchedulerOverrides,
    load_repository,
    read_verified,
)
from server.settings import bundled_repository

FILE = b"the file of version %d"
SHA256 = {version: hashlib.sha256(FILE % version).hexdigest() for version in (1, 2, 10)}
MANIFEST = f"""\
name = "spread"
description = "a model"
format = "torchscript"
precision = "fp32"

[[inputs]]
name = "window"
data_type = "FP32"
shape = [50, 60]

[[inputs]]
name = "session"
data_type = "UINT8"
shape = []

[[outputs]]
name = "probs"
data_type = "FP16"
shape = [3]

[versions.1]
sha256 = "{SHA256[1]}"
"""

Change = Callable[[Path], object]


def write(folder: Path, manifest: str = MANIFEST, versions: tuple[int, ...] = (1,)) -> Path:
    """A model folder; every version has its own file."""
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "model.pt").write_bytes(FILE % version)
    (folder / "model.toml").write_text(manifest, encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of the one model of a good repository."""
    return write(tmp_path / "repository" / "spread")


def problems(repository: Path, **options: Any) -> list[str]:
    """The lines, with the repository's own path left out."""
    with pytest.raises(RepositoryError) as raised:
        load_repository(repository, **options)
    lines = str(raised.value).splitlines()
    assert lines == raised.value.problems
    return [line.replace(f"{repository}/", "") for line in lines]


def test_a_good_model(model: Path) -> None:
    """Everything that its manifest says, and the defaults of what it does not say."""
    repository = load_repository(model.parent)
    assert repository.default_model == "spread"
    assert repository.manifests == (
        Manifest(
            name="spread",
            description="a model",
            format="torchscript",
            precision="fp32",
            finite_inputs=True,
            finite_outputs=True,
            inputs=(
                TensorSpec("window", DataType.FP32, (50, 60)),
                TensorSpec("session", DataType.UINT8, ()),
            ),
            outputs=(TensorSpec("probs", DataType.FP16, (3,)),),
            versions=(ModelVersion(1, model / "1" / "model.pt", SHA256[1]),),
            scheduler=SchedulerOverrides(),
        ),
    )


def test_the_bundled_model_is_good() -> None:
    """And its file is the one that its manifest names."""
    [manifest] = load_repository(bundled_repository()).manifests
    assert manifest.name == "sp500_direction"
    signature = manifest.signature(manifest.latest.version)
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("window", (50, 60))]
    assert len(read_verified(manifest.latest)) == manifest.latest.path.stat().st_size


def test_models_are_ordered_by_name(model: Path) -> None:
    """So every process numbers their lanes alike; among several none is the default by itself."""
    for name in ("zeta", "Alpha"):
        write(model.parent / name, MANIFEST.replace("spread", name))
    repository = load_repository(model.parent)
    assert [manifest.name for manifest in repository.manifests] == ["Alpha", "spread", "zeta"]
    assert repository.default_model is None
    assert load_repository(model.parent, default_model="zeta").default_model == "zeta"


def test_versions_are_ordered_as_numbers(model: Path) -> None:
    """The latest is 10, not 2; each signature carries its own number."""
    shutil.rmtree(model)
    tables = "".join(f'[versions.{number}]\nsha256 = "{SHA256[number]}"\n' for number in (10, 2))
    [manifest] = load_repository(write(model, MANIFEST + tables, (10, 2, 1)).parent).manifests
    assert [version.version for version in manifest.versions] == [1, 2, 10]
    assert manifest.latest.version == 10
    assert manifest.signature(2).version == 2
    assert [read_verified(version) for version in manifest.versions] == [FILE % n for n in (1, 2, 10)]


def test_an_exported_program_has_its_own_file_name(model: Path) -> None:
    """As torch writes it."""
    (model / "1" / "model.pt").rename(model / "1" / "model.pt2")
    (model / "model.toml").write_text(MANIFEST.replace("torchscript", "exported_program"))
    [manifest] = load_repository(model.parent).manifests
    assert manifest.latest.path.name == "model.pt2"


@pytest.mark.parametrize(
    ("setting", "precision"), [("model", "bf16"), ("fp32", "fp32"), ("tf32", "tf32"), ("fp16", "fp16")]
)
def test_the_settings_have_the_last_word_on_precision(model: Path, setting: str, precision: str) -> None:
    """Unless they leave it to the model."""
    (model / "model.toml").write_text(MANIFEST.replace('"fp32"', '"bf16"'))
    [manifest] = load_repository(model.parent).manifests
    assert manifest.resolve_precision(setting) == precision


def test_what_is_no_model_is_left_alone(model: Path) -> None:
    """Files, hidden folders without a manifest, and folders in a model that are no version."""
    (model.parent / "README.md").touch()
    (model.parent / ".git").mkdir()
    (model / "notes").mkdir()
    assert len(load_repository(model.parent).manifests) == 1


def test_a_link_inside_the_repository_is_followed(model: Path) -> None:
    """Several versions may share a file."""
    (model / "2").symlink_to("1")
    with (model / "model.toml").open("a") as file:
        file.write(f'[versions.2]\nsha256 = "{SHA256[1]}"\n')
    [manifest] = load_repository(model.parent).manifests
    assert read_verified(manifest.latest) == FILE % 1


def test_the_repository_itself_may_be_a_link(model: Path, tmp_path: Path) -> None:
    """Mounted volumes often are."""
    (tmp_path / "link").symlink_to(model.parent)
    [manifest] = load_repository(tmp_path / "link").manifests
    assert read_verified(manifest.latest) == FILE % 1


def test_a_relative_repository(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives absolute paths, which mean the same in every process."""
    monkeypatch.chdir(model.parent.parent)
    [manifest] = load_repository(Path("repository")).manifests
    assert manifest.latest.path == model / "1" / "model.pt"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", (1, 3, 64)),
        ("max_batch_size = 6", (1, 2, 4, 6)),
        ("max_batch_size = 128", (1, 2, 4, 8, 16, 32, 64, 128)),
        ("buckets = [5, 7]", (5, 7)),
        ("buckets = [5, 7]\nmax_batch_size = 7", (5, 7)),
    ],
)
def test_a_model_may_have_its_own_batch_sizes(model: Path, text: str, sizes: tuple[int, ...]) -> None:
    """Else it has those of the settings."""
    (model / "model.toml").write_text(f"{MANIFEST}[scheduler]\n{text}")
    [manifest] = load_repository(model.parent).manifests
    assert manifest.scheduler.resolve_buckets((1, 3, 64)) == sizes


def test_a_model_may_have_its_own_budget_quantum_and_limit(model: Path) -> None:
    """Whole milliseconds, too; what is not there is none."""
    [manifest] = load_repository(model.parent).manifests
    assert manifest.scheduler == SchedulerOverrides()
    own = "latency_budget_ms = 3\nbulk_quantum_ms = 0.5\nqueue_limit = 7"
    (model / "model.toml").write_text(f"{MANIFEST}[scheduler]\n{own}")
    [manifest] = load_repository(model.parent).manifests
    assert manifest.scheduler == SchedulerOverrides(latency_budget_ms=3, bulk_quantum_ms=0.5, queue_limit=7)


@pytest.mark.parametrize("priority", ['"high"', "1", '"real_time_trading"'])
def test_a_default_priority_by_any_of_its_names(model: Path, priority: str) -> None:
    """Ends as the one name, which is text."""
    (model / "model.toml").write_text(f"{MANIFEST}[scheduler]\ndefault_priority = {priority}")
    [manifest] = load_repository(model.parent).manifests
    assert manifest.scheduler.default_priority == "real_time_trading"


TYPES = "BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, FP32, FP64"
NAMES = "must be letters, digits, _ . or -, the first no . or -"
TENSOR_KEYS = "name, data_type, shape, max_shape, min_shape"
SIZES = "must be a list of sizes from 1 to 2147483647, or -1 for a dynamic one, without the batch"
HEX = "must be 64 lower-case hexadecimal digits"
TOP_KEYS = (
    "name, description, format, precision, finite_inputs, finite_outputs, inputs, outputs, "
    "versions, aliases, scheduler"
)

# What is replaced in the good manifest, by what, and the line about it.
BAD_MANIFESTS = [
    ('name = "spread"', 'name = "other"', "name = other: must be the folder's, spread"),
    ('name = "spread"', "", "name = unset: must be the folder's, spread"),
    ('"a model"', "5", "description = 5: must be text"),
    ("torchscript", "pickle", "format = pickle: must be one of torchscript, exported_program"),
    ('"fp32"', '"int4"', "precision = int4: must be one of fp32, tf32, fp16, bf16, auto"),
    ('"fp32"', '"fp32"\nfinite_inputs = 1', "finite_inputs = 1: must be true or false"),
    ('"fp32"', '"fp32"\nprecison = 1', f"precison = 1: is no key, allowed are {TOP_KEYS}"),
    ('"fp32"', '"fp32"\n"a\\nb" = 1', f'"a\\nb" = 1: is no key, allowed are {TOP_KEYS}'),
    (
        "[[outputs]]",
        "[outputs]",
        'outputs = {"name": "probs", "data_type": "FP16", "shape": [3]}: must be at least one [[...]] table',
    ),
    ('name = "session"', 'name = "window"', "inputs[1].name = window: must differ from the others"),
    ('name = "session"', 'name = "a/b"', f"inputs[1].name = a/b: {NAMES}"),
    ('name = "session"', 'name = ".a"', f"inputs[1].name = .a: {NAMES}"),
    ('name = "session"', "name = 1", f"inputs[1].name = 1: {NAMES}"),
    ('"UINT8"', '"UINT16"', f"inputs[1].data_type = UINT16: must be one of {TYPES}"),
    ('"UINT8"', '["FP32"]', f'inputs[1].data_type = ["FP32"]: must be one of {TYPES}'),
    ('"UINT8"', '"UINT8"\ndtype = 1', f"inputs[1].dtype = 1: is no key, allowed are {TENSOR_KEYS}"),
    ("[50, 60]", "[0, 60]", f"inputs[0].shape = [0, 60]: {SIZES}"),
    ("[50, 60]", "[-2, 60]", f"inputs[0].shape = [-2, 60]: {SIZES}"),
    ("[50, 60]", "[50.0, 60]", f"inputs[0].shape = [50.0, 60]: {SIZES}"),
    ("[50, 60]", "[true]", f"inputs[0].shape = [true]: {SIZES}"),
    ("[50, 60]", "3000", f"inputs[0].shape = 3000: {SIZES}"),
    ("[versions.1]", "[versions.01]\n[versions.1]", "versions = 01: must be 1, 2, 3, ..."),
    (SHA256[1], SHA256[1].upper(), f"versions.1.sha256 = {SHA256[1].upper()}: {HEX}"),
    (SHA256[1], "", f'versions.1.sha256 = "": {HEX}'),
    ("sha256 =", "sha1 = 1\nsha256 =", "versions.1.sha1 = 1: is no key, allowed are sha256"),
]
SIXTY_FIVE = str(list(range(1, 66)))
BAD_OVERRIDES = [
    ("max_batch_size = 0", ": must be 1 to 4096"),
    ("max_batch_size = true", ": must be 1 to 4096"),
    ("buckets = []", ": must be a list of sizes from 1 to 4096"),
    ("buckets = [4, 2]", ": must strictly ascend"),
    ("max_batch_size = 8\nbuckets = [2, 4]", ": must end with max_batch_size, 8"),
    ("latency_budget_ms = 0", ": must be more than 0, at most 60000"),
    ("latency_budget_ms = true", ": must be more than 0, at most 60000"),
    ("latency_budget_ms = inf", "latency_budget_ms = Infinity: must be more than 0, at most 60000"),
    ("latency_budget_ms = nan", "latency_budget_ms = NaN: must be more than 0, at most 60000"),
    ("default_priority = 6", f": must be {ALLOWED}"),
    (f"buckets = {SIXTY_FIVE}", f"buckets = {SIXTY_FIVE[:80]}...: must be at most 64 sizes"),
    ("bulk_quantum_ms = 0", ": must be more than 0, at most 60000"),
    ("bulk_quantum_ms = 60001", ": must be more than 0, at most 60000"),
    ("bulk_quantum_ms = '1'", "bulk_quantum_ms = 1: must be more than 0, at most 60000"),
    ("queue_limit = 0", ": must be 1 to 1073741824"),
    ("queue_limit = true", ": must be 1 to 1073741824"),
    ("queue_limit = 5.0", ": must be 1 to 1073741824"),
    (
        "slots = 1",
        ": is no key, allowed are max_batch_size, buckets, latency_budget_ms, bulk_quantum_ms, queue_limit, "
        "default_priority",
    ),
]


@pytest.mark.parametrize(("old", "new", "line"), BAD_MANIFESTS)
def test_a_bad_manifest_is_one_line(model: Path, old: str, new: str, line: str) -> None:
    """With its file, the key, the value and what is allowed."""
    assert old in MANIFEST
    (model / "model.toml").write_text(MANIFEST.replace(old, new))
    assert problems(model.parent) == [f"spread/model.toml: {line}"]


@pytest.mark.parametrize(("text", "line"), BAD_OVERRIDES)
def test_a_bad_override_is_one_line(model: Path, text: str, line: str) -> None:
    """Likewise."""
    (model / "model.toml").write_text(f"{MANIFEST}[scheduler]\n{text}")
    line = text.splitlines()[-1] + line if line.startswith(":") else line
    assert problems(model.parent) == [f"spread/model.toml: scheduler.{line}"]


@pytest.mark.parametrize("missing", ["inputs", "outputs", "versions"])
def test_a_manifest_without_a_needed_table(model: Path, missing: str) -> None:
    """Is told what to add."""
    tables = MANIFEST.split("\n[")
    kept = [table for table in tables if not table.lstrip("[").startswith(missing)]
    (model / "model.toml").write_text("\n[".join(kept))
    form = "[versions.<number>]" if missing == "versions" else "[[...]]"
    assert problems(model.parent)[0] == (
        f"spread/model.toml: {missing} = unset: must be at least one {form} table"
    )


@pytest.mark.parametrize(("shape", "accepted"), [("[268435456]", True), ("[268435457]", False)])
def test_a_row_must_fit_the_arena(model: Path, shape: str, accepted: bool) -> None:
    """1 GiB of all inputs together, padding included."""
    only = MANIFEST.replace("[50, 60]", shape).replace(
        '[[inputs]]\nname = "session"\ndata_type = "UINT8"\nshape = []\n', ""
    )
    (model / "model.toml").write_text(only)
    if accepted:
        assert load_repository(model.parent).manifests[0].signature(1).input_row_bytes == 1 << 30
    else:
        [line] = problems(model.parent)
        assert line.startswith("spread/model.toml: inputs take ")
        assert line.endswith(" bytes per item: must be at most 1073741824")


def outside(model: Path, name: str) -> Path:
    """Moves a part of the model out of the repository and leaves a link."""
    target = model.parent.parent / "outside"
    (model / name).rename(target)
    (model / name).symlink_to(target)
    return target


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


BAD_FOLDERS: list[tuple[Change, str]] = [
    (
        lambda model: (model / "model.toml").unlink(),
        "spread/model.toml: must be a readable file: No such file or directory",
    ),
    (
        lambda model: (model / "model.toml").write_text("name ="),
        "spread/model.toml: must be TOML: Invalid value (at end of document)",
    ),
    (
        lambda model: (model / "model.toml").write_bytes(b"\xff"),
        "spread/model.toml: must be TOML: "
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    (lambda model: shutil.rmtree(model / "1"), "spread/1/model.pt: is missing, model.toml lists version 1"),
    (
        lambda model: (model / "1" / "model.pt").unlink(),
        "spread/1/model.pt: is missing, model.toml lists version 1",
    ),
    (lambda model: (model / "2").mkdir(), "spread/2: has no sha256 under [versions.2] in model.toml"),
    (
        lambda model: outside(model, "model.toml"),
        "spread/model.toml: leads out of the repository, to {outside}",
    ),
    (
        lambda model: outside(model, "1"),
        "spread/1/model.pt: leads out of the repository, to {outside}/model.pt",
    ),
    (
        lambda model: outside(model, "1/model.pt"),
        "spread/1/model.pt: leads out of the repository, to {outside}",
    ),
    (
        lambda model: outside(model, ""),
        "spread/model.toml: leads out of the repository, to {outside}/model.toml",
    ),
    (
        lambda model: link_to_itself(model / "1" / "model.pt"),
        "spread/1/model.pt: is missing, model.toml lists version 1",
    ),
    (lambda model: write(model.parent / "a b"), f'{{repository}}: model folder "a b": {NAMES}'),
    (lambda model: write(model.parent / ".hidden"), f"{{repository}}: model folder .hidden: {NAMES}"),
    (lambda model: write(model.parent / "a\nb"), f'{{repository}}: model folder "a\\nb": {NAMES}'),
    (
        lambda model: (model.parent / "empty").mkdir(),
        "empty/model.toml: must be a readable file: No such file or directory",
    ),
]


@pytest.mark.parametrize(("change", "line"), BAD_FOLDERS)
def test_a_bad_folder_is_one_line(model: Path, change: Change, line: str) -> None:
    """With its path and what it must be."""
    change(model)
    wanted = line.format(repository=model.parent, outside=model.parent.parent / "outside")
    assert problems(model.parent) == [wanted]


def test_all_problems_are_told_at_once(model: Path) -> None:
    """Of every model, in the order of their names."""
    (model / "model.toml").write_text(
        MANIFEST.replace("torchscript", "onnx").replace("[50, 60]", "[0]").replace('"UINT8"', '"U8"')
    )
    write(model.parent / "zeta")
    assert [line.partition(" = ")[0] for line in problems(model.parent)] == [
        "spread/model.toml: format",
        "spread/model.toml: inputs[0].shape",
        "spread/model.toml: inputs[1].data_type",
        "zeta/model.toml: name",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing", "must be a readable folder: No such file or directory"),
        ("model.toml", "must be a readable folder: Not a directory"),
        ("1", "holds no model; needed is <model name>/model.toml"),
    ],
)
def test_no_repository(model: Path, name: str, line: str) -> None:
    """Missing, a file, or without a model in it."""
    assert problems(model / name) == [f"{model / name}: {line}"]


def test_an_unknown_default_model(model: Path) -> None:
    """Is told which there are."""
    write(model.parent / "zeta", MANIFEST.replace("spread", "zeta"))
    [line] = problems(model.parent, default_model="x")
    assert line == "models.default_model = x: must be one of spread, zeta"


def test_more_models_than_the_arena_has_lanes_for(model: Path) -> None:
    """Are refused here, not when the arena is made."""
    for number in range(63):
        write(model.parent / f"m{number}", MANIFEST.replace("spread", f"m{number}"))
    assert len(load_repository(model.parent).manifests) == 64
    write(model.parent / "last", MANIFEST.replace("spread", "last"))
    assert problems(model.parent) == [f"{model.parent}: holds 65 models, allowed are 64"]


def test_a_changed_file_is_not_read(model: Path) -> None:
    """The error names the file and both digests."""
    [manifest] = load_repository(model.parent).manifests
    manifest.latest.path.write_bytes(b"changed")
    with pytest.raises(ChecksumMismatch) as raised:
        read_verified(manifest.latest)
    assert str(raised.value) == (
        f"{model / '1' / 'model.pt'}: sha256 is {hashlib.sha256(b'changed').hexdigest()}, "
        f"the manifest says {SHA256[1]}"
    )
    assert isinstance(raised.value, RepositoryError)


def test_the_bytes_that_were_checked_are_those_returned(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is swapped after the check changes nothing, as nobody opens it again."""
    [manifest] = load_repository(model.parent).manifests
    real = hashlib.sha256

    def sha256_then_swap(content: bytes) -> Any:
        manifest.latest.path.write_bytes(b"swapped")
        return real(content)

    monkeypatch.setattr("server.repository.hashlib.sha256", sha256_then_swap)
    assert read_verified(manifest.latest) == FILE % 1
    assert manifest.latest.path.read_bytes() == b"swapped"


def test_a_file_that_has_gone(model: Path) -> None:
    """Is an error of the repository."""
    [manifest] = load_repository(model.parent).manifests
    manifest.latest.path.unlink()
    with pytest.raises(RepositoryError, match=r"1/model\.pt: cannot be read: No such file or directory"):
        read_verified(manifest.latest)


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "[scheduler]\nmax_batch_size = 8\nbuckets = [2, 8]\n"
        "latency_budget_ms = 1.5\nbulk_quantum_ms = 2.5\nqueue_limit = 9\ndefault_priority = 'low'\n",
    ],
)
def test_a_child_gets_the_same_manifest(model: Path, overrides: str) -> None:
    """As plain JSON."""
    (model / "model.toml").write_text(
        MANIFEST.replace('"fp32"', '"bf16"\nfinite_inputs = false\nfinite_outputs = false').replace(
            "a model", "ü \\u0007"
        )
        + overrides
    )
    [manifest] = load_repository(model.parent).manifests
    assert not manifest.finite_inputs
    assert not manifest.finite_outputs
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(manifest.to_json())["inputs"][0] == ["window", "FP32", [50, 60]]
