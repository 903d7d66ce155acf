"""The rows: what is measured, by whom. One entry a row; the identifiers are the keys of the record."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from x_positional.evidence.benchmark.models import OURS, Shape
from x_positional.evidence.benchmark.work import Work

DECODERS = ("x-transformers", "transformers", OURS)
COMPILED, INT8 = f"{OURS} compiled", f"{OURS} int8"
SMALL = Shape(dim=128, depth=4, heads=2, vocab=512)
BILLION = Shape(dim=2048, depth=16, heads=32, vocab=32000)
BIASES = ("alibi", "t5", "dynamic", "forgetting", "polar", "cope")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    id: str
    title: str
    group: str
    """The table it belongs to."""
    work: Work
    sides: tuple[str, ...]
    scheme: str = "rotary"
    shape: Shape = field(default_factory=Shape)
    dtype: str = "float32"
    seconds: float = 15.0
    """How long it may take after its warm-up; at least two rounds are measured."""
    cuda: bool = False
    """Measured on CUDA alone; the other rows are those of a CPU."""
    more: bool = False
    """Left out by default: no target needs it."""


def quick_rows() -> list[Row]:
    """A few small rows, under a minute together."""
    shape = Shape(dim=256, depth=4, heads=4, vocab=2048)
    sides = ("x-transformers", "transformers", OURS)
    decode, train = Work(kind="decode", length=32, new=32), Work(kind="train", length=256)
    common = {"shape": shape, "seconds": 2.5}
    return [
        Row(id="quick-decode-b1", title="decode, batch 1", group="decode", work=decode, sides=sides, **common),
        Row(id="quick-train-rotary", title="train, rotary", group="train", work=train, sides=sides, **common),
        *(
            Row(
                id=f"quick-train-{scheme}",
                title=f"train, {scheme}",
                group="train",
                work=train,
                sides=("x-transformers", OURS, f"{OURS} none"),
                scheme=scheme,
                **common,
            )
            for scheme in ("alibi", "t5")
        ),
        Row(
            id="quick-rotate",
            title="rotate queries, 256 tokens",
            group="rotate",
            work=Work(kind="rotate", length=256),
            sides=("rotary-embedding-torch", OURS),
            **common,
        ),
    ]


def full_rows() -> list[Row]:
    """Every row of docs/performance.md, the quickest to show something first."""
    return [*_decode_rows(), *_train_rows(), *_memory_rows(), *_growth_rows(), *_rotate_rows(), *_cuda_rows()]


def _decode_rows() -> Iterator[Row]:
    def row(id: str, title: str, work: Work, group: str = "decode", **other: object) -> Row:
        return Row(**{"id": id, "title": title, "group": group, "work": work, "sides": DECODERS, **other})  # type: ignore[arg-type]

    one, eight = Work(kind="decode", length=32, new=64), Work(kind="decode", batch=8, length=32, new=32)
    smol = Work(kind="decode", length=32, new=24)
    both = (*DECODERS, COMPILED)
    with_static = (*DECODERS[:2], "transformers static", OURS, COMPILED, INT8, f"{INT8} compiled")
    yield row("decode-b1", "decode, batch 1", one, sides=with_static)
    yield row("decode-b8", "decode, batch 8", eight, sides=(*both, f"{INT8} compiled"))
    without_x_transformers = (*both[1:], INT8, f"{INT8} compiled")
    yield row("decode-smollm2", "decode, SmolLM2-135M", smol, scheme="smollm2", sides=without_x_transformers)
    yield row("decode-b1-bf16", "decode, batch 1, bfloat16", one, dtype="bfloat16", sides=both, more=True)
    yield row("decode-small", "decode, batch 1, 1 M parameters", one, shape=SMALL, sides=both, seconds=8.0, more=True)
    many = Work(kind="decode", batch=32, length=32, new=16)
    yield row("decode-b32", "decode, batch 32", many, "decode", sides=both, more=True)
    for length in (256, 1024, 4096):
        work = Work(kind="decode", length=length, new=32)
        where = f"decode after {length} tokens"
        yield row(f"decode-context-{length}", where, work, "decode by context", more=length == 1024, seconds=10.0)
    for depth in (2, 12):
        shape = Shape(depth=depth)
        name = f"decode-depth-{depth}"
        yield row(name, f"decode, depth {depth}", one, "decode by depth", shape=shape, seconds=8.0, more=True)


def _train_rows() -> Iterator[Row]:
    step = Work(kind="train", length=1024)
    peers = ("x-transformers", "transformers", OURS)
    yield Row(id="train-rotary", title="train, rotary", group="train", work=step, sides=peers)
    for scheme in (*BIASES, "xpos", "scaled_sinusoidal", "absolute"):
        yield Row(
            id=f"train-{scheme}",
            title=f"train, {scheme}",
            group="train",
            work=step,
            sides=("x-transformers", OURS, f"{OURS} none"),
            scheme=scheme,
            seconds=10.0,
            more=scheme not in BIASES,
        )
    for scheme in BIASES:
        yield Row(
            id=f"train-4096-{scheme}",
            title=f"train, {scheme}, 4096 tokens",
            group="train, 4096 tokens",
            work=Work(kind="train", length=4096),
            sides=(OURS, f"{OURS} none"),
            scheme=scheme,
        )


def _memory_rows() -> Iterator[Row]:
    yield Row(
        id="memory-rotary-1024",
        title="peak memory of a training step, rotary, 1024 tokens",
        group="memory",
        work=Work(kind="train", length=1024),
        sides=("x-transformers", "transformers", OURS),
        seconds=10.0,
        more=True,
    )
    for scheme in ("t5", "dynamic", "alibi", "forgetting", "cope"):
        for length, sides in ((1024, ("x-transformers", OURS)), (2048, (OURS,))):
            yield Row(
                id=f"memory-{scheme}-{length}",
                title=f"peak memory of a training step, {scheme}, {length} tokens",
                group="memory",
                work=Work(kind="train", length=length),
                sides=sides,
                scheme=scheme,
                seconds=10.0,
            )


def _growth_rows() -> Iterator[Row]:
    for length in (512, 1024, 2048, 4096, 8192):
        yield Row(
            id=f"forward-rotary-{length}",
            title=f"forward, rotary, {length} tokens",
            group="forward by length",
            work=Work(kind="forward", length=length),
            sides=("x-transformers", "transformers", OURS),
            seconds=6.0,
            more=length != 1024,
        )
    for scheme in ("alibi", "t5"):
        for length in (512, 2048, 8192):
            yield Row(
                id=f"forward-{scheme}-{length}",
                title=f"forward, {scheme}, {length} tokens",
                group="forward by length",
                work=Work(kind="forward", length=length),
                sides=("x-transformers", OURS, f"{OURS} none"),
                scheme=scheme,
                seconds=6.0,
                more=True,
            )


def _rotate_rows() -> Iterator[Row]:
    for length in (512, 4096):
        yield Row(
            id=f"rotate-{length}",
            title=f"rotate queries, {length} tokens",
            group="rotate",
            work=Work(kind="rotate", length=length),
            sides=("rotary-embedding-torch", OURS),
            seconds=3.0,
        )


def _cuda_rows() -> Iterator[Row]:
    def row(name: str, title: str, work: Work, sides: tuple[str, ...], scheme: str = "rotary") -> Row:
        what = {"id": f"cuda-{name}", "title": title, "group": "1 B parameters", "work": work, "sides": sides}
        return Row(**what, scheme=scheme, shape=BILLION, dtype="bfloat16", cuda=True, seconds=10.0)  # type: ignore[arg-type]

    one, step = Work(kind="decode", length=32, new=64), Work(kind="train", length=4096)
    yield row("decode", "decode, batch 1", one, ("transformers", OURS, COMPILED))
    yield row("train-rotary", "train, rotary", step, ("transformers", OURS))
    for scheme in ("alibi", "t5"):
        yield row(f"train-{scheme}", f"train, {scheme}", step, (OURS, f"{OURS} none"), scheme)
