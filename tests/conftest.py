"""What every test runs under."""

import gc
from collections.abc import Generator

import pytest
import torch
from torch import Tensor
from torch._dynamo import _trace_wrapped_higher_order_op
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests run first. Workers share out what is left near the end: then those are short tests, which end
    together, and not the halves of a file whose fixture takes 20 seconds in each worker."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def index(tensor: Tensor, indices: list[Tensor]) -> Tensor:
    """What `ModIndex` of torch computes, without the rule for gradients, which FlexAttention does not have on CPU."""
    return torch.ops.aten.index(tensor, indices)


@pytest.fixture(autouse=True)
def fast_flex(monkeypatch: pytest.MonkeyPatch):
    """On CPU FlexAttention compiles its plain-torch path for every new mask; here the same path runs uncompiled.

    Half of its time would go into preparing gradients of each index. `test_compiled_flex_on_cpu` undoes both.
    """
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    if not torch.cuda.is_available():  # there it has gradients
        monkeypatch.setattr(_trace_wrapped_higher_order_op, "mod_index", index, raising=False)
