"""Where a published model is: a folder here, or a name on the Hugging Face Hub."""

from pathlib import Path

from x_positional.errors import PretrainedError

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
"""What is fetched: never a pickle."""


def located(source: str | Path) -> Path:
    """The folder of `source`. A name as `org/model` is fetched once and kept. Raises PretrainedError."""
    folder = Path(source).expanduser()
    if folder.exists():
        return folder
    text = str(source)
    if isinstance(source, Path) or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise PretrainedError(f"{source} cannot be read:", ["there is no such file or folder."])
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise PretrainedError(
            f"{source} cannot be read:",
            [
                "there is no such folder here, and fetching it from the Hub needs huggingface_hub: pip install huggingface_hub"
            ],
        ) from error
    try:
        return Path(snapshot_download(text, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's client has many: no such model, no network, no permission
        raise PretrainedError(
            f"{source} cannot be read:", [f"there is no such folder here, and the Hub says: {error}"]
        ) from error
