"""The networks that come along: what their cards say is what the files are, and what they measure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basicsr_ssl import load_network, zoo
from basicsr_ssl.api import count_params
from basicsr_ssl.archs import PrunableBasicVSR
from basicsr_ssl.checkpoints.store import read_metadata
from basicsr_ssl.config import load_options
from basicsr_ssl.data.clips_dataset import MovingPhotosTestDataset
from basicsr_ssl.data.flow_dataset import SyntheticFlowTestDataset
from basicsr_ssl.evaluation.clips import measure_clips
from basicsr_ssl.files import file_sha256
from basicsr_ssl.runtime import Processes, Run

CARDS = Path(zoo.__file__).parent / 'README.md'
DEMO = Path(__file__).parents[1] / 'options/demo/demo.yml'


def cards() -> dict[str, dict[str, str]]:
    """By name, the rows of the table below its heading."""
    found = {}
    for section in CARDS.read_text(encoding='utf-8').split('\n## ')[1:]:
        heading, _, text = section.partition('\n')
        found[heading.removeprefix('zoo://')] = dict(re.findall(r'^\| ([^|]+?) \| ([^|]+?) \|$', text, re.MULTILINE))
    return found


def figure(card: dict[str, str], row: str) -> float:
    match = re.match(r'[0-9.]+', card[row])
    assert match, card[row]
    return float(match[0])


def test_every_network_has_a_card() -> None:
    assert cards().keys() == zoo.PACKAGED.keys()


@pytest.mark.parametrize('name', zoo.PACKAGED)
def test_a_card_is_of_its_file(name: str) -> None:
    card, path = cards()[name], zoo.resolve(f'zoo://{name}')
    assert card['sha256'] == f'`{file_sha256(path)}`'
    net: Any = load_network(path)
    assert card['parameters'] == f'{count_params(net):,}'
    assert card['licence'].startswith(f'{zoo.LICENCE};') and read_metadata(path)['licence'] == zoo.LICENCE
    assert all(card[row] for row in ('recipe', 'data', 'never seen'))
    assert Path(path).stat().st_size < 1_000_000


@pytest.mark.parametrize('name', [name for name in zoo.PACKAGED if name.startswith('basicvsr')])
def test_psnr_of_a_card(name: str) -> None:
    """On the two photographs on which the demo tests, moved by a virtual camera."""
    card, opt = cards()[name], load_options(DEMO)
    net: Any = load_network(zoo.resolve(f'zoo://{name}'), dtype=torch.float32).eval()
    dataset = MovingPhotosTestDataset({**opt['datasets']['test'], 'phase': 'test'})
    run = Run(Processes(0, 1, torch.device('cpu'), False), 'cards', '')
    val = {'metrics': opt['val']['metrics'], 'save_img': False, 'flip_seq': False, 'center_frame_only': False,
           'pbar': False}
    measured = measure_clips(net, dataset, 'photographs', val, run).metrics['psnr']
    assert measured == pytest.approx(figure(card, 'moving photographs'), abs=0.01)


@pytest.mark.parametrize('name', [name for name in zoo.PACKAGED if name.startswith('spynet')])
def test_end_point_error_of_a_card(name: str) -> None:
    """On the set of benchmarks/flow.py; and what it is for, as the flow network of a BasicVSR."""
    card = cards()[name]
    net: Any = load_network(zoo.resolve(f'zoo://{name}'), dtype=torch.float32).eval()
    dataset = SyntheticFlowTestDataset(dict(
        name='layers', type='SyntheticFlowTestDataset', photos=['astronaut', 'chelsea', 'coffee', 'rocket'],
        frame_size=[256, 320], max_motion=24, pairs_per_photo=8))
    errors = []
    for pair in (dataset[i] for i in range(len(dataset))):
        with torch.no_grad():
            flow = net(pair['ref'][None], pair['supp'][None])[0]
        errors.append((flow - pair['flow']).square().sum(0).sqrt().nanmean().item())
    assert np.mean(errors) == pytest.approx(figure(card, 'moving layers'), abs=0.005)

    vsr = PrunableBasicVSR(8, 1, 8, flow='spynet_small' if net.size == 'small' else 'spynet',
                           spynet_path=zoo.resolve(f'zoo://{name}'))
    ref, supp = pair['ref'][None], pair['supp'][None]
    flows, _ = vsr.eval().compute_flows(torch.stack((supp, ref), 1))
    assert flows is not None and torch.allclose(flows[:, 0], net(ref, supp), atol=1e-5)
