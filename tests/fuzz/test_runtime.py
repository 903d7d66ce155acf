"""Random inputs of a call, half of them junk: each is refused with an error of the package, or its answer is right.

The reference of an accepted forward pass runs every document of every row alone, without mask, padding or packing; that of
`generate` runs one full pass per token.
"""

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, language_model, naive
from x_positional import AutoregressiveWrapper, TransformerWrapper, XPositionalError

FORWARDS, CHUNKS, LOSSES, GENERATES = draws((90, 40, 40, 40), (2500, 900, 800, 700))
INTEGER_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16)
BOUND = 1e-8

JUNK: list[Any] = [
    True,
    "abc",
    b"abc",
    7,
    -1,
    1.5,
    float("nan"),
    {},
    {"a": 1},
    [],
    [[]],
    [None],
    [[1], [2, 3]],
    [["a"]],
    (),
    object(),
    2**70,
    [2**70],
    1j,
    np.array(["a", "b"]),
    np.array([object()]),
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(2, 0),
    torch.zeros(0, 5, dtype=torch.long),
    torch.zeros(2, 3, 4, 5),
    torch.zeros(2, 5, dtype=torch.complex64),
    torch.full((2, 5), float("inf")),
    torch.full((2, 5), -5),
    torch.full((2, 5), 2**62),
    torch.eye(5).to_sparse(),
    torch.nn.Parameter(torch.zeros(2, 5)),
    lambda: None,
    type,
]


@pytest.fixture(scope="module")
def models() -> dict[str, TransformerWrapper]:
    kinds: dict[str, dict[str, Any]] = {"rope": {}, "alibi": {}, "t5": {}, "absolute": {}, "forgetting": {}}
    built = {name: language_model(name, max_seq_len=24, depth=1) for name in kinds}
    built["windowed"] = language_model("rope", max_seq_len=24, depth=1, window=3)
    return built


class Case:
    """One call, drawn from a seed: a batch of tokens and options, some replaced by junk."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.batch, self.length = self.random.randint(1, 3), self.random.randint(1, 7)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.torch)

    def spelled(self, value: Tensor) -> Any:
        """A tensor, an array or lists of the same values."""
        forms = [value, value, value.numpy(), value.tolist()]
        if value.dtype == torch.long and value.numel() and int(value.min()) >= 0 and int(value.max()) < 100:
            forms.append(value.to(self.random.choice(INTEGER_DTYPES)))
        return self.random.choice(forms)

    def maybe_junk(self, value: Tensor, share: float = 0.1) -> Any:
        """The value, or junk, or the value with a wrong shape or dtype."""
        if not self.chance(share):
            return self.spelled(value)
        wrong = [value[..., :-1], value[None], value.float(), value.bool(), value.double() * 1.5, value.flatten()]
        return self.random.choice(JUNK if self.chance(0.6) else wrong)

    def tokens(self) -> Tensor:
        return self.integers(0, NUM_TOKENS, self.batch, self.length)

    def mask(self) -> Tensor:
        if self.chance(0.3):
            return self.integers(0, 2, self.batch, self.length).bool()
        lengths = self.integers(0, self.length + 1, self.batch, 1)
        place = torch.arange(self.length).expand(self.batch, -1)
        return place < lengths if self.chance(0.5) else place >= self.length - lengths

    def positions(self) -> Tensor:
        if self.chance(0.3):
            return torch.rand(self.batch, self.length, generator=self.torch) * 9
        given = self.integers(0, 20, self.batch, self.length)
        return torch.where(self.integers(0, 4, self.batch, self.length) == 0, -1, given) if self.chance(0.4) else given

    def documents(self) -> Tensor:
        return self.integers(0, 3, self.batch, self.length).sort(dim=1).values

    def seq_lens(self) -> Any:
        if self.chance(0.2):
            return self.random.choice([[1.5], [True] * self.length, [[self.length], 3], "abc", 3, [0, self.length], {}])
        rows = []
        for _ in range(self.batch):
            left, row = self.length, []
            while left:
                row.append(self.random.randint(1, left))
                left -= row[-1]
            rows.append(row)
        return self.random.choice([rows[0], rows, np.array(rows[0]), torch.tensor(rows[0])])

    def inputs(self) -> dict[str, Any]:
        """Arguments of a forward pass."""
        given: dict[str, Any] = {"tokens": self.maybe_junk(self.tokens())}
        if self.chance(0.5):
            given["mask"] = self.maybe_junk(self.mask())
        if self.chance(0.3):
            given["positions"] = self.maybe_junk(self.positions())
        if self.chance(0.3):
            given["document_ids"] = self.maybe_junk(self.documents())
        elif self.chance(0.2):
            given["seq_lens"] = self.seq_lens()
        return given


def as_rows(value: Any, batch: int = -1) -> Tensor:
    """What a caller meant, [B T] or [B T A], read independently of the package."""
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    tensor = tensor[None] if tensor.ndim == 1 else tensor
    return tensor.expand(batch, *tensor.shape[1:])


class Meaning:
    """An accepted call, row by row: the real tokens, their documents and positions."""

    def __init__(self, given: dict[str, Any]):
        self.tokens = as_rows(given["tokens"]).long()
        batch, length = self.tokens.shape
        self.present = torch.ones(batch, length, dtype=torch.bool)
        self.positions = self.documents = None
        if given.get("positions") is not None:
            self.positions = as_rows(given["positions"], batch)
            self.positions = self.positions[..., 0] if self.positions.ndim == 3 else self.positions
        if given.get("mask") is not None:
            self.present = as_rows(given["mask"], batch).bool()
        if self.positions is not None and not self.positions.is_floating_point():
            self.present = self.present & (self.positions != -1)
        if given.get("document_ids") is not None:
            self.documents = as_rows(given["document_ids"], batch).long()
        elif given.get("seq_lens") is not None:
            lens = given["seq_lens"]
            lens = lens.tolist() if isinstance(lens, Tensor | np.ndarray) else lens
            rows = lens if isinstance(lens[0], list) else [lens] * batch
            self.documents = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in rows])

    def pieces(self, row: int) -> list[list[int]]:
        """The places of each document's tokens."""
        places = self.present[row].nonzero().flatten().tolist()
        if self.documents is None:
            return [places] if places else []
        found: dict[int, list[int]] = {}
        for place in places:
            found.setdefault(int(self.documents[row, place]), []).append(place)
        return list(found.values())


@torch.no_grad()
def reference(net: TransformerWrapper, meaning: Meaning) -> dict[tuple[int, int], Tensor]:
    """The logits [V] of every real token (row, place), from each document alone."""
    logits = {}
    for row in range(len(meaning.tokens)):
        for places in meaning.pieces(row):
            positions = None if meaning.positions is None else meaning.positions[row, places][None]
            if positions is not None and not positions.is_floating_point():
                positions = positions.long()
            out = net(meaning.tokens[row, places][None], positions=positions)[0]
            logits |= {(row, place): out[i] for i, place in enumerate(places)}
    return logits


def check_forward(net: TransformerWrapper, case: Case) -> str:
    """ "right" or "refused". Fails on anything else."""
    given = case.inputs()
    cached = case.chance(0.3)
    if cached:
        given["cache"] = case.random.choice([True, "abc", net.new_cache(case.batch), net.new_cache(case.batch + 1)])
    try:
        with torch.no_grad():
            out = net(**given)
    except XPositionalError:
        return "refused"
    expected = reference(net, Meaning(given))
    for (row, place), logits in expected.items():
        torch.testing.assert_close(out[row, place], logits, atol=BOUND, rtol=0, msg=lambda m: f"{m}\n{given}")
    assert out.isfinite().all()
    return "right"


def check_chunks(net: TransformerWrapper, case: Case) -> str:
    """The same inputs in chunks of any length, through a cache."""
    given = case.inputs()
    try:
        with torch.no_grad():
            net(**given)
    except XPositionalError:
        return "refused"
    meaning, outs = Meaning(given), []
    batch, length = meaning.tokens.shape
    cache = net.new_cache(batch, max_len=case.random.choice([None, None, length, length + 3]))
    edges = sorted({0, length, *(case.random.randint(0, length) for _ in range(2))})
    whole = {name: as_rows(value, batch) for name, value in given.items() if name != "seq_lens"}
    if meaning.documents is not None:
        whole["document_ids"] = meaning.documents
    for start, stop in pairwise(edges):
        with torch.no_grad():
            outs.append(net(**{name: value[:, start:stop] for name, value in whole.items()}, cache=cache))
    out = torch.cat(outs, dim=1)
    for (row, place), logits in reference(net, meaning).items():
        torch.testing.assert_close(out[row, place], logits, atol=BOUND, rtol=0, msg=lambda m: f"{m}\n{edges} {given}")
    return "right"


def check_loss(net: TransformerWrapper, case: Case) -> str:
    given = case.inputs()
    if case.chance(0.4):
        labels = torch.where(case.integers(0, 3, case.batch, case.length) == 0, -100, case.tokens())
        given["labels"] = case.maybe_junk(labels)
    try:
        with torch.no_grad():
            loss = AutoregressiveWrapper(net)(**given)
    except XPositionalError:
        return "refused"
    meaning = Meaning(given)
    targets = meaning.tokens if "labels" not in given else as_rows(given["labels"]).long()
    documents = torch.zeros_like(targets) if meaning.documents is None else meaning.documents
    logits, nats = reference(net, meaning), []
    for row in range(len(targets)):
        for t in range(1, targets.shape[1]):
            seen = meaning.present[row, t] and meaning.present[row, t - 1]
            if seen and documents[row, t] == documents[row, t - 1] and targets[row, t] != -100:
                nats.append(-float(logits[row, t - 1].log_softmax(-1)[targets[row, t]]))
    expected = sum(nats) / len(nats) if nats else 0.0
    assert float(loss) == pytest.approx(expected, abs=BOUND), given
    return "right"


def options_of(case: Case) -> dict[str, Any]:
    """Arguments of generate, each valid more often than not."""
    choices: dict[str, list[Any]] = {
        "seq_len": [0, 1, 3, 5, -1, 1.5, True, "3", None],
        "eos_token": [None, 3, [3, 5], torch.tensor([4]), "a", True, -1, NUM_TOKENS, 1.5, []],
        "temperature": [0.0, 0.0, 0, 1.0, -1.0, "a", float("nan"), True],
        "filter_logits_fn": [
            None,
            "top_k",
            ["top_k", "top_p"],
            "topk",
            3,
            lambda x: x,
            lambda x: x[:, :3],
            lambda x: 0,
        ],
        "filter_kwargs": [None, {"k": 3}, {"k": 1000}, {"k": True}, 5, [None], {"a": 1}],
        "restrict_to_max_seq_len": [True, False, "no", 1, None],
        "cache_kv": [True, False, 0, "yes"],
        "repetition_penalty": [1.0, 1.2, 0, "a", None],
        "seed": [0, 1, 2**63, -1, "a", 1.0, True, 2**65],
        "generator": [None, torch.Generator().manual_seed(0), 3],
        "cache": [None, True, "abc", {}],
        "return_cache": [False, True, "no", 0],
    }
    picked = {"seq_len": 3, "temperature": 0.0, "filter_logits_fn": None}
    for name in case.random.sample(sorted(choices), case.random.randint(0, 4)):
        picked[name] = case.random.choice(choices[name])
    return picked


def prompts_of(case: Case) -> Any:
    tokens = case.tokens()
    ragged = [case.integers(0, NUM_TOKENS, case.random.randint(1, 5)) for _ in range(case.batch)]
    valid = [
        tokens,
        tokens[0],
        tokens.tolist(),
        tokens.numpy(),
        ragged,
        [row.tolist() for row in ragged],
        tokens[0].tolist(),
    ]
    return case.random.choice(
        valid if case.chance(0.8) else [*JUNK, tokens + NUM_TOKENS, tokens.float(), tokens[None], None]
    )


def check_generate(net: TransformerWrapper, case: Case) -> str:
    prompts, options = prompts_of(case), options_of(case)
    try:
        out = AutoregressiveWrapper(net).generate(prompts, **options)
    except XPositionalError:
        return "refused"
    out = out[0] if options.get("return_cache") else out
    flat = isinstance(prompts, Tensor | np.ndarray) or isinstance(prompts[0], int)
    rows = list(as_rows(prompts)) if flat else [torch.as_tensor(row) for row in prompts]
    out = out[None] if out.ndim == 1 else out
    assert len(out) == len(rows), (prompts, options)
    assert not out.numel() or (int(out.min()) >= 0 and int(out.max()) < NUM_TOKENS)
    if options["temperature"] == 0 and callable(options["filter_logits_fn"]) is False:
        eos = options.get("eos_token")
        ends = set() if eos is None else set(torch.as_tensor(eos).flatten().tolist())
        for row, drawn in zip(rows, out, strict=True):
            free = naive(net, row.long(), options["seq_len"], options.get("repetition_penalty", 1.0)).tolist()
            stop = next((i + 1 for i, token in enumerate(free) if token in ends), len(free))
            wanted = [*free[:stop], *[0] * (len(free) - stop)][: len(drawn)]
            assert drawn.tolist() == wanted, (prompts, options)
    return "right"


@pytest.mark.parametrize(
    ("check", "count", "names"),
    [
        (check_forward, FORWARDS, ("rope", "alibi", "t5", "absolute", "forgetting", "windowed")),
        (check_chunks, CHUNKS, ("rope", "alibi", "t5", "absolute", "forgetting", "windowed")),
        (check_loss, LOSSES, ("rope", "alibi", "forgetting")),
        (check_generate, GENERATES, ("rope", "alibi", "t5")),
    ],
)
def test_every_call_is_right_or_refused(models, check, count: int, names: tuple[str, ...]) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        case = Case(seed)
        try:
            outcomes[check(models[case.random.choice(names)], case)] += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert min(outcomes["right"], outcomes["refused"]) > count / 10, outcomes
