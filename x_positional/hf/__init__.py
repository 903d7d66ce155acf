"""Any model of x_positional as a model of transformers. Importing this registers its classes with the Auto classes.

`AutoModelForCausalLM.from_pretrained(folder)` then reads what `model.save_pretrained(folder, format="hf", code=True)` wrote, and
x_positional's own format too. Without this import, pass `trust_remote_code=True`.
"""

from x_positional.errors import MissingExtra, import_extra

OLDEST = (5, 8)
"""The first version of transformers whose `generate` calls models as the current one does."""

_transformers = import_extra("transformers", "x_positional.hf needs", "hf")
if tuple(map(int, _transformers.__version__.split(".")[:2])) < OLDEST:
    raise MissingExtra(
        f"x_positional.hf needs transformers {'.'.join(map(str, OLDEST))} or newer, and {_transformers.__version__} is "
        "installed: pip install -U transformers"
    )

from x_positional.hf.caching import XPositionalCache  # noqa: E402 -- after the check
from x_positional.hf.configuration import XPositionalConfig  # noqa: E402
from x_positional.hf.language import XPositionalForCausalLM, XPositionalForMaskedLM, XPositionalModel  # noqa: E402
from x_positional.hf.seq2seq import XPositionalForSeq2SeqLM  # noqa: E402

_transformers.AutoConfig.register(XPositionalConfig.model_type, XPositionalConfig, exist_ok=True)
for _model in (XPositionalModel, XPositionalForCausalLM, XPositionalForMaskedLM, XPositionalForSeq2SeqLM):
    getattr(_transformers, _model.auto_class).register(XPositionalConfig, _model, exist_ok=True)

__all__ = [
    "XPositionalCache",
    "XPositionalConfig",
    "XPositionalForCausalLM",
    "XPositionalForMaskedLM",
    "XPositionalForSeq2SeqLM",
    "XPositionalModel",
]
