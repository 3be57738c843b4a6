"""setup.py, pyproject.toml, requirements.txt, constraints.txt and scripts/setup_env.sh say the same."""

import ast
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  (comes with pytest where it is needed)

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


def requirements(path: Path) -> list[Requirement]:
    lines = (re.sub(r'(^|\s)#.*', '', line).strip() for line in path.read_text(encoding='utf-8').splitlines())
    return [Requirement(line) for line in lines if line]


def direct_requirements() -> list[Requirement]:
    extras = [Requirement(text) for group in PROJECT['optional-dependencies'].values() for text in group]
    return requirements(ROOT / 'requirements.txt') + [extra for extra in extras if extra.name != PROJECT['name']]


@pytest.fixture(scope='module')
def metadata(tmp_path_factory):
    """The metadata that a build through setup.py writes, made from a copy so that the tree stays clean."""
    copy = tmp_path_factory.mktemp('project')
    for name in ('setup.py', 'pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / 'basicsr_ssl', copy / 'basicsr_ssl', ignore=shutil.ignore_patterns('__pycache__'))
    result = subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info'], cwd=copy, capture_output=True, text=True,
                            check=False)
    assert result.returncode == 0, result.stderr
    return Parser().parsestr((copy / 'basicsr_ssl.egg-info' / 'PKG-INFO').read_text(encoding='utf-8'))


def test_metadata_has_the_requirements_of_requirements_txt(metadata):
    required = [Requirement(text) for text in metadata.get_all('Requires-Dist')]
    plain = {(canonicalize_name(r.name), r.specifier) for r in required if r.marker is None}
    assert plain == {(canonicalize_name(r.name), r.specifier) for r in requirements(ROOT / 'requirements.txt')}


def test_metadata_names_version_extras_and_pythons(metadata):
    source = ast.parse((ROOT / 'basicsr_ssl' / 'version.py').read_text(encoding='utf-8'))
    [version] = [ast.literal_eval(node.value) for node in source.body if isinstance(node, ast.Assign)]
    assert canonicalize_name(metadata['Name']) == 'basicsr-ssl'
    assert metadata['Version'] == version
    assert set(metadata.get_all('Provides-Extra')) == {'video', 'export', 'test', 'dev'}
    assert SpecifierSet(metadata['Requires-Python']) == SpecifierSet('>=3.10,<3.13')


def test_constraints_pin_every_direct_requirement_within_its_range():
    pins = {}
    for pin in requirements(ROOT / 'constraints.txt'):
        [specifier] = pin.specifier
        assert specifier.operator == '==' and '*' not in specifier.version, f'{pin} is not an exact pin'
        assert Version(specifier.version).local is None, f'{pin} would exclude other builds of the same version'
        assert canonicalize_name(pin.name) not in pins, f'{pin.name} is pinned twice'
        pins[canonicalize_name(pin.name)] = specifier.version
    for requirement in direct_requirements():
        name = canonicalize_name(requirement.name)
        assert name in pins, f'constraints.txt does not pin {name}'
        assert requirement.specifier.contains(pins[name], prereleases=True), f'{requirement} excludes {pins[name]}'


def test_tensorboard_has_one_owner():
    names = {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    names |= {canonicalize_name(pin.name) for pin in requirements(ROOT / 'constraints.txt')}
    assert 'tb-nightly' in names and 'tensorboard' not in names


def test_setup_script_accepts_the_pythons_of_the_project():
    script = (ROOT / 'scripts' / 'setup_env.sh').read_text(encoding='utf-8')
    [(low, high)] = re.findall(r'\((\d+, \d+)\) <= sys\.version_info < \((\d+, \d+)\)', script)
    accepted = f'>={low},<{high}'.replace(', ', '.')
    assert SpecifierSet(accepted) == SpecifierSet(PROJECT['requires-python'])


def test_console_script_exists():
    module, function = PROJECT['scripts']['basicsr-ssl'].split(':')
    source = ast.parse((ROOT / (module.replace('.', '/') + '.py')).read_text(encoding='utf-8'))
    assert function in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
