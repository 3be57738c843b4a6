"""What a row of a summary is, and which figures it holds.

A row is a dict: ``network`` (its label), ``params``, ``params_with_flow``, ``macs``, ``macs_with_flow``,
``ms_per_frame``, ``psnr``, ``ssim``, and optionally ``metrics`` (``{test set: {metric: value}}``), ``measured``
(``{test set: how}``, in words), ``lr_size`` and ``device``. A figure that is unknown is None or absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

Row = Mapping[str, Any]


def figures(row: Row) -> dict[str, float | None]:
    """All figures of a row by name.

    A test set's metrics are named ``<test set>/<metric>``. A plain metric name is the row's own entry, or else the
    first test set's.
    """
    named: dict[str, float | None] = {}
    for i, (test_set, metrics) in enumerate((row.get('metrics') or {}).items()):
        plain = {name: value for name, value in metrics.items() if _is_figure(value)}
        named.update(plain if i == 0 else {})
        named.update({f'{test_set}/{name}': value for name, value in plain.items()})
    # an entry left None does not hide the test set's figure
    named.update({name: value for name, value in row.items()
                  if _is_figure(value) and (value is not None or name not in named)})
    return named


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))
