"""Generation runs as in eval mode, whatever mode the model is in, and switches nothing that others could see."""

import gc
import threading
import weakref
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

from tests.support.draws import draws
from tests.support.generation_models import GREEDY, NUM_TOKENS, ids, perturbed
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper, XTransformer
from x_positional.errors import InputError
from x_positional.generation.eval_mode import in_eval_mode

DROPS = {"ff_dropout": 0.4, "attn_dropout": 0.3}


class Noisy(nn.Module):
    """A module of a user that behaves differently in training mode."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.drop = base, nn.Dropout(0.5)
        self.parts = [self.drop]  # a second way to the same module

    def forward(self, x: Tensor) -> Tensor:
        return self.base(self.parts[0](x)) + (100.0 if self.training else 0.0)


def wrapper(position="rope", **flags) -> AutoregressiveWrapper:
    """Every kind of dropout, and a user's module, in training mode."""
    torch.manual_seed(0)
    layers = Decoder(dim=26, depth=2, heads=3, attn_kv_heads=1, attn_dim_head=10, position=position, **DROPS, **flags)
    net = perturbed(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=48, attn_layers=layers, emb_dropout=0.3))
    net.attn_layers.blocks[1].ff = Noisy(net.attn_layers.blocks[1].ff)
    return AutoregressiveWrapper(net).train()


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def in_eval(model: AutoregressiveWrapper, *args, **options) -> Tensor:
    """What the model gives in eval mode."""
    before = modes(model)
    model.eval()
    tokens = model.generate(*args, **options)
    for part, training in zip(model.modules(), before, strict=True):
        part.training = training
    return tokens


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "dynamic", "forgetting", ["rope", "cope"]], ids=str)
def test_training_mode_gives_what_eval_mode_gives(position) -> None:
    model = wrapper(position)
    model.net.emb_dropout.eval()
    before, want = modes(model), in_eval(model, ids(2, 5), 12, **GREEDY)
    assert torch.equal(model.generate(ids(2, 5), 12, **GREEDY), want)
    assert torch.equal(model.generate(ids(2, 5), 12, cache_kv=False, **GREEDY), want)
    first, cache = model.generate(ids(2, 5), 5, return_cache=True, **GREEDY)
    gc.collect()  # the twin of that call is gone, and its ids may be used again
    assert torch.equal(torch.cat([first, model.generate(None, 7, cache=cache, **GREEDY)], 1), want)
    assert modes(model) == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("training", [True, False])
def test_threads_generate_at_once(training: bool) -> None:
    model, rounds, wrong = wrapper().train(training), draws(3, 30), []
    want = {seed: in_eval(model, ids(2, 5), 8, seed=seed) for seed in range(8)}

    def work(seed: int) -> None:
        for turn in range(rounds):
            if turn % 2:
                got = torch.stack(list(model.stream(ids(2, 5), 8, seed=seed)), 1)
            else:
                got = model.generate(ids(2, 5), 8, seed=seed)
            if not torch.equal(got, want[seed]) or set(modes(model)) != {training}:
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_streams_overlap_and_close_in_any_order() -> None:
    model = wrapper()
    want = in_eval(model, ids(1, 5), 9, seed=3)
    one, two = (model.stream(ids(1, 5), 9, seed=3) for _ in range(2))
    first = [next(one)]
    second = [next(two)]
    assert set(modes(model)) == {True}
    first += [next(one) for _ in range(3)]
    one.close()
    second += list(two)
    assert torch.equal(torch.stack(second, 1), want)
    assert torch.equal(torch.stack(first, 1), want[:, :4])
    assert set(modes(model)) == {True}


def test_a_training_step_between_two_tokens_sees_training_mode() -> None:
    """The stream goes on from a mode that was switched on meanwhile, and does not switch it off."""
    model = wrapper().eval()
    want = in_eval(model, ids(1, 5), 6, **GREEDY)
    stream = model.stream(ids(1, 5), 6, **GREEDY)
    got = [next(stream)]
    model.train()
    got += list(stream)
    assert torch.equal(torch.stack(got, 1), want)
    assert set(modes(model)) == {True}


def test_an_encoder_decoder_in_training_mode() -> None:
    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in {"depth": 1, "heads": 2}.items()}
    sizes = {"enc_num_tokens": 20, "dec_num_tokens": 20, "enc_max_seq_len": 16, "dec_max_seq_len": 16}
    model = perturbed(XTransformer(dim=24, **sides, **sizes, enc_ff_dropout=0.5, dec_attn_dropout=0.5), size=0.3)
    source, start = torch.randint(0, 20, (2, 7)), torch.ones(2, 1, dtype=torch.long)
    want = model.generate(source, start, 8, temperature=0.0)
    assert torch.equal(model.train().generate(source, start, 8, temperature=0.0), want)
    assert set(modes(model)) == {True}


def test_an_eval_model_is_used_itself() -> None:
    """So what torch.compile has compiled is used."""
    model = wrapper().eval()
    assert in_eval_mode(model) is model


def test_a_twin_shares_parameters_and_hooks_and_goes_away() -> None:
    model, calls = wrapper(), []
    model.net.attn_layers.blocks[0].ff.register_forward_hook(lambda *_: calls.append(1))
    twin = in_eval_mode(model)
    assert set(modes(twin)) == {False}
    assert [type(part) for part in twin.modules()] == [type(part) for part in model.modules()]
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert not set(map(id, twin.modules())) & set(map(id, model.modules()))
    assert {id(kind.scheme) for kind in twin.net.attn_layers.kinds} <= set(map(id, twin.modules()))
    twin.net(ids(1, 3))
    assert calls == [1]
    gone = weakref.ref(twin.net)
    del twin
    gc.collect()
    assert gone() is None


def test_a_compiled_model_in_training_mode() -> None:
    model = wrapper()
    want = in_eval(model, ids(1, 5), 4, **GREEDY)
    model.net.attn_layers.blocks[0].compile(backend="eager")
    assert torch.equal(model.generate(ids(1, 5), 4, **GREEDY), want)
    model.net.attn_layers.blocks[1].ff = torch.compile(model.net.attn_layers.blocks[1].ff, backend="eager")
    assert torch.equal(model.generate(ids(1, 5), 4, **GREEDY), want)


def test_a_forward_that_was_replaced() -> None:
    """A method, as accelerate sets it, is bound to the twin; a function may hold the original, which is refused."""
    model = wrapper()
    ff = model.net.attn_layers.blocks[0].ff
    forward = type(ff).forward
    ff.forward = MethodType(lambda self, x: 0.5 * forward(self, x), ff)
    want = in_eval(model, ids(1, 5), 4, **GREEDY)
    assert torch.equal(model.generate(ids(1, 5), 4, **GREEDY), want)
    held = ff.forward
    ff.forward = lambda x: held(x)
    with pytest.raises(InputError, match=r"forward of a FeedForward.*model\.eval\(\)"):
        model.generate(ids(1, 5), 4, **GREEDY)
    assert torch.equal(in_eval(model, ids(1, 5), 4, **GREEDY), want)
