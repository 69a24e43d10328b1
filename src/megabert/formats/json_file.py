"""JSON objects that others wrote: of a bounded size, and with one clear line when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 16 << 20


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ValueError: the file is missing, too large, no JSON, or not an object.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: {path.name} is missing") from None
    if size > _LARGEST:
        raise ValueError(f"{path} is too large for what it should be")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is JSON but not an object")
    return value
