"""`from_x_transformers`: a model of x-transformers, living or as keywords and a state dict, to one of ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.errors import ConversionError
from x_positional.pretrained.x_transformers.build import built
from x_positional.pretrained.x_transformers.inspect_model import form_of
from x_positional.pretrained.x_transformers.weights import fill

__all__ = ["form_of", "from_x_transformers"]


def from_x_transformers(
    model: nn.Module | Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A model of x-transformers 2.31 as one of ours that gives equal logits, with copies of its weights.

    model: a living TransformerWrapper, ContinuousTransformerWrapper, ViTransformerWrapper, XTransformer, AutoregressiveWrapper,
    Encoder, Decoder or CrossAttender. Or the class and the keywords that one was made with, beside its `state_dict`:

        from_x_transformers({"TransformerWrapper": {
            "num_tokens": 256, "max_seq_len": 1024, "attn_layers": {"Decoder": {"dim": 512, "depth": 6, "heads": 8}},
        }}, state_dict)

    Keywords mean what they mean there. `form_of(model)` reads them off a living model; x-transformers need not be installed.
    What only training sees (`layer_dropout`, `emb_frac_gradient`) is refused too: leave it out of the keywords to go on
    without it. A head alone (`heads=1`) has no output projection there and the identity here. A ViTransformerWrapper is
    equal at the size it was trained for; at others ours resizes its table, theirs reads the first rows.

    Raises ConversionError with everything at once: flags that this library has not, attributes of a living model that are
    not understood, tensors that are missing, left over or of the wrong shape, parameters that are one there and two here.
    """
    if isinstance(model, nn.Module):
        if state_dict is not None:
            raise ConversionError("a living model has its own weights:", ["give the keywords with a state_dict."])
        form, state = form_of(model), model.state_dict()
    elif state_dict is None:
        raise ConversionError("keywords alone hold no weights:", ["give state_dict= beside them."])
    else:
        form, state = model, state_dict
    with torch.device("meta"):
        made = built(form)
    fill(made, state)
    return made.model.train(isinstance(model, nn.Module) and model.training)
