"""Linear layers and embeddings replaced by modules that wrap them: peft's LoRA, quantized layers, parametrizations, hooks.

A wrapped model equals the plain model that has the same maps as matrices, in full, in prefill and in cached decoding. Everything is
in float64, compared within the rounding of float32.
"""

import ast
import copy
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import x_positional
from tests.support.draws import draws
from tests.support.rounding import rounding
from tests.support.small_models import NUM_TOKENS, close, decoder, ids
from tests.support.wrapped_layers import IN_PLACE, Opaque, Transposed, replace_all, targets, unmodified
from x_positional import Encoder, TransformerWrapper, ViTransformerWrapper, XTransformer
from x_positional.errors import InputError
from x_positional.modules.latent_attention import LatentAttention
from x_positional.schemes.registry import REGISTRY
from x_positional.testing.cases import SchemeCase, cases
from x_positional.testing.subject import Sizes, Subject

SCHEMES = draws([*sorted(REGISTRY.keys() - {"custom"}), "rope + forgetting", "absolute + deberta"], list(cases()))
MLA = {"attn": {"mla": {"kv_rank": 5, "rope_dim": 4, "value_dim": 3, "q_rank": 6}}}
SIDE = {"num_tokens": NUM_TOKENS, "depth": 1, "heads": 3, "attn_dim_head": 8, "max_seq_len": 32, "position": "rope"}
MODELS: dict[str, Callable[[], TransformerWrapper]] = {
    "deberta with biases": lambda: decoder("deberta", attn={"bias": True, "qk_norm": "rms"}),
    "deberta, own projections": lambda: decoder("deberta", attn={"position_projections": True}),
    "dynamic, tied": lambda: wrapper("dynamic", tie_embedding=True, emb_dim=16, logits_proj=True, logits_bias=True),
    "forgetting, token types, head": lambda: wrapper("forgetting", token_types=2, head={"activation": "gelu"}),
    "latent attention, tied": lambda: wrapper({"kind": "rope", "dim": 4}, tie_embedding=True, layers=MLA),
    "experts": lambda: decoder("rope", ff={"moe": {"experts": 4, "top_k": 2, "shared": 8, "shared_gate": True}}),
}


def wrapper(position, *, layers=None, **flags) -> TransformerWrapper:
    """As `decoder`, with flags of the wrapper."""
    plain = decoder(position, **(layers or {}))
    net = TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=300, attn_layers=plain.attn_layers, **flags).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) * 0.2)
    return net


def lora(model: nn.Module, **options) -> peft.PeftModel:
    """LoRA on every linear layer and embedding, with random matrices, so that it changes the output."""
    names = targets(model)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


def idle(model: nn.Module) -> list[str]:
    """Adapters that got no gradient."""
    return [n for n, p in model.named_parameters() if "lora_" in n and (p.grad is None or not p.grad.any())]


def cached(model: nn.Module, tokens: Tensor) -> Tensor:
    """The logits of a prefill, a chunk and single tokens."""
    cache = model.new_cache(tokens.shape[0])
    cuts = [tokens[:, :9], tokens[:, 9:11], *tokens[:, 11:].split(1, dim=1)]
    return torch.cat([model(part, cache=cache) for part in cuts], dim=1)


def check_against(wrapped: nn.Module, plain: nn.Module, before: Tensor, tokens: Tensor) -> None:
    """Equal outputs, which differ from those before the change."""
    got, want = wrapped(tokens), plain(tokens)
    assert (want - before).abs().max() > 100 * rounding(want), "the change has no effect, so nothing was tested"
    close(got, want)
    close(cached(wrapped, tokens), want)
    close(cached(plain, tokens), want)


@pytest.mark.parametrize("name", SCHEMES)
def test_lora_of_every_scheme(name: str) -> None:
    """Merged equals unmerged, cached equals full, and gradients reach every adapter."""
    case: SchemeCase = cases()[name]
    subject = Subject(case.scheme, case.sizes or Sizes(), torch.device("cpu"))
    model, tokens = subject.fresh(subject.kinds[0]).double(), subject.tokens(14, batch=2)
    before, adapted = model(tokens).detach(), lora(copy.deepcopy(model))
    logits = adapted(tokens)
    logits.square().mean().backward()
    adapters = [n for n, _ in adapted.named_parameters() if "lora_" in n]
    assert len(adapters) == 2 * len(targets(model))
    assert not idle(adapted)
    with torch.no_grad():
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert (merged(tokens) - before).abs().max() > 100 * rounding(before)
        close(logits, merged(tokens))
        if subject.kinds[0] == "decoder" and subject.capabilities().kv_cacheable:
            close(cached(adapted, tokens), merged(tokens))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("make", [Opaque, Transposed])
def test_a_module_without_a_weight_to_read(name: str, make: type) -> None:
    model, tokens = MODELS[name]().double(), ids(2, 14)
    before = model(tokens)
    replace_all(model, make)
    plain = copy.deepcopy(model)
    for path, module in list(plain.named_modules()):
        if isinstance(module, make):
            parent, _, leaf = path.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, module.merged())
    assert not any(isinstance(module, make) for module in plain.modules())
    check_against(model, plain, before, tokens)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", draws([name for name in MODELS if "own" not in name and name != "experts"], list(MODELS))
)
@pytest.mark.parametrize("change", IN_PLACE)
def test_a_layer_changed_in_place(name: str, change: str) -> None:
    model, tokens = MODELS[name]().double(), ids(2, 14)
    before = model(tokens)
    for path in targets(model):
        IN_PLACE[change](model.get_submodule(path))
    plain = copy.deepcopy(model)
    replace_all(plain, unmodified)
    check_against(model, plain, before, tokens)


@pytest.mark.parametrize("position", [{"kind": "rope", "dim": 4}, "alibi", "cope", "forgetting"])
def test_lora_of_latent_attention(position) -> None:
    """Decoding a long text, where plain layers are absorbed into the queries and wrapped ones are called."""
    model, tokens = decoder(position, **MLA).double(), ids(2, 14)
    before, adapted = model(tokens).detach(), lora(copy.deepcopy(model))
    cached(adapted, tokens).square().mean().backward()
    assert not idle(adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    attention = merged.attn_layers.blocks[0].attn
    assert isinstance(attention, LatentAttention)
    assert attention._absorbs(1, 14)
    assert attention._from_latent() is not None
    assert adapted.base_model.model.attn_layers.blocks[0].attn._from_latent() is None
    with torch.no_grad():
        check_against(adapted, merged, before, tokens)


@torch.no_grad()
def test_lora_of_an_encoder_decoder_with_a_shared_embedding() -> None:
    """peft wraps a shared module in one place; the model refuses to run until both sides have it."""
    torch.manual_seed(0)
    sides = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in SIDE.items()}
    model = XTransformer(dim=24, tie_token_emb=True, dec_tie_embedding=True, **sides).double().eval()
    source, target = ids(2, 7), ids(2, 9)
    before, adapted = model.logits(source, target), lora(copy.deepcopy(model))
    inner = adapted.base_model.model
    for call in (lambda: inner(source, target), lambda: inner.generate(source, target[:, :1], 3)):
        with pytest.raises(InputError, match=r"decoder\.net\.token_emb = model\.encoder\.token_emb"):
            call()
    inner.decoder.net.token_emb = inner.encoder.token_emb
    merged = copy.deepcopy(adapted)
    merged.merge_adapter()
    got, want = inner.logits(source, target), merged.base_model.model.logits(source, target)
    assert (got - before).abs().max() > 100 * rounding(got)
    close(got, want)
    steps = {"seq_len": 6, "temperature": 0.0}
    texts = [m.generate(source, target[:, :2], **steps, cache_kv=c) for m in (inner, merged) for c in (True, False)]
    assert all(torch.equal(text, texts[0]) for text in texts)


@torch.no_grad()
def test_lora_of_the_stacked_weights_of_experts() -> None:
    """peft wraps the module that owns them, and parametrizes them while it runs."""
    model, tokens = MODELS["experts"]().double(), ids(2, 14)
    names = ["experts.up", "experts.down"]
    config = peft.LoraConfig(r=2, target_modules=["to_qkv"], target_parameters=names, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    merged = copy.deepcopy(adapted).merge_and_unload()
    check_against(adapted, merged, model(tokens), tokens)
    assert "for one token" in adapted.base_model.model.describe()


@torch.no_grad()
def test_lora_of_images() -> None:
    torch.manual_seed(0)
    layers = Encoder(dim=24, depth=2, heads=3, head_dim=8, position="axial")
    model = ViTransformerWrapper(image_size=12, patch_size=4, attn_layers=layers, num_classes=5).double().eval()
    image = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    before, adapted = model(image), lora(copy.deepcopy(model))
    got = adapted(image)
    assert (got - before).abs().max() > 100 * rounding(got)
    close(got, adapted.merge_and_unload()(image))


def test_no_weight_is_read_elsewhere() -> None:
    """In everything that runs a model, a layer's weight is read through `plain_weight` alone, and its sizes not at all.

    Quantizing and resizing read them once: they change those that are plain, and refuse wrapped ones.
    """
    own = {"plain.py", "quantized.py", "resize.py"}
    names = {"weight", "in_features", "out_features", "num_embeddings", "embedding_dim"}
    found = []
    for folder in ("attention", "generation", "models", "modules", "schemes"):
        for path in sorted((Path(x_positional.__file__).parent / folder).rglob("*.py")):
            if not any(f".{name}" in (text := path.read_text()) for name in names):
                continue
            tree = ast.parse(text)
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            init = {id(a) for call in calls if ast.unparse(call.func).startswith("nn.init.") for a in call.args}
            found += [
                f"{path.name}: {ast.unparse(node)}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and node.attr in names and id(node) not in init
                if ast.unparse(node) != "self.weight" and path.name not in own
            ]
    assert not found
