"""Test one network on the test sets of an option file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from basicsr.data import build_dataset

from basicsr_ssl import config
from basicsr_ssl.api import network_cost
from basicsr_ssl.checkpoints.files import file_sha256, write_text
from basicsr_ssl.checkpoints.store import BICUBIC
from basicsr_ssl.models.reconstruction_model import read_input_network
from basicsr_ssl.models.validation import log_metrics, test_sets, validate_clips
from basicsr_ssl.runtime import add_folders, archive, barrier, device_of, log_to, process_group, start_processes


def test(path: str, launcher: str = 'none', overrides: Sequence[str] = (), debug: bool = False) -> dict[str, Any]:
    """Test the network ``path: pretrain_network_g`` on the entries ``test*`` of ``datasets``, or else ``val*``.

    Writes ``results/<name>/results.json`` and, with ``val: save_img``, the frames.

    Returns:
        What ``results.json`` holds: the network's file and cost, and per test set the metrics and those of each clip.

    Raises:
        OSError, ValueError: with a message that says how to mend it.
    """
    opt = config.load_options(path, overrides, debug)
    _check(opt, path)
    config.check_files(opt)
    with process_group():
        start_processes(opt, launcher)
        add_folders(opt, is_train=False)
        folder = opt['path']['results_root']
        barrier()
        if opt['rank'] == 0:
            archive(folder)
        barrier()
        with log_to(os.path.join(folder, 'test.log')) as logger:
            device = device_of(opt)
            net = read_input_network(opt).to(device).eval()
            file = opt['path']['pretrain_network_g']
            logger.info(f'{file}: {type(net).__name__}, {net.spec.form}')
            results: dict[str, Any] = {
                'network': file, 'sha256': None if file == BICUBIC else file_sha256(file), 'form': net.spec.form,
                'lr_size': [180, 320], **network_cost(net, (180, 320)), 'datasets': {}}
            for options in test_sets(opt['datasets']):
                dataset = build_dataset(options)
                result = validate_clips(net, dataset, options['name'], opt, device, opt['val']['save_img'])
                log_metrics(result, options['name'], 0, None)
                results['datasets'][options['name']] = {'metrics': opt['val']['metrics'], **result}
            if opt['rank'] == 0:
                write_text(os.path.join(folder, 'results.json'), json.dumps(results, indent=2) + '\n')
                logger.info(f'Wrote {os.path.join(folder, "results.json")}')
        return results


def _check(opt: dict[str, Any], path: str) -> None:
    """Raises ValueError, which says what the option file lacks for a test."""
    if opt.get('stages'):
        raise ValueError(f'{path} is a recipe with stages. Its report, at the end of `basicsr-ssl train -opt {path}`, '
                         'tests its networks; to test one network, write an option file without stages')
    for missing, what in ((not opt['path']['pretrain_network_g'], 'path: pretrain_network_g: the network to test'),
                          (not opt['val'], 'val: metrics: what is measured'),
                          (not any(phase != 'train' for phase in opt['datasets']), 'datasets: test: the clips')):
        if missing:
            raise ValueError(f'{path} says not enough for a test; add {what}')
