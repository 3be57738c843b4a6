"""Flow networks: the motion they are trained on, the loss, the training, and their place in a BasicVSR."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from nets import randomise_
from pydantic import ValidationError
from tiny_runs import options, write_clips, write_options
from torch import Tensor

from basicsr_ssl import count_macs, count_params, load_network, save_network
from basicsr_ssl.archs import PrunableBasicVSR, StandaloneSpyNet
from basicsr_ssl.checkpoints.convert import convert
from basicsr_ssl.cli import main
from basicsr_ssl.config import load_options
from basicsr_ssl.data import motion
from basicsr_ssl.data.flow_dataset import SyntheticFlowDataset, SyntheticFlowTestDataset
from basicsr_ssl.losses import MultiScaleEndPointLoss
from basicsr_ssl.models.networks import read_input_network
from basicsr_ssl.nn.spynet import AnySizeSpyNet

# ---- motion


def ramp(blue: int) -> np.ndarray:
    """A photograph whose red and green say where a pixel is, and whose blue says which photograph it is."""
    y, x = np.mgrid[:120, :120]
    return np.dstack([2 * x, 2 * y, np.full_like(x, blue)]).astype(np.uint8)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[motion.Pair]]:
    """Pairs as the camera would see them, without noise and exposure, from photographs in which a point is known."""
    monkeypatch.setattr(motion, '_photographed', lambda ref, supp, rng: (ref, supp))

    def make(objects: int, count: int = 12, max_motion: float = 5.0) -> list[motion.Pair]:
        rng = np.random.default_rng(objects)
        return [motion.moving_layers([ramp(40 + 60 * k) for k in range(objects + 1)], (64, 64), max_motion, rng)
                for _ in range(count)]

    return make


def at(frame: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear, pixel by pixel."""
    x0, y0 = min(math.floor(x), frame.shape[1] - 2), min(math.floor(y), frame.shape[0] - 2)
    a, b = x - x0, y - y0
    return ((1 - a) * (1 - b) * frame[y0, x0] + a * (1 - b) * frame[y0, x0 + 1]
            + (1 - a) * b * frame[y0 + 1, x0] + a * b * frame[y0 + 1, x0 + 1])


@pytest.mark.parametrize('objects', [0, 2])
def test_what_is_seen_at_p_lies_at_p_plus_flow(pairs: Callable[..., list[motion.Pair]], objects: int) -> None:
    errors, unmoved = [], []
    for pair in pairs(objects):
        for y in range(0, 64, 3):
            for x in range(0, 64, 3):
                u, v = pair.flow[y, x]
                if pair.valid[y, x] and 0 <= x + u <= 63 and 0 <= y + v <= 63:
                    errors.append(float(np.abs(at(pair.supp, x + u, y + v) - pair.ref[y, x]).mean()))
                    unmoved.append(float(np.abs(pair.supp[y, x] - pair.ref[y, x]).mean()))
    # nearly everywhere exact; the soft edges of objects mix two motions
    assert np.median(errors) < 1e-3 and np.quantile(errors, 0.9) < 0.012
    assert objects or np.median(unmoved) > 5 * np.median(errors)


def test_hidden_points_are_marked(pairs: Callable[..., list[motion.Pair]]) -> None:
    """By the blue of the layers: a point is valid exactly where the same layer is seen at its end, within the frame."""
    wrong = total = hidden = 0
    for pair in pairs(2):
        layer = [np.rint((frame[..., 2] * 255 - 40) / 60) for frame in (pair.ref, pair.supp)]
        pure = [np.abs(frame[..., 2] * 255 - (40 + 60 * k)) < 2 for frame, k in zip((pair.ref, pair.supp), layer)]
        for y in range(64):
            for x in range(64):
                u, v = pair.flow[y, x]
                tx, ty = round(float(x + u)), round(float(y + v))
                inside = 0 <= tx < 64 and 0 <= ty < 64
                if not inside:
                    assert not pair.valid[y, x]
                elif pure[0][y, x] and pure[1][ty, tx]:
                    same = layer[0][y, x] == layer[1][ty, tx]
                    wrong += same != pair.valid[y, x]
                    hidden += not same
                    total += 1
    assert hidden > 100 and wrong < 0.002 * total


def test_motion_is_often_small_and_at_times_none() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([np.hypot(*motion.random_flow((64, 96), 24.0, rng)[32, 48]) for _ in range(600)])
    assert 0.06 < (lengths == 0).mean() < 0.14
    assert 0.25 < (lengths < 1).mean() - (lengths == 0).mean() < 0.5 and lengths.max() > 15


def test_frames_differ_by_exposure_and_noise() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((64, 64, 3), 0.5, np.float32)
    both = [motion._photographed(grey, grey, rng) for _ in range(100)]
    assert np.std([ref.mean() - supp.mean() for ref, supp in both]) > 0.005
    assert 0.3 < np.mean([ref.std() > 0.001 for ref, _ in both]) < 0.7
    assert all(np.allclose(frame * 255, np.rint(frame * 255), atol=1e-4) for pair in both for frame in pair)


# ---- datasets


def photos(folder: Path, count: int = 3) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for k in range(count):
        texture = cv2.GaussianBlur(rng.random((90, 110, 3)), (0, 0), 2)
        texture = (texture - texture.min()) / np.ptp(texture)
        cv2.imwrite(str(folder / f'photo_{k}.png'), np.rint(texture * 255).astype(np.uint8))
    return folder


def section(folder: Path, **more: Any) -> dict[str, Any]:
    return {'name': 'motion', 'type': 'SyntheticFlowDataset', 'dataroot_gt': str(folder), 'frame_size': [32, 64],
            'max_motion': 6.0, **more}


def test_a_seed_fixes_an_item_and_nothing_else_does(tmp_path: Path) -> None:
    dataset = SyntheticFlowDataset(section(photos(tmp_path / 'photos')))
    items = []
    for seed in (1, 2, 1):
        random.seed(seed)
        np.random.seed(len(items))
        items.append(dataset[1])
    first, other, again = items
    for key in ('ref', 'supp', 'flow'):
        assert torch.equal(first[key].nan_to_num(99), again[key].nan_to_num(99))
    assert not torch.equal(first['ref'], other['ref']) and first['key'] == 'photo_1'
    assert first['ref'].shape == (3, 32, 64) and first['flow'].shape == (2, 32, 64)


def test_test_pairs_are_the_same_in_every_run_and_nan_where_nothing_can_be_found(tmp_path: Path) -> None:
    folder = photos(tmp_path / 'photos')
    options_ = section(folder, type='SyntheticFlowTestDataset', pairs_per_photo=4)
    one, two = SyntheticFlowTestDataset(options_), SyntheticFlowTestDataset(options_)
    other = SyntheticFlowTestDataset({**options_, 'seed': 1})
    assert len(one) == 12 and [one[i]['name'] for i in (0, 4, 11)] == ['photo_0_0', 'photo_1_1', 'photo_2_3']
    unknown = 0
    for i in (7, 3, 11):
        a, b = one[i], two[i]
        assert all(torch.equal(a[key].nan_to_num(99), b[key].nan_to_num(99)) for key in ('ref', 'supp', 'flow'))
        assert not torch.equal(a['ref'], other[i]['ref'])
        nan = a['flow'].isnan()
        assert torch.equal(nan[0], nan[1])
        y, x = np.mgrid[:32, :64]
        u, v = a['flow'].numpy()
        ends = np.rint(x + u), np.rint(y + v)
        outside = (ends[0] < 0) | (ends[0] > 63) | (ends[1] < 0) | (ends[1] > 31)
        assert not (outside & ~nan[0].numpy()).any()  # what leaves the frame is not known
        unknown += int(nan.sum())
    assert unknown > 0
    with pytest.raises(IndexError):
        one[12]


@pytest.mark.parametrize(('changes', 'message'), [
    ({'frame_size': [32, 60]}, r'multiples of 32, got \[32, 60\]'),
    ({'dataroot_gt': None}, 'no photographs: give photos'),
    ({'max_motion': 0.05}, 'greater than 0.1'),
    ({'photo': ['cat']}, 'Extra inputs'),
])
def test_bad_options(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticFlowDataset(section(tmp_path, **changes))


# ---- the loss


def slow_loss(flows: np.ndarray, target: np.ndarray, decay: float, exponent: float, eps: float) -> float:
    total = weights = 0.0
    levels = flows.shape[1]
    for level in range(levels):
        distances = []
        for b in range(len(target)):
            for y in range(target.shape[2]):
                for x in range(target.shape[3]):
                    u, v = target[b, :, y, x]
                    if math.isfinite(u) and math.isfinite(v):
                        du, dv = flows[b, level, 0, y, x] - u, flows[b, level, 1, y, x] - v
                        distances.append((du * du + dv * dv + eps * eps)**(exponent / 2))
        weight = decay**(levels - 1 - level)
        total += weight * sum(distances) / len(distances)
        weights += weight
    return total / weights


@pytest.mark.parametrize('exponent', [1.0, 0.4])
def test_loss_is_the_written_out_one(exponent: float) -> None:
    generator = torch.Generator().manual_seed(0)
    flows = torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    target[0, :, 1, 2] = math.nan
    target[1, 0, 3, 4] = math.nan  # one component is enough
    loss = MultiScaleEndPointLoss(2.5, 0.7, exponent, 0.02)(flows, target)
    expected = slow_loss(flows.detach().numpy(), target.numpy(), 0.7, exponent, 0.02)
    assert float(loss) == pytest.approx(2.5 * expected, rel=1e-12)
    loss.backward()
    assert flows.grad is not None and flows.grad.isfinite().all()
    assert not flows.grad[0, :, :, 1, 2].any() and not flows.grad[1, :, :, 3, 4].any() and flows.grad[0, 0, 0, 0, 0]
    single = MultiScaleEndPointLoss(1.0, 0.7, exponent, 0.02)(flows[:, -1], target)
    assert float(single) == pytest.approx(slow_loss(flows.detach().numpy()[:, -1:], target.numpy(), 1, exponent, 0.02),
                                          rel=1e-12)


def test_loss_of_nothing_known_is_zero_and_bad_arguments_are_refused() -> None:
    flows = torch.ones(1, 2, 4, 4, requires_grad=True)
    loss = MultiScaleEndPointLoss()(flows, torch.full((1, 2, 4, 4), math.nan))
    loss.backward()
    assert float(loss) == 0 and flows.grad is not None and not flows.grad.any()
    for bad in ({'exponent': 0.0}, {'decay': -1.0}):
        with pytest.raises(ValueError, match='must be above 0'):
            MultiScaleEndPointLoss(**bad)


# ---- the network


def spynet(size: Any, seed: int = 0) -> StandaloneSpyNet:
    torch.manual_seed(seed)
    net = StandaloneSpyNet(size)
    randomise_(net)
    return net


def frames(h: int, w: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ref, supp = (torch.rand(2, 3, h, w, generator=generator, dtype=dtype) for _ in range(2))
    return ref, supp


@pytest.mark.parametrize('size', ['full', 'small'])
def test_training_gives_the_flows_of_all_levels_at_full_size(size: Any) -> None:
    net = spynet(size).double()
    ref, supp = frames(64, 96)
    levels = net.train()(ref, supp)
    assert levels.shape == (2, 6, 2, 64, 96)
    assert torch.allclose(levels[:, -1], net.eval()(ref, supp), atol=1e-12)
    # a level that always answers c pixels of its own size moves by c * 2^(5 - level) at full size, and so do all after
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        last: Any = list(net.basic_module[2].modules())[-1]
        last.bias.copy_(torch.tensor([0.25, -0.5]))
    levels = net.train()(ref, supp)
    for level in range(6):
        expected = torch.tensor([2.0, -4.0], dtype=torch.float64) if level >= 2 else torch.zeros(2, dtype=torch.float64)
        assert torch.allclose(levels[:, level], expected.view(1, 2, 1, 1).expand(2, 2, 64, 96), atol=1e-12)
    # what a level learns is its own: coarser ones are not taught by its error
    randomise_(net)
    net.zero_grad()
    net(ref, supp)[:, 3].sum().backward()
    taught = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in level.parameters())
              for level in net.basic_module]
    assert taught == [False, False, False, True, False, False]
    with pytest.raises(ValueError, match='multiples of 32, got 64 x 90'):
        net(ref[..., :90], supp[..., :90])


def test_levels_that_share_their_weights(tmp_path: Path) -> None:
    """One level, used six times; its file is one of six levels, for which another network may go on from it."""
    torch.manual_seed(0)
    net = StandaloneSpyNet('small', shared=True)
    randomise_(net)
    apart = StandaloneSpyNet('small')
    apart.load_state_dict(net.state_dict())
    ref, supp = frames(64, 96, torch.float32)
    assert torch.equal(net.eval()(ref, supp), apart.eval()(ref, supp))
    assert 6 * sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in apart.parameters())
    # gradients of all levels meet
    net.train()(ref, supp).square().mean().backward()
    apart.train()(ref, supp).square().mean().backward()
    for name, shared in net.basic_module[0].named_parameters():
        grads: Any = [dict(level.named_parameters())[name].grad for level in apart.basic_module]
        together = torch.stack(grads).sum(0)
        torch.testing.assert_close(shared.grad, together, rtol=1e-4, atol=1e-6)
    save_network(net, tmp_path / 'net.safetensors')
    again: Any = load_network(tmp_path / 'net.safetensors')
    assert again.spec == net.spec and again.spec.args == {'size': 'small', 'shared': True}
    assert len({id(level) for level in again.basic_module}) == 1
    goes_on = read_input_network({'path': {'pretrain_network_g': str(tmp_path / 'net.safetensors')},
                                  'network_g': {'type': 'StandaloneSpyNet', 'size': 'small', 'shared': False}})
    assert goes_on.spec.args == {'size': 'small'} and len({id(level) for level in goes_on.basic_module}) == 6
    assert torch.equal(goes_on.eval()(ref, supp), net.eval()(ref, supp))
    vsr = PrunableBasicVSR(8, 1, 8, flow='spynet_small', spynet_path=str(tmp_path / 'net.safetensors'))
    assert isinstance(vsr.spynet, AnySizeSpyNet) and len({id(level) for level in vsr.spynet.basic_module}) == 6
    for bad in ({'gates': 'scale'}, {'widths': {'basic_module.0.basic_module.0': 3}}):
        with pytest.raises(ValueError, match='levels that share their weights are not pruned'):
            StandaloneSpyNet('small', shared=True, **bad)  # type: ignore[arg-type]


def test_small_network_costs_a_ninth() -> None:
    full, small = StandaloneSpyNet(), StandaloneSpyNet('small')
    for net in (full, small):
        assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())
    assert 8.5 < count_params(full) / count_params(small) < 9.5
    assert 8.5 < count_macs(full) / count_macs(small) < 9.5
    with pytest.raises(ValueError, match="size must be full or small, got 'tiny'"):
        StandaloneSpyNet('tiny')  # type: ignore[arg-type]


def test_a_file_of_either_size_goes_into_the_basicvsr_of_that_flow(tmp_path: Path) -> None:
    files = {size: tmp_path / f'{size}.safetensors' for size in ('full', 'small')}
    for size, file in files.items():
        save_network(spynet(size), file)
        again: Any = load_network(file)
        assert again.size == size
    x = torch.rand(1, 3, 3, 12, 16)
    flows: list[tuple[str, Any]] = [('full', 'spynet'), ('small', 'spynet_small')]
    for size, flow in flows:
        net = PrunableBasicVSR(num_feat=8, num_block=1, tail_feat=8, flow=flow, spynet_path=str(files[size]))
        expected: Any = load_network(files[size])
        forward, backward = net.compute_flows(x)
        assert forward is not None and backward is not None and isinstance(net.spynet, AnySizeSpyNet)
        with torch.no_grad():
            assert torch.allclose(forward[:, 1], expected.eval()(x[:, 2], x[:, 1]), atol=1e-6)
            assert torch.allclose(backward[:, 0], expected.eval()(x[:, 0], x[:, 1]), atol=1e-6)
        save_network(net, tmp_path / 'net.safetensors')
        loaded: Any = load_network(tmp_path / 'net.safetensors')
        assert loaded.spec.args['flow'] == flow and torch.equal(loaded(x), net(x))
        assert count_params(net) == sum(parameter.numel() for parameter in net.parameters())
        # in training it is the flow of a clip still, not that of all levels
        assert net.train()(x).shape == (1, 3, 3, 48, 64)
    with pytest.raises(ValueError, match='holds a SpyNet of the size small: set flow: spynet_small'):
        PrunableBasicVSR(num_feat=8, num_block=1, spynet_path=str(files['small']))


def test_small_networks_survive_plain_state_dicts_but_are_no_basicsr_files(tmp_path: Path) -> None:
    for net in (spynet('small'), PrunableBasicVSR(num_feat=8, num_block=1, flow='spynet_small')):
        torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
        loaded: Any = load_network(tmp_path / 'net.pth')
        assert loaded.spec == net.spec
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values()))
        save_network(net, tmp_path / 'net.safetensors')
        with pytest.raises(ValueError, match=r'no small SpyNet|no small flow network'):
            convert(str(tmp_path / 'net.safetensors'), str(tmp_path / 'out.pth'), 'basicsr')


# ---- training


def run_options(folder: Path, **changes: Any) -> dict[str, Any]:
    train, val = section(folder, batch_size_per_gpu=2), section(folder, type='SyntheticFlowTestDataset')
    return {**options(folder), 'scale': 1, 'network_g': {'type': 'StandaloneSpyNet', 'size': 'small'},
            'datasets': {'train': train, 'val': val}, 'val': {'val_freq': 4, 'pbar': False, 'metrics': {}},
            'train': {'total_iter': 8, 'optim_g': {'type': 'Adam', 'lr': 1e-3}, 'scheduler': {
                'type': 'MultiStepLR', 'milestones': []}, 'pixel_opt': {'type': 'MultiScaleEndPointLoss'},
                'ema_decay': 0.5}, **changes}


def test_a_flow_network_learns_by_the_loss_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, by hand; and eight in one go are four and four."""
    folder = photos(tmp_path / 'photos')
    monkeypatch.chdir(tmp_path)
    opt = run_options(folder)
    write_options(tmp_path / 'run.yml', opt)
    assert main(['train', '-opt', str(tmp_path / 'run.yml')]) == 0
    whole: Any = load_network('experiments/run/models/net_g_latest.safetensors')
    assert whole.task == 'flow' and set(whole.provenance['metrics']['motion']) == {'epe', 'epe_of_zero_flow'}
    states = tmp_path / 'experiments/run/training_states'
    first = torch.load(states / '4.state', weights_only=True)
    assert first['net'].keys() == whole.state_dict().keys()

    (tmp_path / 'experiments/run/models/net_g_latest.safetensors').unlink()
    (states / '8.state').unlink()
    assert main(['train', '-opt', str(tmp_path / 'run.yml'), '--auto_resume']) == 0
    again: Any = load_network('experiments/run/models/net_g_latest.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_validation_is_of_the_full_flow_and_leaves_training_alone(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode it gives the flows of all levels; without a moving average it is the network in training."""
    folder = photos(tmp_path / 'photos')
    monkeypatch.chdir(tmp_path)
    nets = {}
    for name, freq in (('often', 2), ('once', 8)):
        opt = run_options(folder, name=name)
        opt['train']['ema_decay'], opt['val']['val_freq'] = 0, freq
        write_options(tmp_path / 'run.yml', opt)
        assert main(['train', '-opt', str(tmp_path / 'run.yml')]) == 0
        nets[name] = load_network(f'experiments/{name}/models/net_g_latest.safetensors')
    often, once = nets.values()
    assert all(torch.equal(a, b) for a, b in zip(often.state_dict().values(), once.state_dict().values()))
    pairs = SyntheticFlowTestDataset(load_options(tmp_path / 'run.yml')['datasets']['val'])
    errors = []
    for pair in (pairs[i] for i in range(len(pairs))):
        with torch.no_grad():
            flow = once.eval()(pair['ref'][None], pair['supp'][None])[0]
        errors.append((flow - pair['flow']).square().sum(0).sqrt().nanmean().item())
    assert once.provenance['metrics']['motion']['epe'] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_tasks_do_not_mix(tmp_path: Path) -> None:
    folder = photos(tmp_path / 'photos')
    opt = {'path': {}, **run_options(folder)}
    assert read_input_network(opt).task == 'flow'
    clips = options(write_clips(tmp_path / 'clips'))
    with pytest.raises(ValueError, match='train: ClipFoldersDataset is for networks of the task clip, but network_g '
                                         'holds a StandaloneSpyNet, of the task flow: name it as network_g: spynet'):
        read_input_network({**opt, 'datasets': clips['datasets']})
    with pytest.raises(ValueError, match='SyntheticFlowDataset is for networks of the task flow, but network_g holds a '
                                         'PrunableBasicVSR, of the task clip'):
        read_input_network({**opt, 'network_g': clips['network_g']})
    parts = {'name': 'both', 'type': 'MixedDataset', 'parts': [opt['datasets']['train'], clips['datasets']['train']]}
    with pytest.raises(ValueError, match='both: the parts of a MixedDataset must be for one task, not for clip and fl'):
        read_input_network({**opt, 'datasets': {'train': parts}})
    mixed = {**parts, 'parts': [opt['datasets']['train']] * 2}
    assert read_input_network({**opt, 'datasets': {'train': mixed}}).task == 'flow'
