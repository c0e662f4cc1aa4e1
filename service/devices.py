"""Where graphs run: on the CPU or on CUDA devices, as asked for and as they can be had.

A device that was asked for by name is had or the service does not start: a graph that was meant for a GPU and runs on
the CPU is the most frequent and the least visible failure of such services. `auto` alone may fall back, and says so.
"""

import contextlib
import ctypes
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

ConvSearch = Literal["exhaustive", "heuristic", "default"]
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class DeviceUnavailable(Exception):
    """The device that was asked for cannot be had; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Device:
    """index: of a CUDA device; None: the CPU. memory_bytes: most that a graph's arena there takes; 0: all there is."""

    index: int | None = None
    memory_bytes: int = 0
    conv_search: ConvSearch = "heuristic"

    @property
    def name(self) -> str:
        return "cpu" if self.index is None else f"cuda:{self.index}"

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what runs graphs there."""
        return "CPUExecutionProvider" if self.index is None else "CUDAExecutionProvider"

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """What a session is made with. ONNX Runtime adds the CPU behind CUDA, for what CUDA has no kernel of."""
        if self.index is None:
            return [(self.provider, {})]
        options = {
            "device_id": str(self.index),
            "cudnn_conv_algo_search": self.conv_search.upper(),
            "use_tf32": "0",  # its ten bits of mantissa would not reproduce the golden cases
        }
        if self.memory_bytes:
            options["gpu_mem_limit"] = str(self.memory_bytes)
        return [(self.provider, options)]


CPU = Device()


@dataclass(frozen=True, slots=True)
class Devices:
    """What was found. reason: why `auto` took the CPU; empty where it did not. fell_back: although ONNX Runtime's CUDA
    build is installed, so that somebody counts on a GPU.
    """

    asked: str
    found: tuple[Device, ...] = (CPU,)
    reason: str = ""
    fell_back: bool = False


def find_devices(asked: str, memory_bytes: int = 0, conv_search: ConvSearch = "heuristic") -> Devices:
    """The devices of a setting: `auto`, `cpu`, `cuda`, `cuda:1`, `cuda:0,1`.

    Raises:
        DeviceUnavailable: one that was asked for by name cannot be had.
    """
    if asked == "cpu":
        return Devices(asked)
    indices = asked.partition(":")[2] or "0"
    devices = [Device(int(index), memory_bytes, conv_search) for index in indices.split(",")]
    reasons = [reason for device in devices if (reason := why_not(device))]
    if not reasons:
        return Devices(asked, tuple(devices))
    if asked != "auto":
        raise DeviceUnavailable(f"device {asked} is asked for and cannot be had: {reasons[0]}")
    return Devices(asked, reason=reasons[0], fell_back=_has_cuda_build())


def why_not(device: Device) -> str:
    """Why a CUDA device cannot be had, and what to do; empty where it can."""
    import onnxruntime  # after check_runtime had its say, and not for `--help`

    if not _has_cuda_build():
        return (
            "the ONNX Runtime that is installed is the build for CPUs (for CUDA: pip uninstall onnxruntime, then, in "
            "the project's folder, pip install '.[gpu]')"
        )
    missing = load_cuda()
    if _DRIVER in missing or _cannot_load(_DRIVER):
        return (
            f"NVIDIA's driver is not to be seen ({_DRIVER}): install it, version 580 or later for CUDA 13; into a "
            "container it comes by `docker run --gpus all`, in Kubernetes by the resource nvidia.com/gpu"
        )
    if missing:
        return f"a library of CUDA is missing ({missing}): the extra gpu (pip install '.[gpu]') brings CUDA and cuDNN"
    try:
        onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", device.index)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        return f"{device.name} gives no memory: {_cause(error)}. `nvidia-smi` lists what there is"
    return ""


def load_cuda() -> str:
    """Load CUDA's libraries from NVIDIA's wheels, else from the system; what ONNX Runtime's provider still lacks."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls(directory="")
    suffix = "onnxruntime_providers_cuda.dll" if sys.platform == "win32" else "libonnxruntime_providers_cuda.so"
    # Its own symbols come from ONNX Runtime, which alone can load it whole: a missing library is told before that.
    return _cannot_load(str(Path(onnxruntime.__file__).parent / "capi" / suffix))


def _has_cuda_build() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _cannot_load(library: str) -> str:
    """The library that is missing; empty where it loads."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return Path(str(error).partition(":")[0]).name
    return ""


def _cause(error: BaseException) -> str:
    """CUDA's own words out of ONNX Runtime's long line, where it has them."""
    text = " ".join(str(error).split())
    at = text.find("CUDA failure")
    return (text[at:] if at >= 0 else text).split(" ; ", 1)[0][:200]
