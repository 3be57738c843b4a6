"""The package in double precision, so that a stage can be compared with a reference to the last digits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """What asks for float32 gets float64: networks made and read, samples, and losses."""
    single = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'float32', torch.float64)
        patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(single)
