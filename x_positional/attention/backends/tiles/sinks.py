"""Attention sinks: a key without a value in each head, whose logit is learned.

B batch, T query tokens, H heads, E value dim.
"""

from torch import Tensor


def add_sinks_(sinks: Tensor, out: Tensor, logsumexp: Tensor) -> None:
    """Change a result [B H T E] and its log-sum-exp [B H T 1], in place, to those with sinks [H]."""
    joint = logsumexp.logaddexp(sinks[:, None, None])
    out.mul_(logsumexp.sub(joint).exp_())
    logsumexp.copy_(joint)


def sink_gradient(sinks: Tensor, out: Tensor, logsumexp: Tensor, grad: Tensor) -> Tensor:
    """[H], from the result, its log-sum-exp and its gradient: minus each sink's probability times result . gradient."""
    probabilities = (sinks[:, None, None] - logsumexp).exp_()
    return (grad * out).sum(-1, keepdim=True).mul_(probabilities).sum((0, 2, 3)).neg_()
