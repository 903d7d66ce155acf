"""The doors of docs/doors.md: each uses one model in one tool, and compares the tool's numbers with x_positional's own.

A door is a function of a model in float64 and an empty folder. It measures the largest difference, and raises an
XPositionalError, or Refused, where the combination is refused. `open_door` makes a cell of either; everything else is a failure.
"""

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.doors_fsdp import trained_in_shards
from tests.support.doors_training import ANSWERS, RATE, STEPS, TEXTS, trained
from tests.support.generation_models import NUM_TOKENS, SCHEMES, ids, language_model, perturbed
from x_positional import AutoregressiveWrapper, ExportedStep, TransformerWrapper, export_step
from x_positional.config.models import ModelConfig
from x_positional.errors import XPositionalError
from x_positional.models.language import build_model
from x_positional.schemes.rotary.rope import Rope
from x_positional.schemes.rotary.scaling.length import DynamicNtk
from x_positional.testing.cases import SHORT

RECOMPUTED = Rope(scaling=DynamicNtk(original_max_position_embeddings=9, length_policy="recompute"))
ROWS: dict[str, dict[str, Any]] = {
    **{name: {"position": SHORT[name].scheme if name in SHORT else name} for name in SCHEMES},
    "absolute + alibi": {"position": ["absolute", "alibi"]},
    "rope + t5": {"position": ["rope", "t5"]},
    "rope + forgetting": {"position": ["rope", "forgetting"]},
    "rope, dynamic NTK, recomputed": {"position": RECOMPUTED},
    "pattern: rope in a window, none": {"pattern": [{"window": 4}, {"position": "none"}]},
    "pattern: alibi, cope": {"position": None, "pattern": [{"position": "alibi"}, {"position": "cope"}]},
}
"""Flags of the model in each row of the table."""
TESTED = ("rope", "alibi", "t5", "cope", "forgetting", "pattern: rope in a window, none")
"""Rows that every run of the tests measures."""

LENGTH = 14
"""Tokens of the longest row."""
PADDED = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
"""[B T] a mask with left padding, as for `generate` of transformers."""


SINGLE = 2e-6
"""The bound of a result of this size that is computed in float32 once."""


class Refused(Exception):
    """A tool that cannot take the model, in its own words."""


@dataclass(frozen=True)
class Cell:
    """What came of one model in one tool: a difference within the bound, or a refusal."""

    difference: float | None = None
    note: str | None = None
    """Why it is refused, or what the difference was measured under."""


Door = Callable[[TransformerWrapper, Path], Cell]


def model_of(row: str) -> TransformerWrapper:
    """The model of a row of the table: two layers, float64, every parameter perturbed."""
    return language_model(**ROWS[row])


def tied(position: str) -> TransformerWrapper:
    """A model whose logits are those of the embedding."""
    layers = language_model(position).config.layers
    config = ModelConfig(num_tokens=NUM_TOKENS, max_seq_len=48, tie_embedding=True, layers=layers)
    return perturbed(build_model(config))


def open_door(name: str, net: TransformerWrapper, folder: Path) -> Cell:
    """Uses a model in one tool of DOORS.

    Raises:
        AssertionError: a number differs by more than the bound of the door.
    """
    try:
        with _quiet():
            cell = DOORS[name](net, folder)
    except (XPositionalError, Refused) as error:
        return Cell(note=" ".join(str(error).split()))
    return checked(name, cell)


def checked(name: str, cell: Cell) -> Cell:
    """A cell whose difference is within the bound of its column. Raises AssertionError."""
    if cell.difference is not None:
        assert cell.difference <= BOUNDS[name], f"differs by {cell.difference}, beyond {BOUNDS[name]}"
    return cell


@contextmanager
def _quiet():
    """Without what the tools print, log and warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where shapes differ or a result is no number."""
    if got.shape != expected.shape:
        return float("inf")
    difference = (got.double() - expected.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def in_transformers(net: TransformerWrapper, folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    """The model read by an Auto class of transformers from a folder with a module of its own beside the weights."""
    import transformers

    net.save_pretrained(folder, format="hf", code=True)
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()


def letters(**special: str) -> Any:
    """A tokenizer of the 26 letters and the space, as transformers', with ids below NUM_TOKENS.

    special: further roles of the tokens `<pad>` and `<eos>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = [*"abcdefghijklmnopqrstuvwxyz ", "<pad>", "<eos>"]
    assert len(alphabet) == NUM_TOKENS
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(alphabet)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", padding_side="left", **special
    )


@torch.no_grad()
def auto_model(net: TransformerWrapper, folder: Path) -> Cell:
    """Logits with left padding. The loss of labels is transformers' own, in float32."""
    hf, tokens = in_transformers(net, folder), ids(2, 6)
    got, want = hf(tokens, attention_mask=PADDED.long()).logits, net(tokens, mask=PADDED)
    assert apart(hf(tokens, labels=tokens).loss, AutoregressiveWrapper(net)(tokens)) < SINGLE
    return Cell(apart(got[PADDED], want[PADDED]))


@torch.no_grad()
def cached_generate(net: TransformerWrapper, folder: Path) -> Cell:
    """Greedy decoding: the logits of every step are those of a pass over the tokens so far of each row alone, without a cache."""
    hf, tokens, new = in_transformers(net, folder), ids(2, 6), LENGTH - 6
    got: list[Tensor] = []  # what `generate` itself returns is rounded to float32
    hf.register_forward_hook(lambda module, inputs, out: got.append(out.logits[:, -1]))
    out = hf.generate(
        tokens, attention_mask=PADDED.long(), max_new_tokens=new, do_sample=False, return_dict_in_generate=True
    )
    rows = [row[int((~mask).sum()) :] for row, mask in zip(out.sequences, PADDED, strict=True)]
    want = torch.stack(
        [torch.stack([net(row[None, :n])[0, -1] for n in range(len(row) - new, len(row))]) for row in rows]
    )
    assert torch.equal(out.sequences[:, 6:], want.argmax(-1))
    if cacheable(net):
        assert out.past_key_values.get_seq_length() == LENGTH - 1
        return Cell(apart(torch.stack(got, 1), want))
    assert out.past_key_values is None
    return Cell(apart(torch.stack(got, 1), want), "without a cache: cached keys would change as the sequence grows")


def cacheable(net: TransformerWrapper) -> bool:
    """Whether keys stay right as the sequence grows."""
    return all(scheme.capabilities().kv_cacheable for scheme in net.attn_layers.position_schemes)


def trainer_of(hf: Any, folder: Path, steps: int = STEPS, **options: Any) -> Any:
    """transformers' Trainer, in two micro-batches a step, with the optimizer of `trained`."""
    from transformers import Trainer, TrainingArguments

    defaults = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    data: Any = [{"input_ids": row, "labels": labels} for row, labels in zip(TEXTS, ANSWERS, strict=True)]
    return Trainer(hf, TrainingArguments(str(folder), **{**defaults, **options}), train_dataset=data)


def trainer(net: TransformerWrapper, folder: Path) -> Cell:
    """Three steps of Trainer with gradient accumulation give the model of three steps of x_positional on the whole batch."""
    from transformers import AutoModelForCausalLM

    run = trainer_of(in_transformers(net, folder / "start"), folder / "run")
    run.train()
    run.save_model(str(folder / "end"))
    again = AutoModelForCausalLM.from_pretrained(folder / "end", trust_remote_code=True).eval()
    ours = trained(net)
    with torch.no_grad():
        return Cell(apart(again(TEXTS).logits, ours(TEXTS)))


def fsdp(net: TransformerWrapper, folder: Path) -> Cell:
    """Two processes with sharded parameters and half of the rows each (`run.parallel: fsdp`) give the model of one process."""
    return sharded_cells({"": net}, folder)[""]


def sharded_cells(nets: dict[str, TransformerWrapper], folder: Path) -> dict[str, Cell]:
    """The cells of `fsdp` for several models, from one pair of processes."""
    cells = {}
    for name, outcome in trained_in_shards(nets, folder).items():
        if isinstance(outcome, str):
            cells[name] = Cell(note=outcome)
            continue
        got = copy.deepcopy(nets[name])
        got.load_state_dict(outcome, strict=True)
        with torch.no_grad():
            cells[name] = Cell(apart(got(TEXTS), trained(nets[name])(TEXTS)))
    return cells


def lora(hf: Any, **options: Any) -> Any:
    """LoRA on every linear layer, with random factors, so that the adapter changes the logits from the start."""
    import peft

    config = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(hf, peft.LoraConfig(**{**config, **options}))


def train_adapter(adapted: Any, steps: int = 2) -> Any:
    """Steps of SGD on the parameters that have a gradient."""
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(input_ids=TEXTS, labels=ANSWERS).loss.backward()
        optimizer.step()
    return adapted.eval()


def peft_lora(net: TransformerWrapper, folder: Path) -> Cell:
    """LoRA: without the adapter logits are the model's; saved, loaded and merged they are those of the trained adapter."""
    import peft
    from transformers import AutoModelForCausalLM

    adapted = train_adapter(lora(in_transformers(net, folder / "base")).train())
    with torch.no_grad():
        want, before = adapted(input_ids=TEXTS).logits, net(TEXTS)
        assert apart(want, before) > 1e-3
        with adapted.disable_adapter():
            differences = [apart(adapted(input_ids=TEXTS).logits, before)]
        adapted.save_pretrained(folder / "adapter")
        base = AutoModelForCausalLM.from_pretrained(folder / "base", trust_remote_code=True).eval()
        again = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
        differences.append(apart(again(input_ids=TEXTS).logits, want))
        differences.append(apart(again.merge_and_unload()(TEXTS).logits, want))
    return Cell(max(differences))


REQUESTS = (("the cat", " sat on"), ("a", " b"), ("positions", " of"))
"""Contexts and continuations, of different lengths."""


@torch.no_grad()
def log_likelihoods(net: TransformerWrapper, tokenizer: Any) -> Tensor:
    """The log-probability of each continuation of REQUESTS, in nats, one row at a time."""
    sums = []
    for context, continuation in REQUESTS:
        row, count = tokenizer(context + continuation)["input_ids"], len(tokenizer(continuation)["input_ids"])
        tokens = torch.tensor([row])
        log_probs = net(tokens[:, :-1])[0].log_softmax(-1).gather(-1, tokens[0, 1:, None])
        sums.append(log_probs[-count:].sum())
    return torch.stack(sums)


def lm_eval_requests(net: TransformerWrapper, folder: Path) -> Cell:
    """The log-likelihoods that `lm_eval --model hf` computes, in batches where the scheme allows them."""
    instance: Any = importlib.import_module("lm_eval.api.instance").Instance
    hf_lm: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    net.save_pretrained(folder, format="hf", code=True)
    tokenizer = letters()
    tokenizer.save_pretrained(folder)
    note = None if cacheable(net) else "with batch_size=1: lm-eval pads batches on the right and passes no mask"
    batch = 2 if note is None else 1
    lm = hf_lm(pretrained=str(folder), trust_remote_code=True, dtype="auto", batch_size=batch, device="cpu")
    requests = [instance("loglikelihood", {}, request, i) for i, request in enumerate(REQUESTS)]
    got = torch.tensor([value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)], dtype=torch.float64)
    return Cell(apart(got, log_likelihoods(net, tokenizer)), note)


def _prefix(net: TransformerWrapper) -> tuple[Any, Tensor]:
    """A cache of fixed size that has read a left-padded prefix, and the mask of the prefix with the tokens after it."""
    cache = net.new_cache(2, max_len=LENGTH)
    net(ids(2, 6), mask=PADDED, cache=cache)
    return cache, torch.cat([PADDED, torch.ones(2, LENGTH - 6, dtype=torch.bool)], 1)


@torch.no_grad()
def torch_export(net: TransformerWrapper, folder: Path) -> Cell:
    """The decoding step as a program of torch.export, step by step against one pass over the whole row."""
    cache, mask = _prefix(net)
    tokens, step = torch.cat([ids(2, 6), ids(2, LENGTH - 6, seed=5)], 1), export_step(net, cache)
    run, state, got = step.program.module(), step.state(cache), []
    for i in range(6, LENGTH):
        logits, state = run(tokens[:, i], state)
        got.append(logits)
    return Cell(apart(torch.stack(got, 1), net(tokens, mask=mask)[:, 6:]))


@torch.no_grad()
def onnx(net: TransformerWrapper, folder: Path) -> Cell:
    """The decoding step in ONNX Runtime, in float32, step by step against one pass in float64."""
    narrow = copy.deepcopy(net).float()
    cache, mask = _prefix(narrow)
    tokens, step = torch.cat([ids(2, 6), ids(2, LENGTH - 6, seed=5)], 1), export_step(narrow, cache)
    feed, got = {name: t.numpy() for name, t in step.state(cache).items()}, []
    try:
        session = onnx_session(step, list(feed))
    except torch.onnx.OnnxExporterError as error:
        raise Refused(_root(error)) from error
    for i in range(6, LENGTH):
        logits, *new = session.run(None, {"token": tokens[:, i].numpy(), **feed})
        feed = dict(zip(feed, new, strict=True))
        got.append(torch.from_numpy(logits))
    return Cell(apart(torch.stack(got, 1), net(tokens, mask=mask)[:, 6:]))


def onnx_session(step: ExportedStep, names: list[str]) -> Any:
    """The step in ONNX Runtime, by the recipe of docs/how-to/export-a-decoding-step.md.

    Raises:
        torch.onnx.OnnxExporterError: the converter lacks an operator.
    """
    import onnxruntime

    outputs = ["logits", *(f"new_{name}" for name in names)]
    options: dict[str, Any] = {"input_names": ["token", *names], "output_names": outputs, "verbose": False}
    program = torch.onnx.export(step.program, dynamo=True, **options)
    assert program is not None
    file: Any = io.BytesIO()
    program.save(file)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def _root(error: BaseException) -> str:
    """The first line of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return "torch.onnx: " + str(error).split(". ")[0].splitlines()[0]


DOORS: dict[str, Door] = {
    "AutoModel": auto_model,
    "generate with cache": cached_generate,
    "Trainer": trainer,
    "FSDP": fsdp,
    "PEFT": peft_lora,
    "lm-eval": lm_eval_requests,
    "torch.export": torch_export,
    "ONNX": onnx,
}
"""The columns of the table."""
NEEDS = {"lm-eval": "lm_eval"}
"""Packages that the tests do without, by column."""
BOUNDS: dict[str, float] = {**dict.fromkeys(DOORS, 1e-9), "Trainer": SINGLE, "ONNX": 2e-5}
"""The largest difference: rounding in float64; and in float32 for Trainer, whose loss is, and ONNX, whose model is."""
