"""The rule of the leaderboard on made-up numbers, where the outcome is known: reproduced, contradicted or neither."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from benchmarks.evidence.claims import CLAIMS
from benchmarks.evidence.drawn import table as drawn_table
from benchmarks.evidence.grid import EXACT
from benchmarks.evidence.pages import leaderboard, missing, ranked, rankings, stability, verdict_table
from benchmarks.evidence.published import extended, in_float32, in_float32_with_first_tokens, streamed
from benchmarks.evidence.reference import TYPES, _loss, _scaled
from benchmarks.evidence.repeated import of_folder
from benchmarks.evidence.repeated import table as repeated_table
from benchmarks.evidence.store import Evidence, Probe, Reference
from benchmarks.evidence.verdicts import Part, Side, Verdict, decide
from x_positional.evidence.comparison.results import Cell, Comparison, Entry
from x_positional.evidence.comparison.statistics import Interval
from x_positional.evidence.evaluation.results import (
    DataSummary,
    Evaluation,
    LengthLoss,
    ModelSummary,
    TaskScore,
)
from x_positional.evidence.extension.results import Attempt, Extension

LENGTHS, SEEDS = (256, 512, 1024), (0, 1, 2)
Bits = Mapping[str, Sequence[float]]
"""Label -> bits per byte at each length."""


def evaluation(losses: Sequence[float | None], lengths: Sequence[int] = LENGTHS) -> Evaluation:
    """Losses in bits per byte, the same in each of four windows but for what their mean does not see."""
    rows = []
    for length, bits in zip(lengths, losses, strict=True):
        nats = None if bits is None else bits * math.log(2)
        windows = () if nats is None else tuple(nats + offset for offset in (-0.1, 0.1, -0.1, 0.1))
        reason = None if nats is not None else "it cannot run here"
        rows.append(LengthLoss(length=length, loss=nats, targets=4, windows=windows, reason=reason))
    model = ModelSummary(name="m", position="p", trained_length=256, parameters=1)
    data = DataSummary(name="d", tokens=1, bytes_per_token=1.0, fingerprint="f")
    return Evaluation(model=model, data=data, protocol="p", lengths=tuple(rows))


def evidence(losses: Bits, spread: float = 0.01, seeds: Sequence[int] = SEEDS) -> Evidence:
    """A comparison; spread: how far each scheme moves from seed to seed, each in its own way."""
    cells = []
    for place, (label, values) in enumerate(losses.items()):
        for seed in seeds:
            own = [bits + spread * math.sin(7 * place + 3 * seed + n) for n, bits in enumerate(values)]
            cells.append(Cell(label=label, seed=seed, status="done", evaluation=evaluation(own)))
    comparison = Comparison(
        name="made up",
        entries=tuple(Entry(label=label, layers={"position": label}) for label in losses),
        seeds=tuple(seeds),
        lengths=LENGTHS,
        trained_length=256,
        equal="tokens",
        steps=1,
        budget_seconds=None,
        config={},
        cells=tuple(cells),
    )
    return Evidence(comparison)


def verdict(name: str, measured: Evidence) -> str:
    claim = next(claim for claim in CLAIMS if claim.name.startswith(name))
    return Verdict(claim, tuple(claim.measure(measured))).word


FLAT, RISING, LOW, HIGH = (2.0, 2.0, 2.0), (2.0, 3.0, 4.0), (2.0, 1.8, 1.8), (2.0, 2.4, 2.4)


@pytest.mark.parametrize(
    ("claim", "losses", "word"),
    [
        ("ALiBi", {"alibi": FLAT, "sinusoidal": RISING}, "reproduced"),
        ("ALiBi", {"alibi": RISING, "sinusoidal": FLAT}, "contradicted"),
        ("ALiBi", {"alibi": FLAT, "sinusoidal": FLAT}, "contradicted"),  # sinusoidal does not rise
        ("ALiBi", {"alibi": FLAT}, "not measured"),
        ("RoPE", {"rope": RISING}, "reproduced"),
        ("RoPE", {"rope": FLAT}, "contradicted"),
        ("Without positions", {"rope": RISING, "none": (2.0, 2.1, 2.5)}, "reproduced"),
        ("Without positions", {"rope": FLAT, "none": RISING}, "contradicted"),
        ("KERPLE", {"alibi": HIGH, "kerple": LOW}, "reproduced"),
        ("KERPLE", {"alibi": LOW, "kerple": HIGH}, "contradicted"),
        ("KERPLE", {"alibi": FLAT, "kerple": FLAT}, "inconclusive on this budget"),
        ("FIRE over A", {"alibi": HIGH, "fire": LOW}, "reproduced"),
        ("FIRE over K", {"kerple": LOW, "fire": HIGH}, "contradicted"),
        ("T5", {"rope": RISING, "sinusoidal": RISING, "t5": HIGH, "alibi": LOW}, "reproduced"),
        ("T5", {"rope": RISING, "sinusoidal": RISING, "t5": LOW, "alibi": HIGH}, "contradicted"),
        ("xPos", {"rope": RISING, "alibi": (2.0, 2.2, 2.2), "xpos": (2.0, 2.1, 2.4)}, "reproduced"),
        ("xPos", {"rope": RISING, "alibi": LOW, "xpos": HIGH}, "contradicted"),
        ("xPos", {"rope": RISING, "alibi": HIGH, "xpos": LOW}, "contradicted"),  # the paper has ALiBi ahead at 4x
        ("Sandwich", {"sandwich": LOW}, "reproduced"),
        ("Sandwich", {"sandwich": RISING}, "contradicted"),
        ("Cable", {"alibi": LOW, "cable": HIGH}, "contradicted"),
        ("Forget", {"rope": RISING, "forgetting": LOW}, "reproduced"),
    ],
)
def test_claims_on_losses(claim: str, losses: Bits, word: str):
    assert verdict(claim, evidence(losses)) == word


def test_noise_between_seeds_leaves_a_claim_open():
    losses = {"alibi": (2.0, 2.02, 2.02), "kerple": FLAT}
    assert verdict("KERPLE", evidence(losses, spread=0.001)) == "reproduced"
    assert verdict("KERPLE", evidence(losses, spread=0.5)) == "inconclusive on this budget"


def test_one_seed_decides_nothing():
    assert verdict("KERPLE", evidence({"alibi": HIGH, "kerple": LOW}, seeds=(0,))) == "not measured"


def extension(inside: Mapping[str, float], outside: Mapping[str, float]) -> Evidence:
    attempts = tuple(
        Attempt(label=label, settings={}, evaluation=evaluation((inside[label], outside[label]), (256, 1024)))
        for label in inside
    )
    found = Extension(name="made up", trained_length=256, target=1024, attempts=attempts, chosen=None)
    return replace(evidence({"rope": FLAT}), extension=found)


def test_claims_on_a_published_checkpoint():
    good, bad = {"none": 2.0, "linear x4": 2.5, "ntk x4": 2.3, "yarn x4": 2.1}, 3.0
    assert verdict("YaRN", extension(good, good)) == "reproduced"
    assert verdict("YaRN", extension(good, {**good, "yarn x4": bad})) == "contradicted"
    assert verdict("YaRN", extension({"none": 2.0}, {"none": 2.0})) == "not measured"
    assert verdict("YaRN", evidence({"rope": FLAT})) == "not measured"


@pytest.mark.parametrize(
    ("window", "kept", "word"),
    [(5.0, 2.1, "reproduced"), (2.0, 2.5, "contradicted"), (2.5, 2.0, "contradicted"), (5.0, None, "not measured")],
)
def test_the_claim_on_first_tokens(window: float, kept: float | None, word: str):
    rows = {"window": evaluation((2.0, window), (256, 1024)), "window-and-first": evaluation((2.0, kept), (256, 1024))}
    assert verdict("Window", replace(evidence({"rope": FLAT}), sinks=rows)) == word
    assert verdict("Window", evidence({"rope": FLAT})) == "not measured"


@pytest.mark.parametrize(
    ("pose", "word"),
    [((2.0, 2.1), "reproduced"), ((2.0, 4.5), "contradicted"), ((3.0, 2.1), "contradicted"), (None, "not measured")],
)
def test_the_claim_on_drawn_positions(pose: tuple[float, float] | None, word: str):
    ways = {"counted": (2.0, 4.0), "random": (2.5, 2.6), **({} if pose is None else {"pose": pose})}
    found = {name: evidence({"rope": (near, 3.0, far)}).comparison for name, (near, far) in ways.items()}
    assert verdict("PoSE", replace(evidence({"rope": FLAT}), positions=found)) == word
    rows = list(drawn_table(replace(evidence({"rope": FLAT}), positions=found)))
    assert len(rows) == 2 + len(ways)
    assert rows[2].startswith("| rope | counted from 0 | 2.0")


def on_tasks(scores: Mapping[str, Sequence[float]], task: str = "copy") -> Evidence:
    """Accuracies at the trained length and at twice that."""
    probes = [
        Probe(
            label=label,
            seed=seed,
            seconds=1.0,
            scores=tuple(
                TaskScore(
                    task=task,
                    length=length,
                    trained=length == 4,
                    accuracy=0.0 if task in EXACT else value - 0.01 * seed,
                    exact=value - 0.01 * seed if task in EXACT else 0.0,
                )
                for length, value in zip((4, 8), values, strict=True)
            ),
        )
        for label, values in scores.items()
        for seed in SEEDS
    ]
    return replace(evidence({"rope": FLAT}), probes=tuple(probes))


def test_claims_on_tasks():
    worst = dict.fromkeys(("sinusoidal", "rope"), (1.0, 0.4))
    copied = {"t5": (1.0, 0.9), "alibi": (1.0, 0.7), "none": (1.0, 0.6), **worst}
    assert verdict("Copy", on_tasks(copied)) == "reproduced"
    assert verdict("Copy", on_tasks({**copied, "none": (1.0, 0.95)})) == "contradicted"
    assert verdict("Copy", on_tasks({**copied, "rope": (1.0, 0.8)})) == "contradicted"
    repeated = {**copied, "alibi": (1.0, 0.95)}
    assert verdict("Repeat", on_tasks(repeated, "repeat")) == "reproduced"
    assert verdict("Repeat", on_tasks(copied, "repeat")) == "contradicted"
    assert verdict("Repeat", on_tasks(repeated)) == "not measured"
    counted = {"none": (1.0, 0.9), "t5": (1.0, 0.7), "alibi": (1.0, 0.5), **worst}
    assert verdict("One symbol", on_tasks(counted, "one_symbol")) == "reproduced"
    assert verdict("One symbol", on_tasks({**counted, "t5": (1.0, 1.0)}, "one_symbol")) == "contradicted"


def test_a_task_that_was_not_learned_decides_nothing():
    others = dict.fromkeys(("none", "alibi", "sinusoidal", "rope"), (1.0, 0.4))
    assert verdict("Copy", on_tasks({"t5": (0.5, 0.1), **others})) == "inconclusive on this budget"


@pytest.mark.parametrize(
    ("mean", "half", "side", "holds"),
    [
        (0.3, 0.1, "above", True),
        (0.3, 0.1, "below", False),
        (0.1, 0.1, "above", None),
        (0.0, 0.01, "above", False),
        (0.0, 0.01, "below", True),
        (0.3, None, "above", None),
    ],
)
def test_a_part_holds_where_its_whole_interval_is_on_the_claimed_side(
    mean: float, half: float | None, side: Side, holds: bool | None
):
    assert Part("made up", Interval(mean, 3, half), side, bound=0.05).holds is holds


def test_a_failed_part_contradicts_even_beside_a_missing_one():
    failed = Part("made up", Interval(-1.0, 3, 0.1), "above")
    assert decide([Part("missing", None, "above"), failed]) == "contradicted"
    assert decide([]) == "not measured"


def test_tables_rank_by_the_loss_past_the_trained_length_and_name_what_is_missing():
    measured = evidence({"rope": RISING, "alibi": FLAT, "none": HIGH})
    gone = Cell(label="absolute", seed=0, status="done", evaluation=evaluation((1.0, None, None)))
    comparison = measured.comparison.model_copy(
        update={
            "cells": (*measured.comparison.cells, gone),
            "entries": (Entry(label="absolute", layers={}), *measured.comparison.entries),
        }
    )
    measured = replace(measured, comparison=comparison)
    assert ranked(measured) == ["alibi", "none", "rope", "absolute"]
    assert [row.split(" | ")[0] for row in leaderboard(measured)[2:]] == ["| alibi", "| none", "| rope", "| absolute"]
    assert list(missing(measured)) == ["- absolute (512, 1,024): it cannot run here"]
    table = verdict_table([Verdict(claim, tuple(claim.measure(measured))) for claim in CLAIMS])
    assert len(table) == 2 + len(CLAIMS)


def test_the_stability_is_the_rank_correlation_of_two_seeds():
    losses = {name: (2.0 + place, 2.0 + place, 2.0 + place) for place, name in enumerate("abcdef")}
    same = rankings(evidence(losses), 512)
    assert [found.value for found in same.values() if found] == [1.0, 1.0, 1.0]
    mixed = rankings(evidence(losses, spread=20.0), 512)
    assert all(found is not None and found.value < 1.0 for found in mixed.values())
    assert len(stability(evidence(losses))) == 2 + len(LENGTHS)
    assert rankings(evidence({"a": FLAT}), 512)[0, 1] is None


def test_one_seed_again_on_another_machine():
    here = evidence({"a": (1.0, 2.0, 3.0), "b": (2.0, 3.0, 4.0), "c": (3.0, 4.0, 5.0)}, spread=0.0)
    there = of_folder(
        evidence({"a": (1.1, 2.0, 5.5), "b": (2.1, 3.2, 4.5), "c": (3.1, 4.0, 3.5)}, spread=0.0, seeds=(0,))
    )
    assert (there.seed, there.seconds.keys()) == (0, {"a", "b", "c"})
    assert list(repeated_table(replace(here, repeated=there)))[2:] == [
        "| 256 | 0.100 | 0.000 | 1.000 |",
        "| 512 | 0.067 | 0.000 | 1.000 |",
        "| 1,024 | 1.500 | 0.000 | -1.000 |",
    ]


def test_the_table_of_longer_contexts_beside_transformers():
    losses = {"none": 2.0, "yarn x4": 2.1}
    measured = extension(losses, {"none": 8.0, "yarn x4": 2.2})
    windows = {"none": {256: (2.0 * math.log(2),) * 4, 1024: (8.0 * math.log(2) * 1.01,) * 4}}
    exact = {"x_positional": 5.5, "transformers": 5.50001}
    measured = replace(measured, reference=Reference(losses=windows, float32=exact))
    assert "In float32 it is 5.50000 in the first window, and 5.50001 in transformers." in "".join(in_float32(measured))
    rows = list(extended(measured))
    assert rows[2] == "| none | 1.386 | 5.545 |  | within 1.00 % |"
    assert rows[3].startswith("| yarn x4 | 1.456 | 1.525 | +0.069 ± 0.000 |")
    assert rows[3].endswith("|  |")  # transformers was not measured with it
    assert list(extended(evidence(losses={"rope": FLAT}))) == ["Not measured yet."]


def test_the_table_with_first_tokens():
    measured = extension({"none": 2.0, "keep_first": 2.0}, {"none": 4.0, "keep_first": 2.5}).extension
    rows = list(in_float32_with_first_tokens(replace(evidence({"rope": FLAT}), streaming=measured)))
    assert [row.split(" | ")[0] for row in rows[3:]] == ["| none", "| keep_first"]
    assert rows[4] == f"| keep_first | {2.0 * math.log(2):.3f} | {2.5 * math.log(2):.3f} |"
    assert "in float32 on 4 windows of text" in rows[0]
    assert not list(in_float32_with_first_tokens(evidence({"rope": FLAT})))


def test_the_table_of_windows():
    rows = {"window": evaluation((2.0, 5.0), (256, 1024)), "window-and-first": evaluation((2.0, None), (256, 1024))}
    table = list(streamed(replace(evidence({"rope": FLAT}), sinks=rows), window=64, first=4))
    assert table[0] == "| attention sees | 256 | 1,024 |"
    assert [row.split("|")[1].strip() for row in table[2:]] == ["the last 64", "the first 4 and the last 60"]
    assert table[3].endswith("| – |")


def test_transformers_scales_by_itself():
    """A tiny checkpoint with transformers' own scalings, against x_positional's on the same windows."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=32)
    published = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    made = Extension(name="made up", trained_length=32, target=64, attempts=(), chosen=None)
    ids = torch.randint(40, (1, 64))
    losses = {kind: _loss(_scaled(published, kind, made), ids, 8) for kind in TYPES.values()}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert len(set(losses.values())) == len(TYPES)
