"""mBART: BART with norms before the branches, and one after the last layer."""

from x_positional.pretrained.families.bart import (
    BART,
    EMB_NORMS,
    FINAL_NORMS,
    LEARNED,
    TABLES,
    bart_codecs,
    bart_names,
    fixed_norms,
)
from x_positional.pretrained.family import Family

MBART = Family(
    model_type="mbart",
    architecture="MBartForConditionalGeneration",
    kind="seq2seq",
    codecs=bart_codecs(*fixed_norms("layers.norm", "emb_norm"), *LEARNED),
    names={**bart_names("before"), **EMB_NORMS, **FINAL_NORMS, **TABLES},
    optional=BART.optional,
    copies=BART.copies,
    aliases=BART.aliases,
    ignored_keys=BART.ignored_keys,
    ignored_tensors=BART.ignored_tensors,
)
