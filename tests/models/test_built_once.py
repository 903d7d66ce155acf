"""Flags become a config once, a config is validated once, and each scheme is built once, whichever way a model is made."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from x_positional import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    ModelConfig,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    from_pretrained,
)
from x_positional.config import flags, validate
from x_positional.models import stacks
from x_positional.schemes.registry import REGISTRY

SIZES = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16}
TEXT = {"num_tokens": 11, "max_seq_len": 12}


@dataclass
class Counts:
    """What happened while a model was made. Schemes that the validator builds on the meta device do not count."""

    flags: Counter[str] = field(default_factory=Counter)
    validated: Counter[str] = field(default_factory=Counter)
    built: Counter[str] = field(default_factory=Counter)
    judging: bool = False


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts()

    def counted(owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            note(*args, **kwargs)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    def judged(case: Any, original: Callable[[Any], Any] = validate.judge) -> Any:
        found.validated[type(case.model or case.layers).__name__] += 1
        found.judging = True
        try:
            return original(case)
        finally:
            found.judging = False

    monkeypatch.setattr(validate, "judge", judged)
    for kind, config in REGISTRY.items():
        counted(config, "build", lambda self, dims, kind=kind: found.built.update([] if found.judging else [kind]))
    counted(stacks, "layers_from_flags", lambda *args: found.flags.update(["layers"]))
    counted(flags, "_wrapped", lambda where, *args: found.flags.update([where]))
    return found


def text(position: Any = ("rope", "t5"), **more: Any) -> TransformerWrapper:
    return TransformerWrapper(**TEXT, attn_layers=Decoder(**SIZES, position=list(position), **more))


def test_a_wrapper_around_a_decoder(counts: Counts) -> None:
    """The stack validates its own config, since it could stay alone, and the model validates the model's."""
    text()
    assert counts.flags == {"layers": 1, "TransformerWrapper": 1}
    assert counts.validated == {"LayersConfig": 1, "ModelConfig": 1}
    assert counts.built == {"rope": 1, "t5": 1}


def test_a_scheme_that_waits_for_its_length(counts: Counts) -> None:
    text(["absolute", "alibi"])
    assert counts.validated == {"LayersConfig": 1, "ModelConfig": 1}
    assert counts.built == {"absolute": 1, "alibi": 1}


def test_a_scheme_that_the_wrapper_adds(counts: Counts) -> None:
    TransformerWrapper(**TEXT, attn_layers=Decoder(**SIZES))
    assert counts.built == {"none": 1, "absolute": 1}


def test_a_model_from_a_config(counts: Counts) -> None:
    config = text().config
    counts.__init__()
    TransformerWrapper.from_config(config)
    assert (counts.flags, counts.validated) == ({}, {"ModelConfig": 1})
    assert counts.built == {"rope": 1, "t5": 1}


def test_an_encoder_decoder(counts: Counts) -> None:
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in {**TEXT, "depth": 1}.items()}
    XTransformer(dim=32, **sides, enc_position="alibi", dec_position="rope")
    assert counts.flags == {"TransformerWrapper": 2}
    assert counts.validated == {"ModelConfig": 2}
    assert counts.built == {"alibi": 1, "rope": 1}


def test_an_image_model(counts: Counts) -> None:
    encoder = Encoder(**SIZES, position="axial")
    model = ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=encoder)
    assert counts.flags == {"layers": 1, "ViTransformerWrapper": 1}
    assert counts.validated == {"LayersConfig": 1, "VisionConfig": 1}
    assert counts.built == {"axial": 1}
    counts.__init__()
    ViTransformerWrapper.from_config(model.config)
    assert (counts.flags, counts.validated, counts.built) == ({}, {"VisionConfig": 1}, {"axial": 1})


def test_continuous_inputs(counts: Counts) -> None:
    ContinuousTransformerWrapper(dim_in=5, attn_layers=Decoder(**SIZES, position="dynamic"))
    assert counts.validated == {"LayersConfig": 1, "ContinuousConfig": 1}
    assert counts.built == {"dynamic": 1}


def test_a_model_of_several_kinds_of_layers(counts: Counts) -> None:
    """Each kind is judged once, and layers of equal schemes share one."""
    pattern = [{"position": "rope", "window": 4}, {"position": "rope"}, {"position": "alibi"}]
    layers = {"dim": 32, "depth": 6, "heads": 2, "pattern": pattern}
    TransformerWrapper.from_config(ModelConfig.model_validate({**TEXT, "layers": layers}))
    assert counts.validated == {"ModelConfig": 3}
    assert counts.built == {"rope": 1, "alibi": 1}


@pytest.mark.parametrize("form", ["native", "hf"])
def test_a_checkpoint(counts: Counts, tmp_path: Path, form: str) -> None:
    layers = Decoder(**SIZES, position="rope", use_rmsnorm=True, ff_swish=True, ff_glu=True, ff_no_bias=True)
    model: nn.Module = TransformerWrapper(**TEXT, attn_layers=layers)
    model.save_pretrained(tmp_path, format=form)
    counts.__init__()
    from_pretrained(tmp_path)
    assert (counts.flags, counts.validated, counts.built) == ({}, {"ModelConfig": 1}, {"rope": 1})
