"""`from_x_transformers`: converts a model of x-transformers, given as an instance or as keywords and a state dict."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.errors import ConversionError
from x_positional.pretrained.x_transformers.build import build_model
from x_positional.pretrained.x_transformers.inspect_model import form_of
from x_positional.pretrained.x_transformers.weights import load_weights

__all__ = ["form_of", "from_x_transformers"]


def from_x_transformers(
    model: nn.Module | Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Convert a model of x-transformers 2.31 to x_positional: equal logits, weights copied.

    x-transformers need not be installed. Keywords have their x-transformers meaning; `form_of(model)` reads them off an
    instance. Keywords that only matter in training (`layer_dropout`, `emb_frac_gradient`) are refused too: leave them out
    to convert without them. A model with one head (`heads=1`) has no output projection in x-transformers and gets an
    identity. A ViTransformerWrapper gives equal logits at the image size it was trained for; at other sizes x_positional
    resizes the position table, x-transformers uses its first rows.

    Example with keywords:

        from_x_transformers({"TransformerWrapper": {
            "num_tokens": 256, "max_seq_len": 1024, "attn_layers": {"Decoder": {"dim": 512, "depth": 6, "heads": 8}},
        }}, state_dict)

    Args:
        model: an instance of TransformerWrapper, ContinuousTransformerWrapper, ViTransformerWrapper, XTransformer,
            AutoregressiveWrapper, Encoder, Decoder or CrossAttender; or {class name: keyword arguments} of one.
        state_dict: the weights; required for keywords, not allowed beside an instance.

    Returns:
        The model, in training mode if an instance in training mode was given.

    Raises:
        ConversionError: for everything that cannot be converted, all at once: unsupported keywords, unsupported changes to
            an instance, unexpected, missing and misshapen tensors, parameters shared in x-transformers but not here.
    """
    if isinstance(model, nn.Module):
        if state_dict is not None:
            raise ConversionError(
                "model and state_dict cannot be combined:",
                [
                    "state_dict= is only for keyword input; a model instance already has weights. Pass one or the other.",
                ],
            )
        form, state = form_of(model), model.state_dict()
    elif state_dict is None:
        raise ConversionError("keywords without weights:", ["pass the weights as state_dict=."])
    else:
        form, state = model, state_dict
    with torch.device("meta"):
        built = build_model(form)
    load_weights(built, state)
    return built.model.train(isinstance(model, nn.Module) and model.training)
