"""A feedforward that is a mixture of experts, as data."""

from typing import Literal

from pydantic import Field

from x_positional.schemes.registry import Config


class MoEConfig(Config):
    """Each token goes through `top_k` of `experts` feedforwards, which are as wide and as gated as the layer's `ff` says.

    score: of an expert, a softmax over all of them or a sigmoid each. renorm: the weights of the chosen are divided by their
    sum; with softmax that is a softmax over the chosen alone, so top-k before the softmax is the same. scale: what the weights
    are multiplied by after that. router_bias: of the scores. correction: a number per expert that counts for the choice and not
    for the weight; training moves it by other means than gradients (Wang et al. 2024, arXiv:2408.15664, section 3).
    groups, top_groups: experts are in groups, and only those of the `top_groups` groups with the largest sum of two scores can
    be chosen (DeepSeek-V3 2024, arXiv:2412.19437, section 2.1.2). weigh: the weight multiplies what an expert gives, or what
    it is given (Llama 4). shared: inner width of a feedforward for every token beside the experts. shared_gate: its output is
    multiplied by the sigmoid of a learned projection (Qwen 2 MoE).
    """

    experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    score: Literal["softmax", "sigmoid"] = "softmax"
    renorm: bool = True
    scale: float = Field(default=1.0, gt=0)
    router_bias: bool = False
    correction: bool = False
    groups: int = Field(default=1, gt=0)
    top_groups: int = Field(default=1, gt=0)
    weigh: Literal["output", "input"] = "output"
    shared: int | None = Field(default=None, gt=0)
    shared_gate: bool = False
