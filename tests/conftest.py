"""What all tests share: one thread, and the folder of real frames."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

# before any test imports basicsr, which by itself does not load beside current torchvision
import basicsr_ssl  # noqa: F401

# the networks are tiny: a second thread only waits, for long when the machine is busy
torch.set_num_threads(1)
# the option files look for data where it says; tests say it themselves
os.environ.pop('DATA_ROOT', None)
# plans of the tests' networks are not kept with those of the user
os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='basicsr_ssl_tests_')
atexit.register(shutil.rmtree, os.environ['XDG_CACHE_HOME'], ignore_errors=True)


@pytest.fixture(scope='session')
def test_data() -> Path:
    """Folder of real frames and weights; tests that ask for it are skipped where there is none."""
    named = os.environ.get('BASICSR_SSL_TEST_DATA')
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not folder.is_dir():
        if named:
            pytest.fail(f'BASICSR_SSL_TEST_DATA names no folder: {named}')
        pytest.skip('needs real frames: set BASICSR_SSL_TEST_DATA to their folder')
    return folder
