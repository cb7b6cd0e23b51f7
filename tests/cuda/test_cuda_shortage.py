"""A GPU whose memory is full: whatever call finds none left, one sentence says which GPU, how much is free, and what to
do. The driver is a stand-in, and so is the management library."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggpy.cli.doctor import _gpus
from ggpy.cuda import driver, shortage
from ggpy.cuda.compile import Compiled
from ggpy.cuda.driver import Device, Kernel
from ggpy.errors import GGPYError, OutOfMemory
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.load import find_device
from ggpy.runtime.placement import Placement, Stage
from ggpy.runtime.runtime import Runtime
from tests.runtime.test_split import model  # noqa: F401 - a fixture

GIB = 1 << 30


class FakeDriver:
    """Every call succeeds but those in `full`, which find no memory: by name, on these GPUs."""

    def __init__(self, n_gpus: int = 1) -> None:
        self.n_gpus, self.full, self.current = n_gpus, dict[str, set[int]](), 0
        self.free = 1 * GIB // 4

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name in ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDeviceGetName"):
                self.current = getattr(arguments[1 if name == "cuDeviceGet" else -1], "value", arguments[1])
            if self.current in self.full.get(name, ()):
                return driver.OUT_OF_MEMORY
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self.n_gpus
            elif name in ("cuDeviceGet", "cuCtxGetDevice"):
                arguments[0]._obj.value = self.current
            elif name == "cuDeviceGetName":
                arguments[0].value = b"NVIDIA H100"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = 9 if arguments[1] == 75 else 132
            elif name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = self.free, 80 * GIB
            elif name in ("cuMemAlloc_v2", "cuMemHostAlloc"):
                arguments[0]._obj.value = 1 << 20
            elif name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13000
            return 0

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    library = FakeDriver()
    monkeypatch.setattr(driver, "_library", lambda: library)
    monkeypatch.setattr(driver, "missing_packages", list)
    monkeypatch.setattr(shortage, "free_without_opening", lambda *_: (GIB // 5, 80 * GIB))
    return library


FULL = r"GPU 0 \(NVIDIA H100\) is full: 204\.80 MiB of 80\.00 GiB are free, .*half a GiB; end other .*--device cpu"
RAN_OUT = (
    r"^GPU 0 \(NVIDIA H100\) ran out of memory while %s: .*256\.00 MiB of 80\.00 GiB are free; end .*-ngl.*--device cpu"
)


def test_a_gpu_too_full_to_be_opened(fake: FakeDriver) -> None:
    fake.full["cuDevicePrimaryCtxRetain"] = {0}
    with pytest.raises(OutOfMemory, match=FULL) as caught:
        Device(0)
    assert "cuda:1" not in str(caught.value)
    fake.n_gpus = 2
    with pytest.raises(OutOfMemory, match=r"take another one \(--device cuda:1\), or run on the CPU"):
        Device(0)


def test_doctor_says_it_too(fake: FakeDriver) -> None:
    fake.full["cuDevicePrimaryCtxRetain"] = {0}
    assert re.search(FULL, dict(_gpus())["GPU 0"])


def test_auto_says_why_it_takes_the_cpu(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    assert find_device("auto", notes.append) == "cuda"
    assert notes == []
    fake.full["cuDevicePrimaryCtxRetain"] = {0}
    assert find_device("auto", notes.append) == "cpu"
    assert re.search("^device auto takes the CPU: " + FULL, notes.pop())
    fake.n_gpus = 2  # the second has room
    assert find_device("auto", notes.append) == "cuda"
    monkeypatch.setattr(driver, "missing_packages", lambda: ["nvidia-nvvm"])
    assert find_device("auto", notes.append) == "cpu"
    assert "need nvidia-nvvm; install it" in notes.pop()
    fake.n_gpus = 0
    monkeypatch.setattr(driver, "missing_packages", list)
    assert find_device("auto", notes.append) == "cpu"
    assert "no GPU" in notes.pop()


# What a model does on a GPU, the calls in it that take memory, and how that is named.
MOMENTS: dict[str, tuple[str, Callable[[Device], Any], str]] = {
    "stream": ("cuStreamCreate", lambda device: Device(0), "opening the GPU"),
    "weights": ("cuMemAlloc_v2", lambda device: device.allocate(3 * GIB), "allocating"),
    "kernel": ("cuModuleLoadData", lambda device: kernel(device), "loading the kernel f"),
    "shared memory": ("cuFuncSetAttribute", lambda device: kernel(device).launch(1, shared=1 << 17), "preparing f"),
    "launch": ("cuLaunchKernelEx", lambda device: kernel(device).launch(1), "starting f"),
    "graph": ("cuGraphInstantiateWithFlags", lambda device: device.capture(lambda: None), "making a graph"),
    "graph's upload": ("cuGraphUpload", lambda device: device.capture(lambda: None), "loading a graph"),
    "mark": ("cuEventCreate", lambda device: device.event(), "making a mark"),
    "copy": ("cuMemcpyHtoDAsync_v2", lambda device: device.upload(1, 1, 1), "copying to it"),
    "end": ("cuStreamSynchronize", lambda device: device.synchronize(), "running the model"),
}


def kernel(device: Device) -> Kernel:
    return Kernel(device, Compiled("f", "", 32, "f", 1, 0))


@pytest.mark.parametrize("moment", MOMENTS)
def test_memory_that_runs_out_later(fake: FakeDriver, moment: str) -> None:
    name, act, said = MOMENTS[moment]
    device = Device(0)
    fake.full[name] = {0}
    with pytest.raises(OutOfMemory, match=RAN_OUT % said) as caught:
        act(device)
    assert ("3.00 GiB more are needed" in str(caught.value)) == (moment == "weights")


def test_the_machines_own_memory_is_not_the_gpus(fake: FakeDriver) -> None:
    device = Device(0)
    fake.full["cuMemHostAlloc"] = {0}
    with pytest.raises(GGPYError, match=r"The machine has no 2\.00 MiB of memory left") as caught:
        device.page_locked(2 << 20)
    assert not isinstance(caught.value, OutOfMemory)


def test_other_faults_while_it_is_opened_name_what_to_do(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "cuDevicePrimaryCtxRetain", lambda *_: 46, raising=False)  # exclusive, and taken
    with pytest.raises(GGPYError, match=r"CUDA error 46\); take another one, or run on the CPU"):
        Device(0)


def test_a_full_gpu_leaves_the_model_to_others(fake: FakeDriver, model: Any) -> None:  # noqa: F811
    fake.n_gpus, fake.free = 3, 4 * GIB
    fake.full["cuDevicePrimaryCtxRetain"] = {0}
    with GGUFFile(model("llama", "q4_0")) as file:
        devices = {part.device for part in Placement(file, "cuda").place(64)[0]}
        assert "cuda:0" not in devices
        assert all(device.startswith("cuda:") for device in devices)
        for named in ("cuda:0", "cuda:0,1"):
            with pytest.raises(OutOfMemory, match=r"GPU 0 .* is full"):
                Placement(file, named).place(64)
        fake.full["cuDevicePrimaryCtxRetain"] = {0, 1, 2}
        with pytest.raises(GGPYError, match=r"4 of 4 .*but 0 B are free on cuda:0; not one layer fits"):
            Placement(file, "cuda", 4).place(64)


def test_a_gpu_that_fills_up_meanwhile(model: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """There is less room than was free a moment ago: the figures are those of now."""

    def full(*arguments: object) -> None:
        gpus(300 << 20)
        raise OutOfMemory("GPU 0 ran out of memory")

    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(1 << 40)
        monkeypatch.setattr(Runtime, "_executor_of", full)
        with pytest.raises(
            GGPYError, match=r"4 of 4 layers .* need .* 285\.00 MiB are free on cuda:0; not one layer fits"
        ):
            Runtime(file, 4096, device="cuda", n_batch=4096)
        monkeypatch.setattr(Runtime, "_executor_of", lambda *_: (_ for _ in ()).throw(OutOfMemory("what the GPU says")))
        gpus(1 << 40)
        with pytest.raises(OutOfMemory, match="what the GPU says"):
            Runtime(file, 64, device="cuda")


def test_why_no_layer_is_on_the_gpu_is_said(model: Any, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    notes: list[str] = []
    monkeypatch.setattr(Runtime, "_executor_of", lambda *_: SimpleNamespace(close=lambda: None))
    with GGUFFile(model("llama", "q4_0")) as file:
        gpus(100 << 20)
        assert Runtime(file, 64, device="cuda", notify=notes.append).stages == [Stage("cpu", 0, 4)]
    assert any(
        re.match(r"1 of 4 layers .* 95\.00 MiB are free on cuda:0: the CPU runs them all", note) for note in notes
    )


def test_the_management_library_is_asked_by_the_place_on_the_bus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Management:
        def __getattr__(self, name: str) -> Callable[..., int]:
            def call(*arguments: Any) -> int:
                if name == "nvmlDeviceGetHandleByPciBusId_v2":
                    return 0 if arguments[0].value == b"0000:3B:00.0" else 2
                if name == "nvmlDeviceGetMemoryInfo":
                    memory = arguments[1]._obj
                    memory.total, memory.free = 80 * GIB, 3 * GIB
                return 0

            return call

    class Library:
        place = b"0000:3B:00.0"

        def cuDeviceGetPCIBusId(self, text: Any, size: int, handle: Any) -> int:
            text.value = self.place
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Management())
    library = Library()
    assert shortage.free_without_opening(library, ctypes.c_int()) == (3 * GIB, 80 * GIB)
    library.place = b"0000:3C:00.0"
    assert shortage.free_without_opening(library, ctypes.c_int()) is None
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError()))
    assert shortage.free_without_opening(library, ctypes.c_int()) is None
