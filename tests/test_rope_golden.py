"""Frequencies from Hugging Face's dicts against transformers, over random parameters; its known faults the right way round."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from x_positional.rope import from_hf, inverse_frequencies, to_hf
from x_positional.rope_families import INTERLEAVED, LOCAL_GLOBAL, THETA
from x_positional.rope_schema import RopeError
from x_positional.schemes import Rope

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
from transformers import LlamaConfig, Olmo3Config, Phi3Config, PhimoeConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding  # noqa: E402

transformers.logging.set_verbosity_error()

Dict = dict[str, Any]
SETS = 150
BOUND = 1e-6


def width_of(head_dim: int, parameters: Dict) -> int:
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def sometimes(draw: random.Random, parameters: Dict) -> Dict:
    """Each of these keys is there or not."""
    return {key: value for key, value in parameters.items() if draw.random() < 0.5}


def linear(draw: random.Random, **_: Any) -> Dict:
    return {"factor": draw.choice([1, 2.0, 8, draw.uniform(1, 64)])}


def yarn(draw: random.Random, trained: int, **_: Any) -> Dict:
    given = {"factor": draw.choice([None, 1.0, 4, 40.0, draw.uniform(1, 64)])}
    scales = draw.choice([{}, {"mscale": 0.707, "mscale_all_dim": 0.707}, {"mscale": 1.0, "mscale_all_dim": 0.5},
                          {"mscale": 0.9}, {"mscale": 0, "mscale_all_dim": 1.0}])  # fmt: skip
    optional = {
        "beta_fast": draw.choice([32, 0, None, draw.uniform(16, 64)]), "beta_slow": draw.choice([1, None, draw.uniform(0.5, 2)]),
        "truncate": draw.choice([True, False]), "attention_factor": draw.uniform(0.5, 2),
    }  # fmt: skip
    return given | scales | sometimes(draw, optional) | {"original_max_position_embeddings": trained}


def longrope(draw: random.Random, trained: int, pairs: int, **_: Any) -> Dict:
    lists = {name: [draw.uniform(1, 64) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
    optional = {"factor": draw.uniform(0.5, 32), "attention_factor": draw.uniform(0.5, 2)}
    return lists | sometimes(draw, optional) | {"original_max_position_embeddings": trained}


def llama3(draw: random.Random, trained: int, **_: Any) -> Dict:
    low = draw.uniform(0.5, 2)
    return {
        "factor": draw.choice([8.0, 32.0, draw.uniform(1, 32)]), "low_freq_factor": low,
        "high_freq_factor": low + draw.uniform(1, 8), "original_max_position_embeddings": trained,
    }  # fmt: skip


def proportional(draw: random.Random, **_: Any) -> Dict:
    return sometimes(draw, {"factor": draw.uniform(1, 8)})


DRAWS: dict[str, Callable[..., Dict]] = {
    "linear": linear, "dynamic": linear, "yarn": yarn, "longrope": longrope, "llama3": llama3, "proportional": proportional,
}  # fmt: skip


def random_case(kind: str, draw: random.Random) -> tuple[Dict, int, int, int | None]:
    """(rope_parameters, head_dim, max_position_embeddings, seq_len)."""
    head_dim, trained = draw.choice([32, 64, 96, 100, 128, 256]), draw.choice([512, 2048, 4096, 8192, 32_768])
    length = int(trained * draw.choice([1, 2, 8, 32, 2.5]))
    theta = draw.choice([1e4, 5e5, 1e6, draw.uniform(1e3, 1e7)])
    common: Dict = {"rope_type": kind, "rope_theta": theta}
    common |= sometimes(draw, {"partial_rotary_factor": draw.choice([0.25, 0.5, 0.75, 0.9, 1.0])})
    pairs = (width_of(head_dim, common) + 1) // 2
    seq_len = draw.choice([None, 1, trained - 1, trained, trained + 1, length - 1, length, length + 1, 2 * length])
    return common | DRAWS[kind](draw, trained=trained, pairs=pairs), head_dim, length, seq_len


def theirs(parameters: Dict, head_dim: int, length: int, seq_len: int | None) -> tuple[Tensor, float]:
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, max_position_embeddings=length,
        rope_parameters=dict(parameters),
    )  # fmt: skip
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=seq_len)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype == torch.float32
    still = want == 0
    assert torch.equal(got == 0, still)
    return ((got - want).abs() / want.abs().clamp(min=1e-30))[~still].max().item() if not still.all() else 0.0


@pytest.mark.parametrize("kind", DRAWS)
def test_every_type_over_random_parameters(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(SETS):
        parameters, head_dim, length, seq_len = random_case(kind, draw)
        before = dict(parameters)
        inv_freq, factor = inverse_frequencies(parameters, head_dim, length, seq_len)
        want, want_factor = theirs(parameters, head_dim, length, seq_len)
        assert relative(inv_freq, want) <= BOUND, (parameters, head_dim, length, seq_len)
        assert factor == pytest.approx(want_factor, rel=BOUND), (parameters, head_dim, length, seq_len)
        assert parameters == before
