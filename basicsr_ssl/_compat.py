"""The one place that bridges gaps between basicsr 1.4.2 and current torch, torchvision and Python.

`apply()` must run before anything imports basicsr. Each bridge below is a function that gives its reason; each does
nothing where the gap does not exist. Nothing here touches a GPU.
"""

import importlib
import sys
import types
import warnings

import torch

# The operators whose schema torchvision's own Python code needs at import, as its C++ library declares them.
_TORCHVISION_OPERATORS = {
    'nms': 'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms': 'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
}

# A declaration lives as long as the Library object that made it.
_libraries: list[torch.library.Library] = []


def apply() -> None:
    """Make `import basicsr` work; calling it again changes nothing.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision fails to import for a reason other than its compiled operators being absent.
    """
    _import_torchvision()
    _provide_functional_tensor()
    _provide_distutils()
    _silence_meshgrid()


def _import_torchvision() -> None:
    """Import torchvision, also beside a build of torch that its compiled operators cannot be loaded with.

    PyPI's torchvision is compiled for CUDA. Beside a CPU build of torch its library does not load, which torchvision
    tolerates, except that it describes `torchvision::nms` and `torchvision::qnms` to the compiler at import; describing
    an operator that was never declared fails. Declaring the schemas lets the import through. The operators stay without
    kernels, and torchvision itself says so when one is called; neither basicsr nor this package calls one.
    """
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::' not in str(error):
            raise
    else:
        return
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name, schema in _TORCHVISION_OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _libraries.append(library)
    # What the failed import left behind belongs to a package that no longer exists.
    for name in [name for name in sys.modules if name.startswith('torchvision.')]:
        del sys.modules[name]
    importlib.import_module('torchvision')


def _provide_functional_tensor() -> None:
    """Bring back `torchvision.transforms.functional_tensor`, removed in torchvision 0.17.

    basicsr/data/degradations.py takes `rgb_to_grayscale` from it, which now stands in `transforms.functional`.
    """
    name = 'torchvision.transforms.functional_tensor'
    if name in sys.modules:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name, 'Stand-in for the module that torchvision 0.17 removed.')
    vars(module)['rgb_to_grayscale'] = rgb_to_grayscale
    sys.modules[name] = module


def _provide_distutils() -> None:
    """Make `distutils.version` importable: basicsr/archs/arch_util.py compares versions with it.

    Python 3.12 dropped it. setuptools, which torch requires, carries a copy and puts it in place when imported.
    """
    try:
        importlib.import_module('distutils.version')
    except ModuleNotFoundError:
        importlib.import_module('setuptools')


def _silence_meshgrid() -> None:
    """Hide torch's advice to give meshgrid an `indexing`: basicsr's flow_warp relies on the default, which is right."""
    warnings.filterwarnings('ignore', message=r'torch\.meshgrid: in an upcoming release', category=UserWarning)
