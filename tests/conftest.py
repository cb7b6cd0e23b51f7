"""The environment and fixtures that all tests share."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.support.matrix import left_out

# A job that a shell starts in the background ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run every case of matrices, not a sample of each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave cases of matrices out that a sample does without; one that is asked for by its name is run."""
    named = any("[" in argument for argument in config.args)
    if out := left_out(items, named or config.getoption("--whole")):
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]


@pytest.fixture(autouse=True)
def rounding_of_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU round to 8 bits before logits too, as GPUs do, in tests that hold one against the other."""
    if request.node.get_closest_marker("cuda") or "emulated" in request.fixturenames:
        from ggpy.quant.formats import activation_dtype

        monkeypatch.setattr("ggpy.runtime.planned.cpu_activation_dtype", activation_dtype)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that there are GPUs with this much free memory, in bytes."""

    def there(*free: int) -> None:
        monkeypatch.setattr("ggpy.cuda.driver.device_count", lambda: len(free))
        monkeypatch.setattr("ggpy.cuda.memory.available", lambda name: free[int(name.partition(":")[2])])

    return there


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, gpus: Any) -> list[Any]:
    """Provide two emulated GPUs; returns those that were opened."""
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    from tests.support.emulated_device import EmulatedDevice

    opened: list[Any] = []

    def open_device(index: int) -> EmulatedDevice:
        opened.append(EmulatedDevice(index))
        return opened[-1]

    gpus(1 << 30, 1 << 30)
    monkeypatch.setattr("ggpy.cuda.driver.Device", open_device)
    monkeypatch.setattr("ggpy.cuda.executor.compile_missing", lambda *_: [])
    return opened


@pytest.fixture
def two_gpus() -> None:
    from ggpy.cuda.driver import device_count, usable

    if not usable() or device_count() < 2:
        pytest.skip("there are no two NVIDIA GPUs that can be used")
