"""A fake driver: NVML's functions, which write given facts through their pointers."""

from collections.abc import Sequence
from typing import Any

Fact = tuple[str, tuple[int, int], int, int]


class Nvml:
    """Replace libnvidia-ml.so.1, with a driver version, its newest CUDA and its GPUs."""

    def __init__(
        self, version: str, cuda: int, gpus: Sequence[Fact], *, fails: str | None = None
    ) -> None:
        self._version = version
        self._cuda = cuda
        self._gpus = list(gpus)
        self._fails = fails
        self.open = 0
        self.nvmlErrorString = _ErrorString()

    def load(self, name: str) -> "Nvml":
        """Return what ctypes.CDLL would for the library's name."""
        if name != "libnvidia-ml.so.1":
            raise OSError(name)
        return self

    def __getattr__(self, name: str) -> Any:
        if name == self._fails:
            return lambda *_: 18
        return {
            "nvmlInit_v2": self._init,
            "nvmlShutdown": self._shutdown,
            "nvmlSystemGetDriverVersion": lambda buffer, n: _text(buffer, n, self._version),
            "nvmlSystemGetCudaDriverVersion_v2": lambda out: _number(out, self._cuda),
            "nvmlDeviceGetCount_v2": lambda out: _number(out, len(self._gpus)),
            "nvmlDeviceGetHandleByIndex_v2": lambda index, out: _number(out, index + 1),
            "nvmlDeviceGetName": lambda h, buffer, n: _text(buffer, n, self._of(h)[0]),
            "nvmlDeviceGetCudaComputeCapability": self._capability,
            "nvmlDeviceGetMemoryInfo": self._memory,
        }[name]

    def _of(self, handle: Any) -> Fact:
        index: int = handle.value - 1
        return self._gpus[index]

    def _init(self) -> int:
        self.open += 1
        return 0

    def _shutdown(self) -> int:
        self.open -= 1
        return 0

    def _capability(self, handle: Any, major: Any, minor: Any) -> int:
        _number(major, self._of(handle)[1][0])
        return _number(minor, self._of(handle)[1][1])

    def _memory(self, handle: Any, out: Any) -> int:
        _, _, out._obj.total, out._obj.free = self._of(handle)
        return 0


class _ErrorString:
    restype: Any = None

    def __call__(self, code: int) -> bytes:
        return {7: b"Insufficient Size", 18: b"Driver/library version mismatch"}[code]


def _text(buffer: Any, length: int, text: str) -> int:
    if len(text) + 1 > length:
        return 7
    buffer.value = text.encode()
    return 0


def _number(out: Any, value: int) -> int:
    out._obj.value = value
    return 0
