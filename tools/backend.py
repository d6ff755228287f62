"""The backend of the build: setuptools', which is also asked for a compiler's needs where there is something to compile.

`setup.py` says when that is. The requirements of an ordinary build stay as few as they are.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """What an isolated build installs first."""
    needs: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if os.environ.get("DRAKKAR_COMPILE") != "1":
        return needs
    settings = tomllib.loads(Path("pyproject.toml").read_text())
    # The compiler checks types first, and for that it reads the libraries that are imported.
    return [*needs, *settings["tool"]["drakkar"]["compiler"], *settings["project"]["dependencies"]]
