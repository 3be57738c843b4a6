"""The bridges to basicsr 1.4.2. Each test runs in a process of its own: what is imported cannot be taken back."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A stand-in for torchvision that behaves as the real one does at import: it describes its operators to the compiler,
# which fails with RuntimeError unless their C++ library (here: OPERATORS) has declared them.
FAKE_TORCHVISION = '''
import torch
from torchvision import extension

@torch.library.register_fake('torchvision::nms')
def describe_nms(boxes, scores, iou_threshold):
    return boxes

@torch.library.register_fake('torchvision::qnms')
def describe_qnms(boxes, scores, iou_threshold):
    return boxes
'''
OPERATORS = '''
library = torch.library.Library('torchvision', 'DEF')
library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
'''
FAKE_FUNCTIONAL = 'def rgb_to_grayscale(image):\n    return image\n'

# Runs the bridges alone, without the package around them.
LOAD_COMPAT = f'''
import importlib.util
spec = importlib.util.spec_from_file_location('_compat', {str(ROOT / 'basicsr_ssl' / '_compat.py')!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
'''


def run_python(code: str, path: Path = ROOT) -> str:
    """Run `code` in a fresh interpreter that finds modules in `path` first; returns stdout.

    Fails on an error, and on anything on stderr: the bridges are quiet.
    """
    code = f'import sys\nsys.path.insert(0, {str(path)!r})\n' + textwrap.dedent(code)
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=path, check=False)
    assert (result.returncode, result.stderr) == (0, ''), result.stderr
    return result.stdout


def fake_torchvision(folder: Path, *, compiled: bool, source: str = FAKE_TORCHVISION) -> None:
    package = folder / 'torchvision'
    (package / 'transforms').mkdir(parents=True)
    (package / '__init__.py').write_text(source)
    (package / 'extension.py').write_text('import torch\n' + (OPERATORS if compiled else ''))
    (package / 'transforms' / '__init__.py').touch()
    (package / 'transforms' / 'functional.py').write_text(FAKE_FUNCTIONAL)


def test_importing_everything_works_quietly_and_touches_no_gpu():
    out = run_python('''
        import basicsr_ssl
        import basicsr, torch, torchvision
        import importlib, pkgutil
        names = [module.name for module in pkgutil.walk_packages(basicsr.__path__, 'basicsr.')]
        for name in names:
            importlib.import_module(name)
        print('basicsr.data.degradations' in names, torch.cuda.is_initialized())
    ''')
    assert out.split() == ['True', 'False']


def test_operators_are_left_alone_when_torchvision_brings_them(tmp_path):
    fake_torchvision(tmp_path, compiled=True)
    out = run_python(LOAD_COMPAT + 'compat.apply()\nimport torchvision\nprint(len(compat._libraries))', tmp_path)
    assert out.strip() == '0'


def test_operators_are_declared_when_torchvision_cannot_load_them(tmp_path):
    fake_torchvision(tmp_path, compiled=False)
    with pytest.raises(AssertionError, match='operator torchvision::nms does not exist'):
        run_python('import torchvision', tmp_path)  # the gap is there
    out = run_python(LOAD_COMPAT + textwrap.dedent('''
        compat.apply()
        compat.apply()
        import torch, torchvision
        assert torchvision.extension is sys.modules['torchvision.extension']
        print(len(compat._libraries))
        print(torch.ops.torchvision.nms.default._schema)
        print(torch.ops.torchvision.qnms.default._schema)
    '''), tmp_path)
    arguments = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    assert out.splitlines() == ['1', f'torchvision::nms{arguments}', f'torchvision::qnms{arguments}']


def test_other_failures_of_torchvision_are_not_hidden(tmp_path):
    fake_torchvision(tmp_path, compiled=False, source='raise RuntimeError("compiled with different CUDA versions")')
    with pytest.raises(AssertionError, match='different CUDA versions'):
        run_python(LOAD_COMPAT + 'compat.apply()', tmp_path)


def test_torchvision_imported_first_stays_the_same_module():
    out = run_python(LOAD_COMPAT + textwrap.dedent('''
        compat.apply()
        import torchvision
        first, declared = torchvision, len(compat._libraries)
        import basicsr_ssl
        import basicsr, torchvision
        print(torchvision is first, len(compat._libraries) == declared, len(basicsr_ssl._compat._libraries))
    '''))
    assert out.split() == ['True', 'True', '0']


def test_rgb_to_grayscale_is_the_weighted_sum():
    run_python(LOAD_COMPAT + textwrap.dedent('''
        import torch
        compat.apply()
        from torchvision.transforms.functional_tensor import rgb_to_grayscale
        image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = 0.2989 * image[:, 0:1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:3]
        torch.testing.assert_close(rgb_to_grayscale(image), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(rgb_to_grayscale(image, num_output_channels=3), expected.expand(2, 3, 4, 5),
                                   rtol=0, atol=1e-12)
    '''))


def test_distutils_comes_from_setuptools_where_python_has_none():
    out = run_python('''
        class NoDistutils:
            """Python 3.12 without the import hook of setuptools, until setuptools itself is imported."""
            def find_spec(self, name, path=None, target=None):
                if name.split('.')[0] == 'distutils' and 'setuptools' not in sys.modules:
                    raise ModuleNotFoundError(f"No module named '{name}'", name=name)

        for name in [name for name in sys.modules if name.split('.')[0] in ('distutils', 'setuptools')]:
            del sys.modules[name]
        sys.meta_path.insert(0, NoDistutils())
        import basicsr_ssl
        import basicsr, distutils.version
        print(hasattr(distutils.version, 'LooseVersion'), 'setuptools' in sys.modules)
    ''')
    assert out.split() == ['True', 'True']


def test_only_the_meshgrid_advice_is_silenced():
    out = run_python('''
        import warnings
        import basicsr_ssl, torch
        from basicsr.archs.arch_util import flow_warp
        shown = []
        warnings.showwarning = lambda message, *rest: shown.append(str(message))
        flow_warp(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 2))
        warnings.warn('torch.something else')
        print(shown)
    ''')
    assert out.strip() == "['torch.something else']"


def test_applying_twice_changes_nothing():
    run_python('''
        import warnings
        import basicsr_ssl
        import torchvision.transforms.functional_tensor as module
        filters, declared = len(warnings.filters), list(basicsr_ssl._compat._libraries)
        basicsr_ssl._compat.apply()
        assert sys.modules['torchvision.transforms.functional_tensor'] is module
        assert basicsr_ssl._compat._libraries == declared
        assert len(warnings.filters) == filters
        import basicsr
    ''')
