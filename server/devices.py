"""Which device each engine runs on. Never loads torch: the supervisor asks, and it computes nothing."""

import os
from collections.abc import Callable, Mapping

from server.problems import Problem, SettingsError
from server.settings import MAX_ENGINES

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """How many GPUs CUDA will show to a process started with this environment.

    What the variable names, if it is set; else all that the driver knows; none where nobody can say.
    """
    if VISIBLE in environ:
        return _named(environ[VISIBLE])
    try:
        import pynvml  # of the extra `gpu`
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or no GPU
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def engine_devices(setting: str, gpus: Callable[[], int] = visible_gpus) -> tuple[str, ...]:
    """By engine index, "cpu" or "cuda:N", for a valid `executor.device`.

    `auto` is every visible GPU, or the CPU where there is none; `cuda` every visible GPU.

    Raises:
        SettingsError: `cuda`, and no GPU is visible; or more GPUs than there can be engines.
    """
    if setting not in ("auto", "cuda"):
        return tuple(setting.split(","))
    count = gpus()
    if count > MAX_ENGINES:
        allowed = f"must name at most {MAX_ENGINES} of the {count} GPUs that are visible"
        raise SettingsError([Problem("executor.device", setting, allowed)])
    if count > 0:
        return tuple(f"cuda:{index}" for index in range(count))
    if setting == "auto":
        return ("cpu",)
    allowed = f"must be auto or cpu, for no GPU is visible here (by {VISIBLE}, or by NVML: the extra gpu)"
    raise SettingsError([Problem("executor.device", setting, allowed)])


def _named(text: str) -> int:
    """Entries before the first that CUDA would not take: it shows none from there on."""
    count = 0
    for entry in text.split(","):
        if not entry.strip() or not (entry.strip().isdecimal() or entry.strip().startswith(("GPU-", "MIG-"))):
            break
        count += 1
    return count
