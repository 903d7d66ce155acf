"""An extended model as a folder: for transformers where its config can express the method, otherwise in x_positional's format."""

from pathlib import Path

from x_positional.errors import PretrainedError
from x_positional.evidence.extension.methods import for_transformers
from x_positional.evidence.extension.rebuild import with_config
from x_positional.models.language import TransformerWrapper


def write_extended(model: TransformerWrapper, folder: Path) -> str | None:
    """Write config and weights; the reason why transformers cannot read them, None where it can.

    Raises:
        PretrainedError: The folder cannot be written.
    """
    try:
        with_config(model, for_transformers(model.config)).save_pretrained(folder, format="hf", code=False)
    except PretrainedError as reason:
        model.save_pretrained(folder, format="native")
        return str(reason)
    return None
