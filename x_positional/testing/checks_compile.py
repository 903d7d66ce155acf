"""torch.compile takes the whole model in one graph, and does not compile again for every length.

T tokens.
"""

import torch
from torch._dynamo.testing import CompileCounter

from x_positional.testing.judge import Judge
from x_positional.testing.subject import Subject

LENGTHS = (13, 17, 29, 31)


@torch.no_grad()
def compiles(subject: Subject, judge: Judge) -> None:
    """torch.compile(fullgraph=True) finds no graph break, gives the same logits, and compiles at most twice for four
    lengths (once as it is, once for any length); with masks and with documents too."""
    for kind in subject.kinds:
        model = subject.model(kind)
        for extra in ("", "mask", "document_ids"):
            torch._dynamo.reset()
            counter = CompileCounter()
            compiled = torch.compile(model, fullgraph=True, backend=counter)
            for length in LENGTHS if not extra else LENGTHS[:1]:
                tokens = subject.tokens(length)
                half = torch.arange(length, device=subject.device).expand(3, -1) // 7
                given = {"": {}, "mask": {"mask": half > 0}, "document_ids": {"document_ids": half}}[extra]
                judge.equal(compiled(tokens, **given), model(tokens, **given), f"compiled, {length} tokens, {extra or kind}")
            judge.require(
                counter.frame_count <= 2, f"compiled {counter.frame_count} times for lengths {LENGTHS}, {kind}."
            )
    torch._dynamo.reset()
