"""Where a setting comes from, and what is said about a bad one."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from scheduler.priority import DEFAULT_LIMITS, ClassLimits, PriorityClass
from server.configuration import load_configuration, load_settings
from server.layers import DEFAULT_PROFILE, PROFILES
from server.problems import SettingsError
from server.settings import Settings, bundled_repository, powers_of_two

MS = 1_000_000
CONTRACT = {
    "server": "host grpc_port http_port admin_port frontends max_message_bytes max_in_flight_per_stream "
    "max_concurrent_rpcs max_metadata_bytes max_streams_per_connection max_cancels_per_s "
    "max_connection_idle_s max_connection_age_s handshake_timeout_s min_ping_interval_s keepalive_s "
    "drain_grace_s",
    "tls": "cert key client_ca",
    "auth": "tokens_file allow_clear_text",
    "models": "repository default_model poll_s max_loaded max_row_bytes",
    "scheduler": "max_batch_size buckets adaptive latency_budget_ms bulk_quantum_ms reserved_instances "
    "spin_us slots_per_frontend default_class classes early_refusal",
    "executor": "device instances precision cpu_backend cuda_graphs cuda_spin memory_fraction cpu_threads "
    "cpu_affinity gpu_utilization_high gpu_utilization_low memory_utilization_high host_load_high "
    "stall_timeout_s prepare_timeout_s",
    "cache": "enabled entries ttl_s redis_url",
    "calendar": "exchange lead_s",
    "telemetry": "otlp_endpoint trace_sample_ratio log_format log_level",
    "slo": "p50_ms p95_ms p99_ms max_ms min_rps target_rps max_error_ratio",
}

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads from the text of a file, the environment and the command line, none of them this machine's."""

    def load(
        text: str = "",
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> Settings:
        file = tmp_path / "tickring.toml"
        file.write_text(text, encoding="utf-8")
        return load_settings(overrides or {}, config=file, profile=profile, environ=environ or {})

    return load


def ports(settings: Settings) -> list[int]:
    return [settings.server.grpc_port, settings.server.http_port, settings.server.admin_port]


def problems(load: Load, *layers: Any, **more: Any) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(*layers, **more)
    assert str(raised.value).splitlines() == [str(problem) for problem in raised.value.problems]
    return str(raised.value).splitlines()


def test_the_settings_are_those_of_the_contract() -> None:
    """Table by table, no more and no less."""
    found = {table: set(values) for table, values in Settings().model_dump().items()}
    assert found == {table: set(names.split()) for table, names in CONTRACT.items()}
    classes = Settings().model_dump()["scheduler"]["classes"]
    assert list(classes) == [member.label for member in PriorityClass]
    assert " ".join(classes["background_tasks"]) == "slack_ms max_wait_ms queue_limit default_timeout_ms"


def test_defaults(load: Load) -> None:
    """Those that others rely on: ports, host, service levels."""
    settings = load()
    server, slo = settings.server, settings.slo
    assert server.host == "127.0.0.1"
    assert ports(settings) == [8001, 8002, 8003]
    assert server.target(server.grpc_port) == "127.0.0.1:8001"
    assert server.frontends == settings.executor.device == settings.scheduler.spin_us == "auto"
    assert (slo.p50_ms, slo.p95_ms, slo.p99_ms, slo.max_ms) == (50, 80, 100, 200)
    assert (slo.min_rps, slo.target_rps, slo.max_error_ratio) == (50, 200, 0.01)
    assert settings.scheduler.default_class == "batch_processing"
    assert settings.class_limits == DEFAULT_LIMITS


def test_settings_are_frozen() -> None:
    """Nobody changes them behind the others' backs."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.grpc_port = 9000


def test_each_layer_wins_over_those_below_it(load: Load) -> None:
    """Adding one layer at a time, the same setting follows the newest."""
    assert Settings().scheduler.latency_budget_ms == 10.0
    layers: dict[str, Any] = {"profile": "off_hours"}
    found = [load(**layers).scheduler.latency_budget_ms]
    for name, layer in (
        ("text", "[scheduler]\nlatency_budget_ms = 31"),
        ("environ", {"TICKRING_SCHEDULER__LATENCY_BUDGET_MS": "32"}),
        ("overrides", {"scheduler": {"latency_budget_ms": "33"}}),
    ):
        layers[name] = layer
        found.append(load(**layers).scheduler.latency_budget_ms)
    assert found == [20, 31, 32, 33]


def test_layers_merge_table_by_table(load: Load) -> None:
    """A layer that sets one value of a table leaves the others as they were."""
    settings = load(
        "[server]\nhttp_port = 9002\n[scheduler.classes.background_tasks]\nqueue_limit = 7",
        {
            "TICKRING_SERVER__ADMIN_PORT": "9003",
            "TICKRING_SCHEDULER__CLASSES__BACKGROUND_TASKS__SLACK_MS": "3",
        },
        {"server": {"grpc_port": "9001"}},
        "off_hours",
    )
    assert ports(settings) == [9001, 9002, 9003]
    assert settings.class_limits[-1] == ClassLimits(
        slack_ns=3 * MS, max_wait_ns=100 * MS, queue_limit=7, default_timeout_ns=60_000 * MS
    )


@pytest.mark.parametrize(
    ("name", "largest", "adaptive"),
    [("market_hours", 64, True), ("off_hours", 128, True), ("stress_test", 256, False)],
)
def test_profiles(load: Load, name: str, largest: int, adaptive: bool) -> None:
    """Every profile is there and valid, and sets what the contract says."""
    scheduler = load(profile=name).scheduler
    assert (scheduler.max_batch_size, scheduler.adaptive) == (largest, adaptive)
    assert scheduler.resolved_buckets[-1] == largest


def test_off_hours_waits_longer() -> None:
    """Except for real-time, which never waits for company."""
    day, night = (
        load_settings({}, profile=name, environ={}).class_limits for name in ("market_hours", "off_hours")
    )
    longer = [later.max_wait_ns > now.max_wait_ns for now, later in zip(day, night, strict=True)]
    assert longer == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("auto", "auto"),
        ("cuda", "cuda"),
        ("cuda:007", "cuda:7"),
        ("cpu, cpu", "cpu,cpu"),
        ("cuda:1,cpu,cuda:0", "cuda:1,cpu,cuda:0"),
        (",".join(["cpu"] * 16), ",".join(["cpu"] * 16)),
    ],
)
def test_devices_are_one_word_or_a_list(load: Load, text: str, kept: str) -> None:
    """In the order given, in their plainest form; the CPU as often as it likes."""
    assert load(f"executor.device = '{text}'").executor.device == kept


def test_no_profile_is_the_default_one() -> None:
    """And that one is listed."""
    assert DEFAULT_PROFILE == "market_hours"
    assert DEFAULT_PROFILE in PROFILES
    assert load_settings({}, environ={}) == load_settings({}, profile="market_hours", environ={})


def test_a_default_that_no_longer_fits_is_a_problem() -> None:
    """Also where settings are built directly, without layers."""
    with pytest.raises(ValueError, match="must differ from grpc_port"):
        Settings.model_validate({"server": {"grpc_port": 8003}})


CLASSES = ", ".join(member.label for member in PriorityClass)
DEVICES = "must be auto, cpu, cuda, cuda:N or a list of cpu and cuda:N"
SIXTY_FIVE = str(list(range(1, 66)))
# A line of a file, and what is said of it; from a colon on where the line itself is repeated.
BAD_FILES = {
    "server.grpc_port = 99999": ": must be at most 65535",
    "server.grpc_port = -1": ": must be at least 0",
    "server.grpc_port = 'http'": "server.grpc_port = http: must be a whole number",
    "server.grpc_port = 80.5": ": must be a whole number",
    "server.grpc_port = true": ": must be a number",
    "server.http_port = 8001": ": must differ from grpc_port",
    "server.admin_port = 8002": ": must differ from http_port",
    "server.frontends = 0": ": must be auto or 1 to 64",
    "server.frontends = 65": ": must be auto or 1 to 64",
    "server.frontends = true": ": must be auto or 1 to 64",
    'server.frontends = "all of them"': ": must be auto or 1 to 64",
    'server.host = ""': ": must not be empty",
    "server.host = 1": ": must be text",
    "server.grpc_prot = 1": f": is no setting, allowed are {CONTRACT['server'].replace(' ', ', ')}",
    "sever.host = 1": f'sever = {{"host": 1}}: is no setting, allowed are {", ".join(CONTRACT)}',
    "server = 8001": ": must be a table",
    "tls.cert = 'c.pem'": "tls.key = unset: must be set together with tls.cert",
    "tls.key = 'k.pem'": "tls.key = k.pem: must be set together with tls.cert",
    "tls.client_ca = 'ca.pem'": "tls.client_ca = ca.pem: must be set together with tls.cert",
    'models.repository = ""': ": must not be empty",
    "scheduler.max_batch_size = 0": ": must be at least 1",
    "scheduler.buckets = [1, 8, 8, 64]": ": must strictly ascend",
    "scheduler.buckets = [1, 32]": ": must end with max_batch_size, 64",
    "scheduler.buckets = [1, 'x', 64]": "scheduler.buckets[1] = x: must be a whole number",
    "scheduler.buckets = [0, 64]": "scheduler.buckets[0] = 0: must be at least 1",
    f"scheduler.max_batch_size = 65\nscheduler.buckets = {SIXTY_FIVE}": (
        f"scheduler.buckets = {SIXTY_FIVE[:80]}...: must be at most 64 sizes"
    ),
    "scheduler.buckets = 64": ": must be a list, such as [1, 2]",
    "scheduler.slots_per_frontend = 63": ": must be at least max_batch_size, 64",
    "scheduler.spin_us = -1": ": must be auto or 0 to 100000",
    "scheduler.adaptive = 'perhaps'": "scheduler.adaptive = perhaps: must be true or false",
    "scheduler.latency_budget_ms = 0": ": must be more than 0",
    "scheduler.latency_budget_ms = nan": "scheduler.latency_budget_ms = NaN: must be finite",
    'scheduler.default_class = ""': f": must be {CLASSES}, high, normal, low or 1 to 5",
    "scheduler.classes.x = 1": f": is no setting, allowed are {CLASSES}",
    "scheduler.classes.real_time_trading.queue_limit = 0": ": must be at least 1",
    "executor.device = 'gpu'": f"executor.device = gpu: {DEVICES}",
    "executor.device = 'cpu,cuda,tpu'": f'executor.device = "cpu,cuda,tpu": {DEVICES}, not "cuda, tpu"',
    "executor.device = 'cpu,'": f'executor.device = "cpu,": {DEVICES}, not ""',
    "executor.device = 'cuda:-1'": f"executor.device = cuda:-1: {DEVICES}",
    "executor.device = 'cuda:1,cpu,cuda:01,cpu'": (
        'executor.device = "cuda:1,cpu,cuda:01,cpu": must name each GPU once, not cuda:1 twice'
    ),
    f"executor.device = '{','.join(['cpu'] * 17)}'": (
        f'executor.device = "{",".join(["cpu"] * 17)}": must name at most 16 devices'
    ),
    "executor.precision = 1": ": must be 'model', 'auto', 'fp32', 'tf32', 'fp16' or 'bf16'",
    "executor.memory_fraction = 1.5": ": must be at most 1",
    "executor.gpu_utilization_high = 0.5": (
        "executor.gpu_utilization_low = 0.7: must be at most gpu_utilization_high, 0.5"
    ),
    "executor.host_load_high = 0": ": must be more than 0",
    "executor.stall_timeout_s = 0.4": ": must be at least 0.5",
    "executor.prepare_timeout_s = 0": ": must be at least 1",
    "models.poll_s = 86401": ": must be at most 86400",
    "models.max_loaded = 0": ": must be at least 1",
    "models.max_row_bytes = -1": ": must be at least 0",
    'calendar.exchange = ""': ": must not be empty",
    "calendar.lead_s = 3601": ": must be at most 3600",
    "cache.ttl_s = inf": "cache.ttl_s = Infinity: must be finite",
    "telemetry.log_level = 5": ": must be 'debug', 'info', 'warning' or 'error'",
}


@pytest.mark.parametrize(("text", "line"), BAD_FILES.items())
def test_a_bad_setting_is_one_line(load: Load, text: str, line: str) -> None:
    """With its path, its value and what is allowed."""
    assert problems(load, text) == [text + line if line.startswith(":") else line]


def test_a_problem_is_one_line(load: Load) -> None:
    """Whatever bytes the key and the value hold, and however long they are."""
    [line] = problems(load, 'server."c\\nd" = "e\\nf"')
    assert line.startswith('server."c\\nd" = "e\\nf": is no setting')
    [line] = problems(load, f"telemetry.log_level = '{'x' * 5000}'")
    assert line.startswith(f"telemetry.log_level = {'x' * 80}...: must be")


def test_all_problems_are_told_at_once(load: Load) -> None:
    """From every layer, first what is wrong with their form, in the order of the layers."""
    found = problems(
        load,
        "slo = 1\n[executor]\ndevice = 'gpu'",
        {"TICKRING_CACHE__TTL_S": "0", "TICKRING_CACHE__TTL": "5"},
        {"server": {"grpc_port": "x"}},
    )
    names = " ".join(line.partition(" = ")[0] for line in found)
    assert names == "slo TICKRING_CACHE__TTL server.grpc_port executor.device cache.ttl_s"


def test_a_bad_table_is_told_though_a_later_layer_hides_it(load: Load) -> None:
    """Otherwise the file's value would be lost without a word."""
    assert problems(load, "server = 5", {"TICKRING_SERVER__GRPC_PORT": "9001"}) == [
        "server = 5: must be a table"
    ]


def test_port_zero_may_be_given_twice(load: Load) -> None:
    """It means any free port."""
    assert ports(load("[server]\ngrpc_port = 0\nhttp_port = 0\nadmin_port = 0")) == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        (None, "must be a readable file: No such file or directory"),
        (b"[server", "must be TOML: Expected ']' at the end of a table"),
        (b"\xff", "must be TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"x = " + b"9" * 9999, "must be TOML: Exceeds the limit"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, allowed: str) -> None:
    """Is a problem, not an empty layer."""
    path = tmp_path / "c"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load_settings({}, config=path, environ={})
    [problem] = raised.value.problems
    assert (problem.path, problem.value) == ("config", str(path))
    assert problem.allowed.startswith(allowed)


def test_an_unknown_profile(load: Load) -> None:
    """Neither a file of another folder nor a silent default."""
    assert problems(load, profile="../settings") == [
        "profile = ../settings: must be one of market_hours, off_hours, stress_test, auto"
    ]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("TICKRING_SERVER__GRPC_PROT", "did you mean TICKRING_SERVER__GRPC_PORT?"),
        ("TICKRING_SERVER_GRPC_PORT", "did you mean TICKRING_SERVER__GRPC_PORT?"),
        ("TICKRING_server__grpc_port", "did you mean TICKRING_SERVER__GRPC_PORT?"),
        ("TICKRING_X", "allowed is TICKRING_<TABLE>__<SETTING>"),
        ("TICKRING_SERVER", "allowed is TICKRING_<TABLE>__<SETTING>"),
    ],
)
def test_a_variable_with_a_typo_is_a_problem(load: Load, name: str, allowed: str) -> None:
    """It would else be ignored, and the default used."""
    assert problems(load, environ={name: "1"}) == [f"{name} = 1: is no setting, {allowed}"]


def test_other_variables_are_left_alone(load: Load) -> None:
    """The client's, and what Kubernetes sets beside a Service of that name."""
    text = """TARGET=localhost:8001 TOKEN=t SERVICE_HOST=10.0.0.1 SERVICE_PORT=8001 SERVICE_PORT_GRPC=8001
        PORT=tcp://10.0.0.1:8001 PORT_8001_TCP=tcp://10.0.0.1:8001 PORT_8001_TCP_PROTO=tcp
        PORT_8001_TCP_PORT=8001 PORT_8001_TCP_ADDR=10.0.0.1 SERVER_SERVICE_HOST=10.0.0.1
        SERVER_GRPC_PORT=tcp://10.0.0.1:8001"""
    environ = {f"TICKRING_{name}": value for name, _, value in (pair.partition("=") for pair in text.split())}
    assert len(environ) == 12
    environ |= {"GRPC_PORT": "1", "XTICKRING_X": "1"}
    assert load(environ=environ) == load()


def test_a_list_in_the_environment(load: Load) -> None:
    """Is written as in the file."""
    environ = {"TICKRING_SCHEDULER__BUCKETS": "[1, 16, 64]", "TICKRING_EXECUTOR__CPU_AFFINITY": "[]"}
    assert load(environ=environ).scheduler.resolved_buckets == (1, 16, 64)
    assert problems(load, environ={"TICKRING_SCHEDULER__BUCKETS": "[1,"}) == [
        'scheduler.buckets = "[1,": must be a list, such as [1, 2]'
    ]


@pytest.mark.parametrize(
    "sizes", [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64, 65)]
)
def test_no_buckets_are_powers_of_two(load: Load, sizes: tuple[int, ...]) -> None:
    """Up to the largest batch, which is one even when it is no power."""
    assert powers_of_two(sizes[-1]) == sizes
    assert load(f"[scheduler]\nmax_batch_size = {sizes[-1]}").scheduler.resolved_buckets == sizes


def test_class_limits_are_in_class_order_and_nanoseconds(load: Load) -> None:
    """Rounded, not cut: 1.001 ms is not 1,000,999 ns."""
    text = "".join(
        f"scheduler.classes.{member.label}.slack_ms = {int(member)}.001\n" for member in PriorityClass
    )
    slacks_ns = [limits.slack_ns for limits in load(text).class_limits]
    assert slacks_ns == [1_001_000, 2_001_000, 3_001_000, 4_001_000, 5_001_000]


def test_other_classes_in_the_same_settings(load: Load) -> None:
    """As one process tells them to another; what was read before has changed nothing."""
    settings = load("scheduler.max_batch_size = 8")
    assert settings.class_limits == DEFAULT_LIMITS
    wanted = load("scheduler.classes.market_data_update.slack_ms = 7").scheduler.classes
    changed = settings.with_classes(json.loads(json.dumps(wanted.model_dump())))
    assert changed.scheduler.classes == wanted
    assert [limits.slack_ns // MS for limits in changed.class_limits] == [0, 7, 50, 500, 2000]
    assert changed.scheduler.resolved_buckets == (1, 2, 4, 8)
    assert settings.class_limits == DEFAULT_LIMITS
    assert changed.with_classes(settings.scheduler.classes.model_dump()) == settings
    with pytest.raises(ValueError, match="slack_ms"):
        settings.with_classes({"market_data_update": {"slack_ms": -1}})


@pytest.mark.parametrize("alias", ["low", "5", "Background_Tasks"])
def test_the_default_class_by_any_of_its_names(load: Load, alias: str) -> None:
    """Ends as the one name."""
    assert load(f'[scheduler]\ndefault_class = "{alias}"').scheduler.default_class == "background_tasks"


EVERYTHING = """
[server]
host = "::1"
grpc_port = 0
frontends = 3
drain_grace_s = 0.25
[tls]
cert = "a \\"quoted\\" \\\\ path/ü😀\\u0007\\u007f\\n.pem"
key = "k.pem"
[models]
repository = "models here"
default_model = "m"
[scheduler]
buckets = [1, 5, 64]
spin_us = 0
latency_budget_ms = 1e-7
adaptive = false
"""


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("text", ["", EVERYTHING])
def test_what_is_printed_loads_back(load: Load, tmp_path: Path, text: str, profile: str) -> None:
    """With its profile; and under any other too, as every value is written out."""
    largest = load(profile=profile).scheduler.max_batch_size
    settings = load(text.replace("[1, 5, 64]", f"[1, 5, {largest}]"), profile=profile)
    printed = load_configuration({}, config=tmp_path / "tickring.toml", profile=profile, environ={}).to_toml()
    tables = tomllib.loads(printed)
    assert load(printed, profile="stress_test") == load(printed) == settings
    assert tables["profile"] == profile
    assert set(tables["scheduler"]["classes"]) == {member.label for member in PriorityClass}


def test_a_child_gets_the_same_settings(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, and it does not look at its own environment."""
    settings = load(EVERYTHING)
    monkeypatch.setenv("TICKRING_SERVER__GRPC_PORT", "9")
    child = Settings.model_validate_json(settings.model_dump_json())
    assert child == settings
    assert child.server.target(1) == "[::1]:1"
    assert child.scheduler.resolved_buckets == (1, 5, 64)


def test_a_checkout_brings_its_models() -> None:
    """The folder of the bundled model."""
    assert (bundled_repository() / "sp500_direction" / "model.toml").is_file()


def test_an_installation_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a checkout; a folder `models` beside an installed package is somebody else's."""
    package = tmp_path / "server"
    (tmp_path / "models").mkdir()
    package.mkdir()
    monkeypatch.setattr("server.settings.resources.files", lambda name: tmp_path / name)
    with pytest.raises(SettingsError) as raised:
        bundled_repository()
    assert str(raised.value) == "models.repository = unset: must be set, no models are bundled here"
    (tmp_path / "pyproject.toml").touch()
    assert bundled_repository() == tmp_path / "models"
    (package / "bundled_models").mkdir()
    assert bundled_repository() == package / "bundled_models"
