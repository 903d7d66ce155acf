"""torch.compile captures the whole model in one graph, without recompiling for every length or token.

B batch, T tokens.
"""

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from x_positional.testing.checks_cache import need_cache
from x_positional.testing.expect import Expect
from x_positional.testing.subject import Subject

LENGTHS = (13, 17, 29, 31)
STEPS = 6


@torch.no_grad()
def compiles(subject: Subject, expect: Expect) -> None:
    """torch.compile(fullgraph=True) finds no graph break and gives the same logits, with masks and documents too; with
    dynamic=True one graph serves every length."""
    model = subject.model(subject.kinds[0], depth=1)
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for length in LENGTHS:
        tokens = subject.tokens(length)
        expect.equal(compiled(tokens), model(tokens), f"compiled, {length} tokens")
    expect.that(
        graphs.frame_count == 1, f"{graphs.frame_count} graphs were compiled for the lengths {LENGTHS}, instead of one."
    )
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    place = torch.arange(13, device=subject.device).expand(3, -1)
    given: dict[str, Tensor] = {"mask": place > 1, "document_ids": place // 7}
    tokens = subject.tokens(13)
    expect.equal(compiled(tokens, **given)[:, 2:], model(tokens, **given)[:, 2:], "compiled, with a mask and documents")
    torch._dynamo.reset()


@torch.no_grad()
def compiles_decoding(subject: Subject, expect: Expect) -> None:
    """A compiled decoding step has no graph break and gives the same logits; at most two graphs serve every step."""
    need_cache(subject)
    model, tokens = subject.model("decoder", depth=1), subject.tokens(13 + STEPS)
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    cache = model.new_cache(3)
    steps = [model(tokens[:, :13], cache=cache), *(compiled(t, cache=cache) for t in tokens[:, 13:].split(1, 1))]
    expect.equal(torch.cat(steps, 1), model(tokens), "compiled decoding")
    expect.that(
        graphs.frame_count <= 2, f"{graphs.frame_count} graphs were compiled for {STEPS} steps, instead of at most two."
    )
    torch._dynamo.reset()
