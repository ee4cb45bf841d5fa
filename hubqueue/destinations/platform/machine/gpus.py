"""The NVIDIA GPUs of a training, as far as its own process has loaded PyTorch and uses CUDA.

Promises that CUDA is never initialized here: that takes seconds, and it breaks every later fork. The load comes from NVML
(the package nvidia-ml-py, which ultralytics requires), if it is installed. Names, units and form are those of
ultralytics 8.4.190. Never raises.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DRIVER = Path("/proc/driver/nvidia/gpus")
_LONGEST = 4096


def loads(device: object = None) -> dict[str, Any]:
    """By number: `usage` and `memory` in percent, `temp` in °C, `power` in W. Empty unless this process uses CUDA.

    Only GPUs of this training. Before it has allocated memory on one, `device` (0, "0,1", "cuda:0", [0, 1]) names them.
    """
    try:
        return _loads(device)
    except Exception:  # third-party code, and the values are optional
        return {}


def versions() -> dict[str, str]:
    """`driver_version`, and the `cuda_version` that this driver supports; empty unless this process uses CUDA."""
    try:
        nvml = _nvml() if _cuda() is not None else None
        if nvml is None:
            return {}
        driver, cuda = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion_v2()
        driver = driver.decode() if isinstance(driver, bytes) else driver
        return {"driver_version": str(driver), "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}"}
    except Exception:
        return {}


def hardware() -> dict[str, Any]:
    """`gpuCount` and `gpuType`; empty without an NVIDIA GPU. Where CUDA is not in use yet, as the driver reports them."""
    try:
        cuda = _cuda()
        if cuda is not None:
            count = int(cuda.device_count())
            if not count:
                return {}
            first = cuda.get_device_properties(0)
            return {"gpuCount": count, "gpuType": f"{first.name}, {first.total_memory / (1 << 20):.0f}MiB"}
        return _of_driver(os.environ)
    except Exception:
        return {}


def _loads(device: object) -> dict[str, Any]:
    cuda = _cuda()
    # Only then: without the package, each epoch would search for it.
    nvml = _nvml() if cuda is not None else None
    if cuda is None or nvml is None:
        return {}
    found = {}
    for number in _numbers(_used(cuda, device), os.environ.get("CUDA_VISIBLE_DEVICES", "")):
        if isinstance(number, int):
            handle, name = nvml.nvmlDeviceGetHandleByIndex(number), number
        else:
            handle = nvml.nvmlDeviceGetHandleByUUID(number)
            name = nvml.nvmlDeviceGetIndex(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        found[str(name)] = {
            "usage": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory": round(100.0 * memory.used / memory.total, 3),
            "temp": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power": nvml.nvmlDeviceGetPowerUsage(handle) // 1000,
        }
    return found


def _used(cuda: Any, device: object) -> list[int]:
    """The GPUs of this training, as PyTorch counts them."""
    used = {each for each in range(cuda.device_count()) if cuda.memory_reserved(each)}
    if "RANK" in os.environ:
        # Of several processes on this machine, one for each GPU, only the first one reports.
        used |= set(range(min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), cuda.device_count())))
    if not used:
        words = str(device).strip("[]() ").replace("cuda:", "").split(",")
        used = {int(each) for each in words if each.strip().isdigit()} or {cuda.current_device()}
    return sorted(used)


def _numbers(used: list[int], visible: str) -> list[int | str]:
    """The same GPUs as NVML counts them: it ignores CUDA_VISIBLE_DEVICES, which may have numbers or unique ids."""
    names = [each.strip() for each in visible.split(",") if each.strip()]
    if not names:
        return list(used)
    return [int(each) if each.isdigit() else each for each in (names[at] for at in used if at < len(names))]


def _of_driver(environ: Mapping[str, str]) -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda is None:
        return {}  # PyTorch cannot use them
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    names = [_model(each) for each in sorted(_DRIVER.iterdir())] if _DRIVER.is_dir() else []
    count = (
        len(names) if visible is None else min(len(names), len([v for v in visible.split(",") if v.strip()]))
    )
    if not count or visible == "-1":
        return {}
    return {"gpuCount": count, "gpuType": names[0]}


def _model(folder: Path) -> str:
    with (folder / "information").open(encoding="utf-8", errors="replace") as file:
        lines = (line.partition(":") for line in file.read(_LONGEST).splitlines())
        return next(value.strip() for name, _, value in lines if name.strip() == "Model")


def _cuda() -> Any | None:
    """`torch.cuda`, if this process has initialized it."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def _nvml() -> Any | None:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return nvml
    except Exception:
        return None
