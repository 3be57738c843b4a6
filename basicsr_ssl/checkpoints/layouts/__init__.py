"""How other projects lay out the tensors of a network: one module per arch, and one table of them all.

To read the files of a new arch, write ``layouts/<arch>.py`` with

- ``read(state, lists) -> Found``: the arguments derived from names and shapes, as a ``Spec``, and the tensors by our
  names; a ``ValueError`` that names the tensor if they are those of no whole network;
- ``LAYOUTS``, a tuple of ``Layout``: for each project that names the tensors in its own way, who it is, the names that
  together tell its files from all others, how to rename one tensor, and ``read``;
- optionally ``to_basicsr(net) -> state dict``: the weights as BasicSR's own class loads them strictly, or a
  ``ValueError`` that lists what that class has no place for;

and add them to ``LAYOUTS`` and ``TO_BASICSR`` below; a layout of more names before one that shares some of them.
How files are wrapped (``params_ema``, ``module.``, a pickled module) is the same for all archs, see ``importers``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from basicsr_ssl.checkpoints.layouts import basicvsr, edsr, spynet, swinir
from basicsr_ssl.checkpoints.layouts.layout import Found, Layout

LAYOUTS: tuple[Layout, ...] = (*basicvsr.LAYOUTS, *edsr.LAYOUTS, *spynet.LAYOUTS, *swinir.LAYOUTS)
TO_BASICSR: dict[str, Callable[[nn.Module], dict[str, Tensor]]] = {
    'PrunableBasicVSR': basicvsr.to_basicsr,
    'PrunableEDSR': edsr.to_basicsr,
    'PrunableSwinIR': swinir.to_basicsr,
    'StandaloneSpyNet': spynet.to_basicsr,
}

__all__ = ['LAYOUTS', 'TO_BASICSR', 'Found', 'Layout']
