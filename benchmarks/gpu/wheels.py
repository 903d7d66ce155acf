"""Packages for a machine without a network: wheels from a folder, unpacked to where Python finds them."""

import sys
import zipfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("torch", "einops", "pydantic", "typing_extensions", "yaml", "safetensors", "rich")
"""Modules that x_positional imports."""
DOWNLOAD = (
    "pip download -d wheels --only-binary=:all: --python-version {version} --platform manylinux2014_x86_64 "
    "pydantic==2.12.5 (and other packages that are named here)"
)


def fits(wheel: Path) -> bool:
    """Whether this Python can load a wheel, by the tags in its name: name-version-python-abi-platform.whl."""
    python, abi, platform = wheel.stem.split("-")[-3:]
    major, minor = sys.version_info[:2]
    versions = python.split(".")
    own = f"cp{major}{minor}" in versions or "py3" in versions or ("abi3" in abi and versions[0].startswith("cp3"))
    return own and (platform == "any" or sys.platform.split("-")[0][:3] in platform)


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of a folder that fit this Python; returns their names. Exits where there are none."""
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if fits(wheel)]
    if not wheels:
        version = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(f"--wheels {folder}: no wheel for Python {version} there. {DOWNLOAD.format(version=version)}")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [wheel.name for wheel in wheels]


def missing(modules: Iterable[str] = NEEDED) -> list[str]:
    """The modules that Python does not find."""
    return [name for name in modules if find_spec(name) is None]
