"""The loss of a model by chunks of tokens equals the loss of its logits, whatever its head is, and never holds them all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, distributed, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad
from torch.nn.parallel import DistributedDataParallel

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, ids, language_model, perturbed
from tests.support.largest import Largest
from tests.support.wrapped_layers import IN_PLACE, Opaque
from x_positional import (
    AutoregressiveWrapper,
    Decoder,
    TransformerWrapper,
    XTransformer,
    quantize,
    set_activation_checkpointing,
)
from x_positional.errors import InputError
from x_positional.models import language
from x_positional.models.language import TokenEncoder
from x_positional.modules import cross_entropy
from x_positional.training.data.token_cache import Split
from x_positional.training.evaluate import eval_windows, evaluate

ROWS, LENGTH = 3, 10
CAPPED = {"logits_softcap": 2.0, "logits_scale": 3.0, "logits_bias": True}
TIED = {"tie_embedding": True, "tie_embedding_scale": 0.7}
MODELS: dict[str, dict[str, Any]] = {
    "own matrix": {},
    "own matrix, biased, capped": CAPPED,
    "tied": TIED,
    "tied, biased, capped, projected": TIED | CAPPED | {"emb_dim": 16, "logits_proj": True},
    "prediction head": {"head": {"activation": "gelu"}, **TIED, "logits_bias": True},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three tokens, for any vocabulary."""
    monkeypatch.setattr(cross_entropy, "ROWS", ROWS)
    set_fewest(monkeypatch, 0)


def set_fewest(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    monkeypatch.setattr(cross_entropy, "FEWEST", logits)
    monkeypatch.setattr(cross_entropy, "FEWEST_RECOMPUTED", logits)


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each loss by chunks: whether the map to logits was known as tensors."""
    found: list[bool] = []
    original = cross_entropy.cross_entropy_by_chunks

    def recorded(*args: Any) -> Tensor:
        found.append(args[3] is not None)
        return original(*args)

    monkeypatch.setattr(language, "cross_entropy_by_chunks", recorded)
    return found


def model(vocabulary: int = NUM_TOKENS, **flags: Any) -> AutoregressiveWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=8, depth=1, heads=2, attn_dim_head=4, position="rope")
    net = TransformerWrapper(num_tokens=vocabulary, max_seq_len=LENGTH, attn_layers=layers, **flags)
    return AutoregressiveWrapper(perturbed(net, size=0.3))


def step(module: nn.Module, *args: Any, **options: Any) -> list[Tensor]:
    """The loss, and the gradients of all parameters that have one."""
    module.zero_grad()
    loss = module(*args, **options)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


def check_equal(monkeypatch: pytest.MonkeyPatch, module: nn.Module, *args: Any, **options: Any) -> list[Tensor]:
    """By chunks and by whole logits: the same loss, and the same gradients of the same parameters."""
    found = step(module, *args, **options)
    with monkeypatch.context() as patch:
        set_fewest(patch, 2**60)
        want = step(module, *args, **options)
    close(found, want)
    return found


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Sums in another order differ by a few units of float64; all values here are below 10."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_every_head_has_the_loss_and_gradients_of_its_logits(
    monkeypatch: pytest.MonkeyPatch, summed: list[bool], name: str
) -> None:
    wrapper, tokens = model(**MODELS[name]), ids(3, LENGTH)
    check_equal(monkeypatch, wrapper, tokens)
    labels = tokens.masked_fill(torch.arange(LENGTH) < torch.tensor([[8], [3], [0]]), -100)
    check_equal(monkeypatch, wrapper, tokens, labels=labels)
    mask = torch.arange(LENGTH) < torch.tensor([[10], [4], [7]])
    check_equal(monkeypatch, wrapper, tokens, mask=mask)
    check_equal(monkeypatch, wrapper, tokens, seq_lens=[4, 6])
    assert summed == [True] * 4


@pytest.mark.parametrize("ignored", [-1, -100, 2])
def test_any_ignore_index(monkeypatch: pytest.MonkeyPatch, summed: list[bool], ignored: int) -> None:
    wrapper, tokens = AutoregressiveWrapper(model().net, ignore_index=ignored), ids(3, LENGTH)
    tokens[:, 3:6] = ignored
    check_equal(monkeypatch, wrapper, tokens)
    assert summed == [True]


def test_without_targets_the_loss_and_its_gradient_are_zero(summed: list[bool]) -> None:
    loss, *gradients = step(model(), ids(3, LENGTH), labels=torch.full((3, LENGTH), -100))
    assert summed == [True]
    assert loss.item() == 0
    assert gradients
    assert not any(g.any() for g in gradients)


def test_an_encoder_decoder(monkeypatch: pytest.MonkeyPatch, summed: list[bool]) -> None:
    sizes = {"num_tokens": NUM_TOKENS, "max_seq_len": LENGTH, "depth": 1, "heads": 1, "attn_dim_head": 8}
    sides = {f"{side}_{key}": value for side in ("enc", "dec") for key, value in sizes.items()}
    whole = XTransformer(dim=8, tie_token_emb=True, enc_position="rope", dec_position="rope", **sides)
    check_equal(monkeypatch, perturbed(whole), ids(3, 6), ids(3, LENGTH, seed=3))
    assert summed == [True]


def lora(net: TransformerWrapper, layer: str) -> None:
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=[layer], init_lora_weights=False)
    peft.inject_adapter_in_model(config, net)


def opaque(net: TransformerWrapper, layer: str) -> None:
    setattr(net, layer, Opaque(net.get_submodule(layer)))


def in_place(change: Callable[[Any], None]) -> Callable[[TransformerWrapper, str], None]:
    return lambda net, layer: change(net.get_submodule(layer))


WRAPPED = {"opaque": opaque, "lora": lora, "int8": lambda net, layer: quantize(net)}
WRAPPED |= {name: in_place(change) for name, change in IN_PLACE.items() if name != "hooked"}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize(("layer", "flags"), [("to_logits", {}), ("token_emb", TIED)])
def test_a_head_that_is_wrapped_or_changed_is_called_for_each_chunk(
    monkeypatch: pytest.MonkeyPatch, summed: list[bool], kind: str, layer: str, flags: dict[str, Any]
) -> None:
    wrapper = model(**flags)
    WRAPPED[kind](wrapper.net, layer)
    wrapper.double()
    check_equal(monkeypatch, wrapper, ids(3, LENGTH))
    assert summed == [False]


class Doubled(TransformerWrapper):
    """A subclass with logits of its own."""

    def logits(self, x: Tensor) -> Tensor:
        return 2 * super().logits(x)


def hooked(wrapper: AutoregressiveWrapper, module: nn.Module) -> AutoregressiveWrapper:
    module.register_forward_hook(lambda module, args, output: output * 2)
    return wrapper


def test_whoever_reads_or_changes_the_logits_gets_all_of_them(
    monkeypatch: pytest.MonkeyPatch, summed: list[bool]
) -> None:
    tokens = ids(3, LENGTH)
    plain = step(model(), tokens)[0]
    assert summed.pop()
    patched, subclass = model(), model()
    patched.net.logits = lambda x: TransformerWrapper.logits(patched.net, x) * 2
    subclass.net.__class__ = Doubled
    changed = [hooked(w := model(), w.net), hooked(w := model(), w.net.to_logits), patched, subclass]
    doubled = [step(wrapper, tokens)[0].item() for wrapper in changed]
    assert doubled == pytest.approx([doubled[0]] * 4, abs=1e-12)
    assert abs(doubled[0] - plain.item()) > 1e-3
    assert summed == []


def test_transforms_of_torch_func_use_whole_logits(summed: list[bool]) -> None:
    wrapper, tokens = model(), ids(3, LENGTH)
    parameters = {name: p.detach() for name, p in wrapper.named_parameters()}
    found = grad(lambda p: functional_call(wrapper, p, (tokens,)))(parameters)
    assert summed == []
    step(wrapper, tokens)
    close(list(found.values()), [p.grad for p in wrapper.parameters() if p.grad is not None])


COMPILED = ("own matrix, biased, capped", "wrapped", "tied, biased, capped, projected")


@pytest.mark.parametrize(
    ("kind", "backend"),
    draws([(COMPILED[0], "eager")], [(k, b) for k in COMPILED for b in ("eager", "aot_eager", "inductor")]),
)
def test_a_compiled_step_is_one_graph(monkeypatch: pytest.MonkeyPatch, kind: str, backend: str) -> None:
    """For chunks of tensors, of every length: an operator hides their number."""
    torch._dynamo.reset()
    ran, original = [], cross_entropy._sum_of_chunks  # inside of the operator, so it is not compiled
    monkeypatch.setattr(
        cross_entropy, "_sum_of_chunks", lambda *args, **options: ran.append(1) or original(*args, **options)
    )
    wrapper = model(**MODELS.get(kind, {})).train()
    if kind == "wrapped":
        opaque(wrapper.net, "to_logits")
    graphs = CompileCounterWithBackend(backend)
    compiled = torch.compile(wrapper, fullgraph=True, dynamic=kind != "wrapped", backend=graphs)
    for length in (LENGTH,) if kind == "wrapped" else (LENGTH, 8, 7):
        tokens = ids(3, length)
        want = step(wrapper, tokens)
        close([compiled(tokens).detach()], want[:1])
        wrapper.zero_grad()
        compiled(tokens).backward()
        close([p.grad for p in wrapper.parameters() if p.grad is not None], want[1:])
    assert graphs.frame_count <= (1 if backend == "eager" else 2), (
        "with AOTAutograd one for backward too, none a length"
    )
    assert len(ran) == (0 if kind == "wrapped" else 9), "three steps at three lengths"
    torch._dynamo.reset()


def test_blocks_recomputed_in_backward(monkeypatch: pytest.MonkeyPatch, summed: list[bool]) -> None:
    check_equal(monkeypatch, set_activation_checkpointing(model(**TIED).train(), "blocks"), ids(3, LENGTH))
    assert summed == [True]


@pytest.mark.parametrize("kind", ["tensors", "wrapped"])
def test_distributed_training_sees_each_gradient_once(tmp_path: Path, summed: list[bool], kind: str) -> None:
    wrapper, tokens = model(**TIED), ids(3, LENGTH)
    if kind == "wrapped":
        opaque(wrapper.net, "token_emb")
    want = step(wrapper, tokens)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        close(step(DistributedDataParallel(wrapper), tokens), want)
    finally:
        distributed.destroy_process_group()
    assert summed == [kind == "tensors"] * 2


class LargestInside(Largest):
    """Also looks inside of the operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.x_positional.summed_cross_entropy.default:
            with self:
                return cross_entropy._summed._init_fn(*args)
        return super().__torch_dispatch__(func, types, args, kwargs)


def largest(wrapper: AutoregressiveWrapper) -> int:
    """Elements of the largest tensor of a training step."""
    with LargestInside() as found:
        wrapper(ids(9, LENGTH)).backward()
    return found.elements


@pytest.mark.parametrize("kind", ["tensors", "wrapped"])
def test_no_tensor_of_a_training_step_holds_all_logits(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """81 tokens in chunks of 3, with matrices of 8 channels: a vocabulary of V needs 8 V, which grows as V does."""
    for vocabulary in (512, 1024):
        wrapper = model(vocabulary)
        if kind == "wrapped":
            opaque(wrapper.net, "to_logits")
        assert largest(wrapper) == 8 * vocabulary
        with monkeypatch.context() as patch:
            set_fewest(patch, 2**60)
            assert largest(wrapper) == 81 * vocabulary


def test_validation_holds_no_more(monkeypatch: pytest.MonkeyPatch, summed: list[bool]) -> None:
    net, tokens = model(512).net.float(), np.random.default_rng(0).integers(0, 512, 200)
    windows, scores = eval_windows(200, LENGTH, stride=7), []
    options = {"batch_size": 9, "device": torch.device("cpu"), "autocast": torch.autocast("cpu", enabled=False)}
    with LargestInside() as found:
        scores.append(evaluate(net, Split(tokens, None), windows, **options))
    assert found.elements < 90 * 512 / 4
    assert summed == [True] * 4
    set_fewest(monkeypatch, 2**60)
    scores.append(evaluate(net, Split(tokens, None), windows, **options))
    assert scores[0].tokens == scores[1].tokens == 199
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ids(2, 8)}, r"torch.int64 of shape \[2, 9\].*\[2, 8\]"),
        ({"targets": ids(2, 9).int()}, "torch.int64 of shape .*torch.int32"),
        ({"targets": ids(2, 9), "return_embeddings": True}, "return_embeddings=True leaves out them"),
    ],
)
def test_targets_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        language_model()(ids(2, 9), **options)


def test_an_encoder_has_no_loss() -> None:
    encoder = TokenEncoder(num_tokens=NUM_TOKENS, max_seq_len=9, attn_layers=Decoder(dim=8, depth=1, heads=1))
    with pytest.raises(InputError, match="TokenEncoder has none of them"):
        encoder(ids(2, 9), targets=ids(2, 9))
