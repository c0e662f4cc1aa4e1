"""Buffers for runs of a graph on one size of batch, bound to its session once.

A GPU wants shapes and addresses that stay: cuDNN chooses its kernels anew for every new shape, and memory for another
size is taken from the device and never given back. So a batch is padded to one of a few sizes, each with its own
buffers, all made and warmed before the graph serves.
"""

import ctypes
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.devices import Device

Floats = npt.NDArray[np.float32]


class Binding:
    """Runs of exactly `size` rows. Not thread-safe: a device has one thread.

    Args:
        inputs, outputs: the inner shape of each tensor by name, in the graph's order.
    """

    def __init__(
        self,
        session: Any,
        size: int,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
        device: Device,
    ) -> None:
        import onnxruntime

        self._session = session
        self._binding = session.io_binding()
        self._device = device
        self._inputs = [host_buffer((size, *shape), device) for shape in inputs.values()]
        self._outputs = [host_buffer((size, *shape), device) for shape in outputs.values()]
        kind, index = ("cpu", 0) if device.index is None else ("cuda", device.index)
        values = onnxruntime.OrtValue.ortvalue_from_numpy
        self._on_device = [values(buffer, kind, index) for buffer in self._inputs]  # on the CPU, the buffer itself
        for name, value in zip(inputs, self._on_device, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        # Copied back at the end of a run by the session, into these buffers.
        for name, buffer in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, values(buffer))

    def run(self, inputs: Sequence[Floats]) -> list[Floats]:
        """Arrays [n, ...] of at most `size` rows -> arrays [n, ...]. What lies in the rows behind is of no account."""
        for buffer, value, given in zip(self._inputs, self._on_device, inputs, strict=True):
            buffer[: len(given)] = given
            if self._device.index is not None:
                value.update_inplace(buffer)
        self._session.run_with_iobinding(self._binding)
        count = len(inputs[0])
        return [buffer[:count].copy() for buffer in self._outputs]


def host_buffer(shape: tuple[int, ...], device: Device) -> Floats:
    """Zeros; for a CUDA device in pages that are locked in memory, which it copies by itself and at twice the rate.

    Where the system locks no more pages the buffer is one like any other.
    """
    buffer = np.zeros(shape, np.float32)
    if device.index is not None and (runtime := _cuda_runtime()) is not None:
        address = ctypes.c_void_p(buffer.ctypes.data)
        if runtime.cudaHostRegister(address, ctypes.c_size_t(buffer.nbytes), 0) == 0:
            weakref.finalize(buffer, runtime.cudaHostUnregister, address)
    return buffer


def _cuda_runtime() -> ctypes.CDLL | None:
    import onnxruntime

    major = str(onnxruntime.cuda_version).partition(".")[0]
    try:
        return ctypes.CDLL(f"cudart64_{major}.dll" if sys.platform == "win32" else f"libcudart.so.{major}")
    except OSError:
        return None
