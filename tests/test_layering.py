"""Who may import whom. The table is the architecture: change it knowingly, together with docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import basicsr_ssl

PACKAGE = Path(basicsr_ssl.__file__).parent
ROOT = '(package)'  # `import basicsr_ssl` itself

# Part of the package: what it may import besides itself, whole parts or single modules; imports inside functions count.
MAY_IMPORT: dict[str, set[str]] = {
    '_compat': set(),
    'version': set(),
    'files': {'terminal'},
    'terminal': set(),
    'runtime': set(),
    'tasks': set(),
    'zoo': {'files', 'terminal'},
    'nn': {'pruning.gates'},
    'pruning': set(),
    'losses': set(),
    'data': {'nn', 'files'},
    'archs': {'nn', 'pruning.body', 'pruning.cost', 'pruning.gates', 'pruning.groups', 'pruning.spec'},
    'checkpoints': {'archs', 'files', 'nn.spynet', 'pruning.gates', 'pruning.spec', 'terminal', 'version'},
    'latency': set(),
    'history': {'evaluation.result', 'files'},
    'export': {'api', 'checkpoints', 'data', 'evaluation', 'files', 'nn', 'pruning.cost', 'terminal', 'zoo'},
    'api': {'checkpoints', 'plans', 'pruning', 'runtime'},
    'methods': {'api', 'pruning'},
    'plans': {'checkpoints', 'files', 'latency', 'nn.blocks', 'pruning', 'version'},
    'evaluation': {'api', 'checkpoints', 'data', 'files', 'plans', 'pruning.cost', 'runtime'},
    'models': {'api', 'archs', 'checkpoints', 'data', 'evaluation', 'files', 'losses', 'methods', 'nn', 'plans',
               'pruning', 'runtime', 'tasks'},
    'upscale': {'checkpoints.store', 'data.frames', 'evaluation.inference', 'export', 'files', 'nn.resize', 'runtime',
                'terminal', 'zoo'},
    'report': {'api', 'archs', 'checkpoints', 'data.image_catalog', 'evaluation', 'files', 'history', 'latency',
               'plans', 'pruning', 'runtime', 'terminal', 'version', 'zoo'},
    # the package, so that BasicSR's registries are filled when they are read
    'config': {'files', 'zoo', 'data.options', 'evaluation.result', 'methods', 'models.optimization', 'pruning.cost',
               'pruning.options', 'terminal', ROOT},
    'test': {'api', 'config', 'evaluation', 'runtime', 'report', 'models', 'data', 'checkpoints', 'files', 'zoo'},
    'train': {'config', 'runtime', 'models', 'data', 'checkpoints', 'files', 'history'},
    'pipeline': {'config', 'runtime', 'train', 'test', 'report'},
    'cli': {'config', 'runtime', 'pipeline', 'test', 'data.preparation.prepare', 'report', 'checkpoints', 'export',
            'terminal', 'upscale', 'zoo'},
    '__main__': {'cli'},
    '__init__': {'_compat', 'version', 'api', 'checkpoints.store', 'archs', 'data', 'losses', 'models',
                 'plans'},
}
# Option files are text: the modules that parse them and the command line do without these.
HEAVY = {'basicsr', 'torch', 'torchvision', 'numpy', 'cv2', 'matplotlib'}


def modules() -> dict[str, Path]:
    """Dotted name below the package (``nn.warp``; a folder's ``__init__`` has the folder's name) to file."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)] = path
    return found


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full dotted names that these nodes import; ``from a import b`` gives ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, 'imports within the package are written out in full'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, by their name below the package."""
    known, result = modules(), set()
    for name in imports(ast.walk(ast.parse(path.read_text(encoding='utf-8')))):
        top, *rest = name.split('.')
        if top == PACKAGE.name:
            while rest and '.'.join(rest) not in known:  # a name within the module
                rest.pop()
            result.add('.'.join(rest) or ROOT)
    return result


def part_of(module: str) -> str:
    return module.split('.')[0]


def test_every_part_stands_in_the_table() -> None:
    assert {part_of(module) for module in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize('module', modules())
def test_imports_go_downward_only(module: str) -> None:
    part = part_of(module)
    allowed = MAY_IMPORT[part] | {part}
    wrong = {name for name in own_imports(modules()[module]) if name not in allowed and part_of(name) not in allowed}
    assert not wrong, f'{module} may import {sorted(allowed)}, but imports {sorted(wrong)}'


def test_the_table_has_no_circle() -> None:
    left = {part: {part_of(name) for name in allowed} - {ROOT} for part, allowed in MAY_IMPORT.items()}
    while left:
        free = {part for part, needs in left.items() if not needs & left.keys()}
        assert free, f'these parts import each other in a circle: {sorted(left)}'
        left = {part: needs for part, needs in left.items() if part not in free}


@pytest.mark.parametrize('module', [name for name in modules() if part_of(name) in ('cli', 'config')])
def test_parsing_loads_nothing_heavy(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding='utf-8'))
    assert not {part_of(name) for name in imports(iter(tree.body))} & HEAVY


def test_the_compatibility_bridges_stand_before_everything_else() -> None:
    body = [node for node in ast.parse(modules()['__init__'].read_text(encoding='utf-8')).body
            if not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call)]
    assert [ast.unparse(node) for node in body[:2]] == ['from basicsr_ssl import _compat', '_compat.apply()']


@pytest.mark.parametrize('module', modules())
def test_no_device_is_hard_coded(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding='utf-8'))
    calls = [node.lineno for node in ast.walk(tree)
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'cuda']
    assert not calls, f'.cuda() on lines {calls}: take the device from a tensor or an option'
