"""What every test runs under."""

import pytest
from torch.nn.attention import flex_attention


@pytest.fixture(autouse=True)
def fast_flex(monkeypatch: pytest.MonkeyPatch):
    """On CPU FlexAttention compiles its plain-torch path for every new mask; here the same path runs uncompiled.

    `test_flex_as_it_is_on_cpu` switches it back on.
    """
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
