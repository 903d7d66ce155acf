"""What stands between the last layer and the logits' projection. M model dim."""

from torch import Tensor, nn

from x_positional.modules.feedforward import ACTIVATIONS, ActivationKind
from x_positional.modules.norms import Norm


class PredictionHead(nn.Module):
    """norm(activation(linear(x))) (Devlin et al. 2018, arXiv:1810.04805, in the published code). [... M] -> [... M]."""

    def __init__(self, dim: int, activation: ActivationKind, bias: bool, norm: Norm):
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=bias)
        self.activation, self.norm = ACTIVATIONS[activation], norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.linear(x)))
