"""Structured pruning for video super-resolution on top of BasicSR.

>>> import basicsr_ssl
>>> net = basicsr_ssl.load_network('dense.safetensors')
>>> small = basicsr_ssl.prune_network(net, ratio=0.7, budget='macs', score='l1')
>>> basicsr_ssl.count_macs(small) / basicsr_ssl.count_macs(net)
>>> basicsr_ssl.save_network(small, 'compact.safetensors')
"""

from basicsr_ssl import _compat

_compat.apply()  # before anything imports basicsr

from basicsr_ssl.api import count_macs, count_params, prune_network  # noqa: E402
from basicsr_ssl.archs import basicvsr_arch  # noqa: E402
from basicsr_ssl.checkpoints.store import import_network, load_network, save_network  # noqa: E402
from basicsr_ssl.plans.planner import optimize_network  # noqa: E402
from basicsr_ssl.version import __version__  # noqa: E402

__all__ = ['__version__', 'count_macs', 'count_params', 'import_network', 'load_network', 'optimize_network',
           'prune_network', 'register', 'save_network']


def register() -> None:
    """Make this package's archs, datasets, losses and models known to BasicSR's registries."""
    from basicsr_ssl import archs, data, losses, models  # noqa: F401


basicvsr_arch.read_network = load_network
register()
