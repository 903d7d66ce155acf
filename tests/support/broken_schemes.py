"""Which check must reject which broken scheme, and the reason it must give."""

from dataclasses import dataclass

from tests.support.broken_attention import (
    BatchMean,
    ColumnSinusoidal,
    DetachedT5,
    FixedTable,
    GridStatistic,
    GrowingBase,
    HalfGradient,
    LeakyCope,
    NarrowSums,
    NeedlesslyUncacheable,
    NeedlesslyUneven,
    QuietCope,
    SlotAlibi,
    SlotOrderCope,
    StaleCacheKey,
    StashedGates,
    UncachedGates,
    ZeroedTable,
)
from tests.support.broken_positions import (
    BufferedRope,
    ClampedTable,
    CountsCalls,
    FalselyAbsolute,
    FalselyOrdered,
    FalselyRelative,
    FirstAxisRope,
    HalfAngles,
    HalfGates,
    IndexAlibi,
    LooksAtPositions,
    MatmulAngles,
    NeedlesslyCausal,
    NeedlesslyLimited,
    NeedlesslyWhole,
    NumberedCells,
    OneSidedT5,
    OverstatedLimit,
    RandomSlopes,
    RoundedRope,
    SecretReader,
    SharedTable,
    SlopeFunction,
    TensorRope,
    TextOnTimeAxis,
)
from x_positional.schemes.base import PositionScheme


@dataclass(frozen=True)
class BrokenCase:
    """A broken scheme, the check that must reject it, and a part of the message."""

    scheme: type[PositionScheme]
    check: str
    message: str


BROKEN = [
    BrokenCase(QuietCope, "hooks_run", "transform_scores"),
    BrokenCase(GridStatistic, "backends_agree", "and eager"),
    BrokenCase(DetachedT5, "gradients_agree", "no gradient reaches"),
    BrokenCase(ZeroedTable, "gradients_agree", "is zero"),
    BrokenCase(HalfGradient, "gradcheck", "finite differences"),
    BrokenCase(GrowingBase, "cached_equals_full", "growing cache"),
    BrokenCase(UncachedGates, "cached_equals_full", "growing cache"),
    BrokenCase(NeedlesslyUncacheable, "cached_equals_full", "kv_cacheable=False is declared"),
    BrokenCase(StaleCacheKey, "cached_equals_full", "where the cache key changes"),
    BrokenCase(FixedTable, "cache_grows", "141 tokens"),
    BrokenCase(SlotOrderCope, "sliding_windows", "window"),
    BrokenCase(StashedGates, "cache_reorders", "rows"),
    BrokenCase(GrowingBase, "prefix_consistent", "8 of 19"),
    BrokenCase(LeakyCope, "prefix_consistent", "other tokens after the first"),
    BrokenCase(NeedlesslyUneven, "prefix_consistent", "longer texts do not change their prefix"),
    BrokenCase(BatchMean, "batch_independent", "alone"),
    BrokenCase(SlotAlibi, "padding", "padding between"),
    BrokenCase(ColumnSinusoidal, "padding", "padding left"),
    BrokenCase(SlotAlibi, "ragged_decoding", "padding"),
    BrokenCase(LeakyCope, "packing", "packed documents"),
    BrokenCase(NarrowSums, "packing", "changing the first document changed the others"),
    BrokenCase(FalselyAbsolute, "shift", "no shift changes"),
    BrokenCase(FalselyRelative, "shift", "absolute=False"),
    BrokenCase(ClampedTable, "limit", "and from 11520 on"),
    BrokenCase(NeedlesslyLimited, "limit", "past it work too"),
    BrokenCase(OverstatedLimit, "limit", "IndexError"),
    BrokenCase(IndexAlibi, "custom_positions", "with gaps"),
    BrokenCase(SecretReader, "custom_positions", "uses_positions=False"),
    BrokenCase(RoundedRope, "float_positions", "fractional"),
    BrokenCase(NeedlesslyWhole, "float_positions", "continuous=False"),
    BrokenCase(FirstAxisRope, "axes", "axis 1 of 2"),
    BrokenCase(TextOnTimeAxis, "axes", "equal on all axes"),
    BrokenCase(NumberedCells, "axes", "axis 0 moved by 1000"),
    BrokenCase(OneSidedT5, "order", "after the query"),
    BrokenCase(FalselyOrdered, "order", "before the query"),
    BrokenCase(NeedlesslyCausal, "order", "works without a causal mask"),
    BrokenCase(SlotAlibi, "cross_attention", "context moved"),
    BrokenCase(HalfAngles, "precision", "embed at positions from 250"),
    BrokenCase(MatmulAngles, "precision", "under autocast"),
    BrokenCase(HalfGates, "precision", "content_bias"),
    BrokenCase(BufferedRope, "precision", "rotate_q"),
    BrokenCase(BufferedRope, "no_buffers", "buffers: schemes.0.table"),
    BrokenCase(TensorRope, "no_buffers", "not parameters"),
    BrokenCase(TensorRope, "meta_init", ""),
    BrokenCase(RandomSlopes, "state_dict", "after load_state_dict"),
    BrokenCase(SlopeFunction, "copies", "pickle"),
    BrokenCase(SharedTable, "copies", "after its copy was changed"),
    BrokenCase(LooksAtPositions, "compiles", "data-dependent"),
    BrokenCase(CountsCalls, "compiles_decoding", "graphs were compiled"),
]
