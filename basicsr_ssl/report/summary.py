"""The summary of a recipe, for programs and for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from basicsr_ssl.files import write_text
from basicsr_ssl.report.rows import Row
from basicsr_ssl.report.tables import format_summary


def write_summary(folder: str | os.PathLike, rows: Sequence[Row]) -> str:
    """Write ``summary.json`` (the rows) and ``summary.md`` (the table).

    Args:
        folder: where to; made if needed.
        rows: see ``basicsr_ssl.report.rows``. NaN and infinity, which JSON does not have, are written as null.

    Returns:
        The table's text.

    Raises:
        OSError: a file could not be written.
    """
    text = format_summary(rows)
    write_text(os.path.join(folder, 'summary.json'), json.dumps(finite(list(rows)), indent=2, allow_nan=False) + '\n')
    write_text(os.path.join(folder, 'summary.md'), text + '\n')
    return text


def finite(value: Any) -> Any:
    """Nested containers with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
