"""Names on the Hugging Face Hub, and its errors in one line."""

import re
from pathlib import Path

_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_hub_name(name: str) -> bool:
    """Whether `name` can only be a name on the Hub, `owner/name`: it does not exist here, and neither does a folder `owner`."""
    path = Path(name)
    return _NAME.fullmatch(name) is not None and not path.exists() and not path.parent.exists()


def one_line(error: Exception) -> str:
    """The message of another library's error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
