"""The shell scripts, run with stand-ins for Python and srun that print what they were asked to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from nets import tiny_net
from PIL import Image
from tiny_runs import write_clips

import basicsr_ssl
from basicsr_ssl.archs import PrunableEDSR

ROOT = Path(__file__).resolve().parents[1]

# Answers `-m pip` itself, noting the call, and leaves everything else to the real Python.
FAKE_PIP = f'''#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
    shift 2
    [ "$1" = --version ] || echo "pip $*" >>"$PIP_LOG"
    exit "${{PIP_RESULT:-0}}"
fi
exec {sys.executable} "$@"
'''
ECHO = '#!/bin/sh\n[ "$1" = -c ] && { echo 3; exit; }\nprintf "%s\\n" "$OMP_NUM_THREADS threads" "$@"\n'


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path):
    """A copy of what the scripts need: themselves, the packaging files and an option file."""
    folder = tmp_path / 'project'
    shutil.copytree(ROOT / 'scripts', folder / 'scripts')
    for name in ('setup.py', 'pyproject.toml', 'requirements.txt', 'constraints.txt'):
        shutil.copy(ROOT / name, folder)
    (folder / 'options').mkdir()
    (folder / 'options' / 'a.yml').write_text('name: a\n')
    return folder


@pytest.fixture
def run(project, tmp_path):
    """Runs a script of the copy, by default with no environment active and the system's tools only."""
    def run(script, *arguments, cwd=project, **variables):
        environment = {'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'PIP_LOG': str(tmp_path / 'pip.log')}
        return subprocess.run(['bash', str(project / 'scripts' / script), *arguments], cwd=cwd,
                              env=environment | variables, capture_output=True, text=True, check=False)
    return run


def pip_calls(tmp_path: Path) -> list[str]:
    log = tmp_path / 'pip.log'
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize('script', sorted(path.name for path in (ROOT / 'scripts').glob('*.sh')))
def test_bash_can_parse(script):
    subprocess.run(['bash', '-n', str(ROOT / 'scripts' / script)], check=True)


class TestSetup:
    @pytest.fixture
    def environment(self, tmp_path):
        """An active virtual environment whose pip installs nothing."""
        executable(tmp_path / 'env' / 'bin' / 'python', FAKE_PIP)
        return {'VIRTUAL_ENV': str(tmp_path / 'env')}

    def test_installs_once(self, run, environment, tmp_path):
        assert run('setup_env.sh', **environment).returncode == 0
        first = pip_calls(tmp_path)
        assert len(first) == 2 and all('-c constraints.txt' in call for call in first)
        assert first[1].endswith('-e .[test]') and '--no-build-isolation' in first[1]
        again = run('setup_env.sh', **environment)
        assert (again.returncode, again.stdout, again.stderr) == (0, '', '')
        assert pip_calls(tmp_path) == first

    def test_installs_again_when_what_it_installs_changed(self, run, environment, project, tmp_path):
        run('setup_env.sh', **environment)
        with open(project / 'constraints.txt', 'a') as file:
            file.write('another==1\n')
        run('setup_env.sh', **environment)
        assert len(pip_calls(tmp_path)) == 4

    def test_dev_includes_test(self, run, environment, tmp_path):
        run('setup_env.sh', EXTRAS='dev', **environment)
        run('setup_env.sh', EXTRAS='test', **environment)
        assert len(pip_calls(tmp_path)) == 2

    def test_test_does_not_include_dev(self, run, environment, tmp_path):
        run('setup_env.sh', EXTRAS='test', **environment)
        run('setup_env.sh', EXTRAS='dev', **environment)
        assert pip_calls(tmp_path)[-1].endswith('-e .[dev]')

    def test_failed_installation_leaves_no_stamp(self, run, environment, tmp_path):
        failed = run('setup_env.sh', PIP_RESULT='1', **environment)
        assert failed.returncode != 0 and 'installation failed' in failed.stderr
        assert len(pip_calls(tmp_path)) == 1  # the second step is not tried after the first has failed
        assert run('setup_env.sh', **environment).returncode == 0
        assert len(pip_calls(tmp_path)) == 3

    def test_no_suitable_python(self, run, project, tmp_path):
        tools = tmp_path / 'tools'
        executable(tools / 'python3', '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.2 && exit 0\nexit 1\n')
        for tool in ('bash', 'dirname', 'head'):
            (tools / tool).symlink_to(shutil.which(tool))
        result = run('setup_env.sh', PATH=str(tools))
        assert result.returncode == 2
        assert 'Python 3.10, 3.11 or 3.12' in result.stderr and 'python3: Python 3.8.2' in result.stderr
        assert not (project / '.venv').exists()

    def test_active_environment_with_an_unsupported_python(self, run, tmp_path):
        executable(tmp_path / 'old' / 'bin' / 'python',
                   '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.13.0 && exit 0\nexit 1\n')
        result = run('setup_env.sh', VIRTUAL_ENV=str(tmp_path / 'old'))
        assert result.returncode == 2 and 'has Python 3.13.0' in result.stderr

    def test_unknown_extras(self, run, environment):
        result = run('setup_env.sh', EXTRAS='docs', **environment)
        assert result.returncode == 2 and "not 'docs'" in result.stderr


class TestLaunch:
    @pytest.fixture
    def python(self, tmp_path):
        return str(executable(tmp_path / 'python', ECHO))

    @pytest.mark.parametrize('command', ['train', 'test'])
    def test_one_machine(self, run, python, command):
        result = run(f'dist_{command}.sh', '2', 'options/a.yml', '--force_yml', 'name=two words', PYTHON=python)
        assert result.stdout.splitlines() == [
            '3 threads', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'basicsr_ssl',
            command, '-opt', 'options/a.yml', '--launcher', 'pytorch', '--force_yml', 'name=two words']

    def test_given_port_and_threads(self, run, python):
        result = run('dist_train.sh', '2', 'options/a.yml', PYTHON=python, MASTER_PORT='1234', OMP_NUM_THREADS='5')
        lines = result.stdout.splitlines()
        assert lines[0] == '5 threads'
        assert lines[3:7] == ['--master_addr', '127.0.0.1', '--master_port', '1234']

    def test_several_machines(self, run, python):
        result = run('dist_train.sh', '8', 'options/a.yml', PYTHON=python, NNODES='2', NODE_RANK='1',
                     MASTER_ADDR='node0')
        assert result.stdout.splitlines()[3:13] == [
            '--nnodes', '2', '--node_rank', '1', '--master_addr', 'node0', '--master_port', '29500',
            '--nproc_per_node', '8']

    @pytest.mark.parametrize('missing', ['NODE_RANK', 'MASTER_ADDR'])
    def test_several_machines_need_rank_and_address(self, run, python, missing):
        given = {'NODE_RANK': '1', 'MASTER_ADDR': 'node0'}
        del given[missing]
        result = run('dist_train.sh', '8', 'options/a.yml', PYTHON=python, NNODES='2', **given)
        assert result.returncode == 2 and f'needs {missing}' in result.stderr

    def test_option_file_as_the_caller_names_it(self, run, python, tmp_path):
        (tmp_path / 'mine.yml').write_text('name: mine\n')
        lines = run('dist_train.sh', '1', 'mine.yml', PYTHON=python, cwd=tmp_path).stdout.splitlines()
        assert lines[lines.index('-opt') + 1] == str(tmp_path / 'mine.yml')

    @pytest.mark.parametrize('arguments, message', [
        ((), 'N and OPT are needed'),
        (('2',), 'N and OPT are needed'),
        (('0', 'options/a.yml'), "not '0'"),
        (('options/a.yml', '2'), "not 'options/a.yml'"),
        (('2', 'options/b.yml'), 'options/b.yml not found'),
    ])
    def test_wrong_arguments(self, run, python, arguments, message):
        result = run('dist_train.sh', *arguments, PYTHON=python)
        assert result.returncode == 2 and message in result.stderr and result.stdout == ''

    def test_help(self, run):
        result = run('dist_test.sh', '--help')
        assert result.returncode == 0 and result.stdout.startswith('usage: bash scripts/dist_test.sh N OPT')

    def test_no_environment(self, run):
        result = run('dist_train.sh', '2', 'options/a.yml')
        assert result.returncode == 2 and 'scripts/setup_env.sh' in result.stderr


BENCHMARKS = {'test_reds_BI.sh': 'REDS4_BI', 'test_vid4_BI.sh': 'Vid4_BI', 'test_Vimeo_BI.sh': 'Vimeo90K-T_BI',
              'test_udm10_BD.sh': 'UDM10_BD', 'test_Vimeo_BD.sh': 'Vimeo90K-T_BD', 'test_vid4_BD.sh': 'Vid4_BD'}


class TestBenchmarks:
    """The scripts of the benchmarks: what they start, and, at the end, what comes out."""

    @pytest.fixture
    def python(self, tmp_path):
        return str(executable(tmp_path / 'python', ECHO.replace('"$OMP', '"data in ${DATA_ROOT:-nowhere}" "$OMP')))

    @pytest.mark.parametrize('script', BENCHMARKS)
    def test_one_process(self, run, python, script):
        result = run(script, 'bicubic', '--allow-partial', '--debug', PYTHON=python, OMP_NUM_THREADS='4')
        option = f'options/test/{BENCHMARKS[script]}.yml'
        assert result.stdout.splitlines() == [
            'data in nowhere', '4 threads', '-m', 'basicsr_ssl', 'test', '-opt', option, '--force_yml',
            "path:pretrain_network_g='bicubic'", '--allow-partial', '--debug'], result.stderr
        assert (ROOT / option).is_file()

    def test_there_is_a_script_for_every_option_file(self):
        assert set(BENCHMARKS.values()) == {path.stem for path in (ROOT / 'options/test').glob('*.yml')
                                            if not path.stem.startswith('images_')}

    @pytest.mark.parametrize('scale', ['2', '3', '4'])
    def test_images_at_the_scale_that_is_asked_for(self, run, python, scale):
        result = run('test_images.sh', 'bicubic', '--allow-partial', PYTHON=python, OMP_NUM_THREADS='4', SCALE=scale,
                     SETS='Set5 B100')
        option = f'options/test/images_BIx{scale}.yml'
        assert result.stdout.splitlines()[2:] == [
            '-m', 'basicsr_ssl', 'test', '-opt', option, '--force_yml', "path:pretrain_network_g='bicubic'",
            '--allow-partial', '--force_yml', 'datasets:test_Set14=none', '--force_yml', 'datasets:test_Urban100=none']
        assert (ROOT / option).is_file()
        result = run('test_images.sh', 'bicubic', PYTHON=python, SCALE='8')
        assert (result.returncode, result.stderr) == (2, 'error: there are no test sets for scale 8\n')
        assert 'SETS=' in run('test_images.sh', '--help').stdout

    def test_images_at_the_scale_of_the_network(self, tmp_path):
        net = PrunableEDSR(4, 1, scale=3)
        basicsr_ssl.save_network(net, tmp_path / 'net.safetensors')

        def real(*arguments, **environment):
            return subprocess.run(
                ['bash', ROOT / 'scripts/test_images.sh', 'net.safetensors', *arguments], cwd=tmp_path, text=True,
                capture_output=True, check=False,
                env={**os.environ, 'DATA_ROOT': str(tmp_path), 'PYTHON': sys.executable, **environment})

        result = real()
        assert result.returncode == 1 and f'{tmp_path}/Urban100/HR does not exist' in result.stderr
        (tmp_path / 'Set5' / 'HR').mkdir(parents=True)
        Image.fromarray(np.zeros((512, 512), np.uint8)).save(tmp_path / 'Set5' / 'HR' / 'baby.png')
        result = real('--allow-partial', '--force_yml', f'path:root={tmp_path}', SETS='Set5')
        assert result.returncode == 0, result.stderr
        assert '| net (partial) ' in result.stdout and '| ASSLN x3 ' in result.stdout

    def test_several_processes(self, run, python):
        result = run('test_vid4_BI.sh', 'zoo://BasicVSR_REDS4', '2', '--allow-partial', PYTHON=python)
        assert result.stdout.splitlines()[2:] == [
            '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'basicsr_ssl', 'test', '-opt',
            'options/test/Vid4_BI.yml', '--launcher', 'pytorch', '--force_yml',
            "path:pretrain_network_g='zoo://BasicVSR_REDS4'", '--allow-partial']

    @pytest.mark.parametrize(('named', 'meant'), [
        ('data', '{cwd}/data'), ('/data', '/data'), ('~/data', '~/data'), ('', 'nowhere')])
    def test_data_and_checkpoint_as_the_caller_names_them(self, run, python, tmp_path, named, meant):
        name = "it's net #1.pth"
        (tmp_path / name).touch()
        lines = run('test_vid4_BI.sh', name, PYTHON=python, cwd=tmp_path, DATA_ROOT=named).stdout.splitlines()
        assert lines[0] == f'data in {meant.format(cwd=tmp_path)}'
        key, _, value = lines[-1].partition('=')
        assert key == 'path:pretrain_network_g' and yaml.safe_load(value) == f'{tmp_path}/{name}'

    def test_checkpoint_as_the_project_names_it(self, run, project, python, tmp_path):
        (project / 'net.pth').touch()
        for cwd in (project, tmp_path):
            assert run('test_vid4_BI.sh', 'net.pth', PYTHON=python, cwd=cwd).stdout.endswith("='net.pth'\n")

    @pytest.mark.parametrize('arguments, message', [
        ((), 'a checkpoint, or bicubic, is needed'),
        (('net.pth',), 'checkpoint net.pth not found, neither from'),
        (('/nowhere/net.pth',), 'checkpoint /nowhere/net.pth not found\n'),
        (('bicubic', '0'), "not '0'"),
        (('bicubic', 'two'), "not 'two'"),
    ])
    def test_wrong_arguments(self, run, python, arguments, message):
        result = run('test_vid4_BI.sh', *arguments, PYTHON=python)
        assert result.returncode == 2 and message in result.stderr and result.stdout == ''

    def test_help(self, run):
        result = run('test_vid4_BD.sh', '--help')
        assert result.returncode == 0
        assert result.stdout.startswith('usage: bash scripts/test_vid4_BD.sh CHECKPOINT|bicubic [N]')
        assert 'DATA_ROOT' in result.stdout and '--allow-partial' in result.stdout

    @pytest.fixture
    def real(self, run, project, tmp_path):
        """Runs a script with the real Python on a part of Vid4 in tiny frames, from a folder beside the project."""
        shutil.rmtree(project / 'options')
        shutil.copytree(ROOT / 'options', project / 'options')
        clips = write_clips(tmp_path / 'here/data/Vid4/GT', clips=3, frames=2, size=(32, 48))
        for clip, name in zip(sorted(clips.iterdir()), ('calendar', 'city', 'walk')):
            clip.rename(clips / name)

        def start(script, *arguments):
            result = run(script, *arguments, cwd=tmp_path / 'here', DATA_ROOT='data', PYTHON=sys.executable,
                         OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
            assert result.returncode == 0, result.stdout + result.stderr
            [folder] = (project / 'results').iterdir()
            moved = folder.rename(tmp_path / '_'.join((folder.name, *arguments[1:])))  # makes room for the next
            return folder.name, moved, json.loads((moved / 'results.json').read_text())
        return start

    def test_bicubic(self, real):
        name, folder, result = real('test_vid4_BD.sh', 'bicubic', '--allow-partial', '--force_yml', 'val:save_img=true')
        assert name == 'Vid4_BD_bicubic_partial' and result['protocol']['partial']
        assert set(result['clips']) == {'calendar', 'city', 'walk'}
        assert len(list(folder.glob('visualization/Vid4/*/*.png'))) == 6

    def test_two_processes_give_the_figures_of_one(self, real, tmp_path):
        basicsr_ssl.save_network(tiny_net(), tmp_path / 'here/tiny.safetensors')
        (name, _, one), (again, _, two) = (real('test_vid4_BI.sh', 'tiny.safetensors', *count, '--allow-partial')
                                           for count in ((), ('2',)))
        assert name == again == 'Vid4_BI_tiny_partial' and (one['processes'], two['processes']) == (1, 2)
        changing = {'seconds_per_frame', 'processes', 'time'}
        assert {key: one[key] for key in one.keys() - changing} == {key: two[key] for key in two.keys() - changing}
        assert len(one['clips']) == 3  # unequal shares


class TestSlurm:
    @pytest.fixture
    def tools(self, tmp_path):
        executable(tmp_path / 'tools' / 'srun', '#!/bin/sh\nprintf "%s\\n" "$@"\n')
        return {'PATH': f'{tmp_path / "tools"}{os.pathsep}/usr/bin:/bin', 'PYTHON': sys.executable}

    def test_asks_for_the_gpus(self, run, tools):
        result = run('slurm_train.sh', 'gpu', 'job', 'options/a.yml', '--debug', GPUS='16', SRUN_ARGS='--time 1:00',
                     **tools)
        assert result.stdout.splitlines() == [
            '--partition=gpu', '--job-name=job', '--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8',
            '--cpus-per-task=5', '--kill-on-bad-exit=1', '--time', '1:00',
            sys.executable, '-u', '-m', 'basicsr_ssl', 'train', '-opt', 'options/a.yml', '--launcher', 'slurm',
            '--debug']

    def test_uneven_machines(self, run, tools):
        result = run('slurm_train.sh', 'gpu', 'job', 'options/a.yml', GPUS='12', **tools)
        assert result.returncode == 2 and 'no multiple of GPUS_PER_NODE=8' in result.stderr

    def test_missing_arguments(self, run):
        result = run('slurm_train.sh', 'gpu')
        assert result.returncode == 2 and 'usage: bash scripts/slurm_train.sh PARTITION' in result.stderr

    def test_without_slurm(self, run):
        result = run('slurm_train.sh', 'gpu', 'job', 'options/a.yml', PYTHON=sys.executable)
        assert result.returncode == 2 and 'scripts/dist_train.sh' in result.stderr
