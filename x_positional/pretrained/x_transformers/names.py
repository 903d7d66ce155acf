"""What the tensors of x-transformers are called here: one table, and the order of grouped heads."""

from dataclasses import dataclass

from x_positional.schemes.absolute import LearnedAbsolute, ScaledSinusoidalEmbedding
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.cope import CopeScores
from x_positional.schemes.dynamic_bias import DynamicBias
from x_positional.schemes.forgetting import ForgettingBias
from x_positional.schemes.rotary.polar import PolarEmbedding
from x_positional.schemes.t5 import T5Bias


@dataclass(frozen=True)
class Named:
    """theirs: a pattern of their name. ours: our name, with the groups of the pattern. scheme: the name is inside the scheme
    of this class, that of the block where each has its own. heads: the axis that counts query heads, in their order."""

    theirs: str
    ours: str
    heads: int | None = None
    scheme: type[PositionScheme] | None = None


NAMES: tuple[Named, ...] = (
    Named(r"token_emb\.emb\.weight", "token_emb.weight"),
    Named(r"pos_emb\.emb\.weight", "table", scheme=LearnedAbsolute),
    Named(r"pos_emb\.scale", "scale", scheme=ScaledSinusoidalEmbedding),
    Named(r"post_emb_norm\.gamma", "emb_norm.gain"),
    Named(r"project_emb\.(weight|bias)", r"project_emb.\1"),
    Named(r"project_(in|out)\.weight", r"project_\1.weight"),
    Named(r"to_logits\.weight", "to_logits.weight"),
    Named(r"attn_layers\.final_norm\.(?:gamma|g)", "attn_layers.final_norm.gain"),
    Named(r"attn_layers\.polar_pos_emb\.learned_bias", "delta", scheme=PolarEmbedding),
    Named(r"attn_layers\.rel_pos\.relative_attention_bias\.weight", "table", 1, T5Bias),
    Named(r"attn_layers\.rel_pos\.mlp\.(\d+)\.0\.(weight|bias)", r"\1.linear.\2", None, DynamicBias),
    Named(r"attn_layers\.rel_pos\.mlp\.(\d+)\.1\.(?:weight|gamma)", r"\1.norm.weight", None, DynamicBias),
    Named(r"attn_layers\.rel_pos\.mlp\.(\d+)\.1\.bias", r"\1.norm.bias", None, DynamicBias),
    Named(r"attn_layers\.rel_pos\.mlp\.(\d+)\.(weight|bias)", r"\1.linear.\2", 0, DynamicBias),
    Named(r"patch_to_embedding\.0\.gamma", "patch_embedding.pixel_norm.weight"),
    Named(r"patch_to_embedding\.1\.(weight|bias)", r"patch_embedding.project.\1"),
    Named(r"patch_to_embedding\.2\.gamma", "patch_embedding.norm.weight"),
    Named(r"pos_embedding", "patch_table.table"),
    Named(r"register_tokens", "register_tokens"),
    Named(r"mlp_head\.(weight|bias)", r"to_logits.\1"),
    Named(r"(.+)\.0\.0\.(?:gamma|g)", r"\1_residual.before.gain"),
    Named(r"(.+)\.0\.1\.(?:gamma|g)", r"\1_residual.after.gain"),
    Named(r"(.+)\.0\.2\.(?:gamma|g)", r"\1_residual.outer.gain"),
    Named(r"(.+)\.1\.to_q\.weight", r"\1.to_q.weight", 0),
    Named(r"(.+)\.1\.to_([kv])\.weight", r"\1.to_\2.weight"),
    Named(r"(.+)\.1\.to_out\.weight", r"\1.to_out.weight", 1),
    Named(r"(.+)\.1\.q_rmsnorm\.gamma", r"\1.q_norm.gain", 0),
    Named(r"(.+)\.1\.k_rmsnorm\.gamma", r"\1.k_norm.gain"),
    Named(r"(.+)\.1\.attend\.head_attn_sink", r"\1.sinks", 0),
    Named(r".+\.1\.attend\.cope\.pos_emb", "table", None, CopeScores),
    Named(r".+\.1\.data_dependent_alibi\.to_forget_gates\.0\.(weight|bias)", r"gate.\1", 0, ForgettingBias),
    Named(r"(.+)\.1\.ff\.0\.(?:0|proj)\.(weight|bias)", r"\1.up.\2"),
    Named(r"(.+)\.1\.ff\.2\.(weight|bias)", r"\1.down.\2"),
)
"""A block's names come as `attn_layers.blocks.0.attn.1.to_q.weight`: the branch in place of their running number."""

BRANCHES = {"a": "attn", "c": "cross", "f": "ff"}
CONSTANTS = r"attn_layers\.(rotary|polar)_pos_emb\.(inv_freq|scale)"
"""What is no weight: x-transformers saves its tables of frequencies."""
