"""Settings in environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def path_in(setting: str) -> Path:
    """The path in a setting; ~ stands for a home folder, as in a shell."""
    return Path(os.path.expanduser(setting))


def folder_setting(name: str) -> Path | None:
    """The folder that a variable names; None if it is unset or empty."""
    chosen = os.environ.get(name)
    return path_in(chosen) if chosen else None
