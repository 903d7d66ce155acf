"""Invalid calls of generate and stream, each rejected with the value, the reason and the way out."""

import pytest
import torch

from tests.support.generation_models import NUM_TOKENS, ids, language_model, ragged
from x_positional import AutoregressiveWrapper, Encoder, TransformerWrapper
from x_positional.errors import InputError


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model("rope"))


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        (ids(2, 0), {}, InputError, "the prompt is empty.*Give at least one token per row"),
        ([], {}, InputError, "list of prompts is empty"),
        ([ids(3), ids(0)], {}, InputError, r"prompts \[1\] are not"),
        ([ids(3), ids(1, 3)], {}, InputError, r"prompts \[1\] are not"),
        ([[1.5, 2.0]], {}, InputError, "must be integer ids"),
        (ids(2, 2, 2), {}, InputError, r"these are \[2, 2, 2\]"),
        (ids(2, 3).float(), {}, InputError, "integer ids; got torch.float32"),
        (ids(2, 3) + NUM_TOKENS, {}, InputError, "is outside 0..28"),
        (ids(2, 3), {"prompt_lens": torch.tensor([1, 4])}, InputError, "from 1 to 3.*from 1 to 4"),
        (ids(2, 3), {"prompt_lens": torch.tensor([0, 3])}, InputError, "they go from 0 to 3"),
        (ids(2, 3), {"prompt_lens": torch.tensor([3])}, InputError, "2 integers, one per row"),
        (ragged(2, 3), {"prompt_lens": torch.tensor([2, 3])}, InputError, "Leave it out"),
        (ids(2, 3), {"seq_len": -1}, InputError, "seq_len=-1"),
        (ids(2, 3), {"temperature": -0.5}, ValueError, "temperature=-0.5 must be a finite number of at least 0"),
        (ids(2, 3), {"repetition_penalty": 0}, ValueError, "repetition_penalty=0 must be a finite number above 0"),
        (ids(2, 3), {"filter_logits_fn": "top_q"}, ValueError, "did you mean 'top_"),
        (ids(2, 3), {"filter_kwargs": {"thres": 0.9}}, ValueError, "top_k has no option 'thres'"),
        (ids(2, 3), {"seed": 1, "generator": torch.Generator()}, InputError, "Pass one"),
        (ids(2, 3), {"eos_token": NUM_TOKENS}, InputError, "eos_token=29 must be"),
        (ids(2, 3), {"eos_token": [3, -1]}, InputError, r"eos_token=\[3, -1\] must be"),
        (ids(2, 3), {"eos_token": []}, InputError, "one or several ids"),
        (ids(2, 3), {"eos_token": 3.0}, InputError, "one or several ids"),
        (ids(2, 3), {"context": torch.zeros(2, 5, 26).double()}, InputError, "no cross-attention"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_calls_that_cannot_work_say_why(wrapper, verb: str, prompts, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        list(getattr(wrapper, verb)(prompts, **{"seq_len": 4, **options}))


def test_a_stream_refuses_before_its_first_token_is_asked_for(wrapper) -> None:
    with pytest.raises(InputError, match=r"outside 0..28"):
        wrapper.stream(ids(2, 3) + NUM_TOKENS, 4)
    with pytest.raises(ValueError, match="temperature"):
        wrapper.stream(ids(2, 3), 4, temperature=-1)


def test_models_that_cannot_be_wrapped() -> None:
    encoder = TransformerWrapper(
        num_tokens=NUM_TOKENS, max_seq_len=9, attn_layers=Encoder(dim=26, depth=1, heads=1, position="rope")
    )
    with pytest.raises(InputError, match=r"of kind 'encoder' attend to all tokens. Use a Decoder"):
        AutoregressiveWrapper(encoder)
    net = language_model()
    for value in (-1, NUM_TOKENS):
        with pytest.raises(InputError, match=f"pad_value={value} is fed to the model"):
            AutoregressiveWrapper(net, pad_value=value)
    columns = TransformerWrapper.from_config(net.config.model_copy(update={"logits_dim": 5}))
    with pytest.raises(InputError, match="logits_dim=5 differs from num_tokens=29"):
        AutoregressiveWrapper(columns)
