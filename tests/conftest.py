"""What every test runs under."""

import gc
from collections.abc import Generator

import pytest
from torch.nn.attention import flex_attention


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Python looks for unreachable cycles after every 700 new objects, and now and then through all objects there are.

    Those are mostly the thousands of collected tests and the imported modules, which stay until the end: looking at them took a
    fifth of the CPU time of the suite. So there is no search while they are made, and afterwards one that leaves them out.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


@pytest.fixture(autouse=True)
def fast_flex(monkeypatch: pytest.MonkeyPatch):
    """On CPU FlexAttention compiles its plain-torch path for every new mask; here the same path runs uncompiled.

    `test_compiled_flex_on_cpu` switches it back on.
    """
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
