"""Settings in environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def folder_setting(name: str) -> Path | None:
    """The folder that a variable names, in which ~ stands for a home folder, as in a shell; None: it names none."""
    chosen = os.environ.get(name)
    return Path(os.path.expanduser(chosen)) if chosen else None
