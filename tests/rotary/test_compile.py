"""torch.compile takes every public call of the drop-in as one graph, and one graph serves all lengths and offsets."""

import pytest
import torch
from torch import Tensor

from x_positional.rotary import RotaryEmbedding, apply_learned_rotations, apply_rotary_emb
from x_positional.rotary.flash_attn_with_rotary import flash_attn_with_rotary

COMPILED = {
    "rotate": lambda q: RotaryEmbedding.rotate_queries_or_keys(MODULES["plain"], q, offset=3),
    "cached": lambda q: MODULES["xpos"].rotate_queries_with_cached_keys(q[:, :, -2:], q),
    "learned": lambda q: MODULES["learned"].rotate_queries_and_keys(q, q),
    "axial": lambda q: apply_rotary_emb(MODULES["pixel"].get_axial_freqs(3, 5, offsets=(0.5, 1)), q[0, :, :5]),
    "rotations": lambda q: apply_learned_rotations(q[..., :2], q, 1, torch.tensor([1.0, 9.0])),
    "flash": lambda q: flash_attn_with_rotary(
        q, q, q, rotary_pos_emb=MODULES["plain"](torch.arange(7)), rotary_pos_emb_indices=torch.arange(7)
    ),
}
MODULES = {
    "plain": RotaryEmbedding(8),
    "xpos": RotaryEmbedding(8, use_xpos=True),
    "learned": RotaryEmbedding(8, learned_freq=True, seq_before_head_dim=True),
    "pixel": RotaryEmbedding(4, freqs_for="pixel"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_into_one_graph(name: str) -> None:
    torch.compiler.reset()
    call = COMPILED[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
    q = torch.randn(2, 3, 9, 12, requires_grad=True)
    torch.testing.assert_close(compiled(q), call(q), rtol=1e-6, atol=1e-6)
    total = sum(x.square().sum() for x in ([compiled(q)] if name not in ("cached", "learned") else compiled(q)))
    assert torch.autograd.grad(total, q)[0].abs().sum() > 0


def test_compiles_once_for_all_lengths_and_offsets() -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    module = RotaryEmbedding(8)
    compiled = torch.compile(module.rotate_queries_or_keys, fullgraph=True, backend=count, dynamic=True)
    for tokens, offset in ((9, 5), (13, 700), (40, 12), (2, 2**17)):
        x = torch.randn(1, 2, tokens, 8)
        assert torch.equal(compiled(x, offset=offset), module.rotate_queries_or_keys(x, offset=offset))
    assert len(graphs) == 1


@pytest.mark.slow
def test_the_compiler_of_the_default_backend_takes_it() -> None:
    torch.compiler.reset()
    module, x = RotaryEmbedding(8), torch.randn(1, 2, 9, 8).bfloat16()
    compiled = torch.compile(module.rotate_queries_or_keys, fullgraph=True)
    torch.testing.assert_close(
        compiled(x, offset=300), module.rotate_queries_or_keys(x, offset=300), rtol=0, atol=2**-7
    )
