"""Exported files, run by their runtimes, against the networks that they were made from, run by torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from basicsr_ssl import cli, prune_network, save_network
from basicsr_ssl.api import with_gates
from basicsr_ssl.archs import PrunableEDSR, PrunableSwinIR, StandaloneSpyNet
from basicsr_ssl.evaluation.inference import super_resolve
from basicsr_ssl.export import formats, proof
from basicsr_ssl.export.command import export
from basicsr_ssl.export.forms import GatheringChannels, lowered, make_form
from basicsr_ssl.export.metadata import describe, openvino_core, read_metadata
from basicsr_ssl.export.networks import ConvertedNetwork
from basicsr_ssl.export.runtimes import Exported, mirrored
from basicsr_ssl.files import file_sha256
from basicsr_ssl.nn.blocks import Channels
from tests.nets import clip, random_gates_, randomise_, tiny_net

ROOT = Path(__file__).parents[1]
SUFFIX = {'onnx': '.onnx', 'openvino': '.xml', 'torch': '.pt2'}
NEEDS = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'openvino': ('onnx', 'onnxscript', 'openvino'), 'torch': ()}
H, W = 24, 40


def edsr(**args: Any) -> PrunableEDSR:
    torch.manual_seed(0)
    net = PrunableEDSR(num_feat=8, num_block=2, **args)
    randomise_(net)
    return net


def swinir() -> PrunableSwinIR:
    torch.manual_seed(0)
    net = PrunableSwinIR(embed_dim=12, depths=[2], num_heads=[3], window_size=4)
    randomise_(net)
    return net


def flow_net() -> StandaloneSpyNet:
    torch.manual_seed(0)
    net = StandaloneSpyNet('small')
    for parameter in net.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, 0, parameter[0].numel()**-0.5)
    return net


def compact(net: nn.Module) -> nn.Module:
    return prune_network(net, 0.4, budget='macs', score='l1')


def gated(net: nn.Module) -> nn.Module:
    net = with_gates(net)
    random_gates_(net)
    return net


def flowing(**args: Any) -> Any:
    """With a flow network whose flows are some pixels long."""
    net = tiny_net(flow='spynet_small', **args)
    assert net.spynet is not None
    net.spynet.load_state_dict(flow_net().state_dict())
    return net


NETS = {
    'bi': tiny_net, 'bi-compact': lambda: compact(tiny_net()), 'bi-gated': lambda: gated(tiny_net()),
    'bi-flow-compact': lambda: compact(flowing()),
    'uni-flow-compact': lambda: compact(flowing(bidirectional=False)),
    'uni-compact': lambda: compact(tiny_net(bidirectional=False)),
    'uni-x2': lambda: tiny_net(bidirectional=False, scale=2),
    'edsr-compact': lambda: compact(edsr()), 'edsr-gated': lambda: gated(edsr()), 'flow': flow_net,
    'swinir-compact': lambda: prune_network(swinir(), 0.2, budget='macs', score='l1'),
}


@lru_cache
def network(name: str) -> Any:
    return NETS[name]().eval()


def needs(to: str) -> None:
    for module in NEEDS[to]:
        pytest.importorskip(module)


def written(net: nn.Module, to: str, folder: Path, form: str = 'window', frames: int | None = None, every: bool = False,
            precision: str = 'fp32', dynamic: bool = False, size: tuple[int, int] = (H, W)) -> Exported:
    """A file as ``export`` writes it, without its proof."""
    needs(to)
    made = make_form(net, form, size, frames, every)
    path = folder / f'net{SUFFIX[to]}'
    formats.write(formats.convert(made, to, precision, dynamic), to, path,
                  formats.described(made, to, precision, dynamic))
    return Exported(path)


Step = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope='module')
def step_with_flow(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """The step form of a compact network with flow, in a format: its file and metadata. Made once."""
    @lru_cache
    def made(to: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(to)
        exported = written(network('uni-flow-compact'), to, folder, 'step')
        return folder / f'net{SUFFIX[to]}', exported.metadata
    return made


def largest(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


# ---------------------------------------------------------------- forms and formats


@pytest.mark.parametrize(('to', 'name', 'frames', 'every'), [
    pytest.param('onnx', 'bi-flow-compact', 3, False, marks=pytest.mark.slow),  # a third of the time of this file
    ('onnx', 'bi-gated', 3, True), ('onnx', 'edsr-compact', None, False),
    ('onnx', 'uni-compact', 3, False), ('openvino', 'bi-compact', 5, False), ('openvino', 'edsr-gated', None, False),
    ('onnx', 'swinir-compact', None, False), ('openvino', 'swinir-compact', None, False), ('torch', 'bi', 2, True)])
@torch.no_grad()
def test_a_window_stacks_frames_in_channels(to: str, name: str, frames: int | None, every: bool, tmp_path: Path
                                            ) -> None:
    net = network(name)
    exported = written(net, to, tmp_path, 'window', frames, every)
    x = clip(frames or 1, H, W)
    expected = net(x[0])[None] if net.task == 'image' else net(x)
    stacked = torch.cat([x[:, i] for i in range(x.shape[1])], dim=1)
    hr = [expected[:, i] for i in range(x.shape[1])]
    expected = torch.cat(hr, dim=1) if every else hr[len(hr) // 2]
    assert largest(exported.call({'input': stacked})['output'], expected) < 1e-5


@pytest.mark.parametrize(('to', 'name'), [('onnx', 'bi-compact'), ('openvino', 'bi-gated'),
                                          ('torch', 'bi-flow-compact'), ('onnx', 'edsr-gated')])
@torch.no_grad()
def test_a_clip_is_what_the_network_takes(to: str, name: str, tmp_path: Path) -> None:
    net = network(name)
    x = clip(3, H, W)
    expected = net(x[0])[None] if name.startswith('edsr') else net(x)
    assert largest(written(net, to, tmp_path, 'clip', 3).call({'input': x})['output'], expected) < 1e-5


@pytest.mark.parametrize(('to', 'name'), [('onnx', 'uni-flow-compact'), ('openvino', 'uni-flow-compact'),
                                          ('torch', 'uni-flow-compact'), ('onnx', 'uni-x2')])
@torch.no_grad()
def test_steps_carry_a_named_state_along(to: str, name: str, tmp_path: Path, step_with_flow: Step) -> None:
    net = network(name)
    exported = Exported(step_with_flow(to)[0]) if 'flow' in name else written(net, to, tmp_path, 'step')
    x = clip(4, H, W)
    expected, states = net(x, return_states=True)
    parts = {'hidden': 8, 'previous': 3} if 'flow' in name else {'hidden': 8}
    state = {f'{part}_in': torch.zeros(1, count, H, W) for part, count in parts.items()}
    for i in range(4):
        found = exported.call({'input': x[:, i], **state})
        assert largest(found['output'], expected[:, i]) < 1e-5
        assert largest(found['hidden_out'], states['forward'][:, i]) < 1e-4
        state = {f'{part}_in': found[f'{part}_out'] for part in parts}
        assert 'flow' not in name or state['previous_in'].equal(x[:, i])


@pytest.mark.parametrize('to', SUFFIX)
@torch.no_grad()
def test_flow_is_a_window_of_two_frames(to: str, tmp_path: Path) -> None:
    net = flow_net().eval()
    x = clip(2, H, W)
    expected = net(x[:, 0], x[:, 1])
    assert expected.abs().max() > 0.5  # pixels
    assert largest(written(net, to, tmp_path).call({'input': x.flatten(1, 2)})['output'], expected) < 1e-4


@pytest.mark.parametrize('to', SUFFIX)
@torch.no_grad()
def test_free_sizes(to: str, tmp_path: Path) -> None:
    net = network('uni-compact')
    exported = written(net, to, tmp_path, 'step', dynamic=True)
    for h, w in ((H, W), (37, 18)):
        x = clip(3, h, w)
        assert largest(torch.stack(list(exported.stream(x[0]))), net(x)[0]) < 1e-5
    assert exported.metadata['inputs']['input']['shape'] == [1, 3, 'h', 'w']
    assert exported.metadata['outputs']['output']['shape'] == [1, 3, '4*h', '4*w']


def test_attention_in_windows_has_no_free_sizes() -> None:
    with pytest.raises(ValueError, match=r'PrunableSwinIR computes depends on the size .* leave --dynamic out'):
        formats.convert(make_form(network('swinir-compact'), 'window', (H, W)), 'torch', dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize('to', SUFFIX)
@torch.no_grad()
def test_free_sizes_with_flow_are_multiples_of_32(to: str, tmp_path: Path) -> None:
    net = network('uni-flow-compact')
    exported = written(net, to, tmp_path, 'step', dynamic=True, size=(64, 96))
    for h, w in ((64, 96), (128, 64)):
        x = clip(3, h, w)
        assert largest(torch.stack(list(exported.stream(x[0]))), net(x)[0]) < 1e-5
    for h, w in ((64, 80), (32, 64)):
        with pytest.raises(ValueError, match=f'multiples of 32, from 64 on, not {h}x{w}'):
            list(exported.stream(clip(1, h, w)[0]))


def test_the_pairs_of_the_state_make_openvinos_model_stateful(step_with_flow: Step) -> None:
    needs('openvino')
    from openvino import passes
    net, (path, metadata) = network('uni-flow-compact'), step_with_flow('openvino')
    model = openvino_core().read_model(path)
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(metadata['state']))
    manager.run_passes(model)
    request = openvino_core().compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'}).create_infer_request()
    x = clip(3, H, W)
    with torch.no_grad():
        expected = net(x)
    for _ in range(2):
        for i in range(3):
            found = torch.from_numpy(request.infer({'input': x[:, i].numpy()})['output'].copy())
            assert largest(found, expected[:, i]) < 1e-5
        request.reset_state()


def test_adding_by_gathering_is_adding() -> None:
    x, units = torch.rand(2, 9, 3, 4), [0, 2, 3, 8]
    change = torch.rand(2, 4, 3, 4)
    expected = x.clone()
    for i, unit in enumerate(units):
        expected[:, unit] += change[:, i]
    assert GatheringChannels(units).add(x, change).equal(expected)
    assert Channels(units).add(x, change).equal(expected)


def test_onnx_files_have_no_operator_that_few_programs_know(step_with_flow: Step) -> None:
    onnx = pytest.importorskip('onnx')
    path, _ = step_with_flow('onnx')
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 18)]
    assert {'GridSample', 'Gather'} <= {node.op_type for node in model.graph.node}
    reductions = {one.s for node in model.graph.node for one in node.attribute if one.name == 'reduction'}
    assert reductions <= {b'none'}
    assert str(ROOT).encode() not in path.read_bytes()  # nor the exporter's notes


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(('to', 'precision', 'least'), [('onnx', 'fp16', 60), ('openvino', 'fp16', 70),
                                                        ('openvino', 'bf16', 40), ('torch', 'bf16', 40)])
def test_sixteen_bits(to: str, precision: str, least: float, tmp_path: Path) -> None:
    net = network('uni-compact')
    full, half = (tmp_path / name for name in ('full', 'half'))
    made, x, figures = make_form(net, 'step', (H, W)), clip(3, H, W)[0], []
    for folder, kind in ((full, 'fp32'), (half, precision)):
        folder.mkdir()
        figures.append(proof.compare(made, written(net, to, folder, 'step', precision=kind).call, x)['psnr'])
    assert figures[0] > 120
    assert least < figures[1] < figures[0]
    if to == 'openvino' and precision == 'fp16':
        assert (half / 'net.bin').stat().st_size < 0.6 * (full / 'net.bin').stat().st_size


@torch.no_grad()
def test_flow_stays_in_float32() -> None:
    form = make_form(flowing(bidirectional=False), 'step', (H, W))
    half = lowered(form, 'bf16')
    net: Any = half.net
    assert {parameter.dtype for parameter in net.spynet.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in net.forward_trunk.parameters()} == {torch.bfloat16}
    x = clip(3, H, W)[0]
    assert 40 < proof.compare(form, lambda values: dict(zip(form.outputs, half(*values.values()))), x)['psnr'] < 80


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two clips of 5 smooth frames of 24x40 pixels."""
    made = []
    for name, seed in (('one', 0), ('two', 1)):
        generator = np.random.default_rng(seed)
        folder = tmp_path / name
        folder.mkdir()
        small = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        for i in range(5):
            Image.fromarray(small).resize((W, H), Image.Resampling.BICUBIC).rotate(i).save(folder / f'{i}.png')
        made.append(str(folder))
    return made


@pytest.mark.slow  # NNCF alone takes longer to import than the other tests
@pytest.mark.parametrize(('form', 'name'), [('step', 'uni-flow-compact'), ('window', 'bi-compact')])
def test_int8_is_calibrated_on_real_frames(form: str, name: str, folders: list[str], tmp_path: Path) -> None:
    pytest.importorskip('nncf')
    needs('openvino')
    import openvino as ov
    net, source, out = network(name), tmp_path / 'net.safetensors', tmp_path / 'int8.xml'
    save_network(net, source)
    export(str(source), str(out), 'openvino', form, (H, W), 3 if form == 'window' else None, precision='int8',
           clips=folders, min_psnr=25)
    assert 25 < read_metadata(out)['proof']['real']['psnr'] < 70
    weights = [op for op in openvino_core().read_model(out).get_ops()
               if op.get_type_name() == 'Constant' and op.get_element_type() == ov.Type.i8]
    assert len(weights) == len([layer for layer in net.cost_table if not layer.flow])


def test_int8_needs_real_frames() -> None:
    form = make_form(tiny_net(), 'window', (H, W), 7)
    for clips in ([], [clip(6, H, W)[0]]):
        with pytest.raises(ValueError, match=r'calibrated on real frames: --clips .* of 7 or more'):
            proof.calibration_calls(form, clips)


def test_calibration_takes_states_along(folders: list[str]) -> None:
    net = flowing(bidirectional=False).eval()
    frames = [proof.real_clip(folder, (H, W), None) for folder in folders]
    calls = proof.calibration_calls(make_form(net, 'step', (H, W)), frames)
    with torch.no_grad():
        states = [net(one[None], return_states=True)[1]['forward'][0] for one in frames]
    assert len(calls) == 10
    for number, (frame, previous, hidden) in enumerate(calls):
        which, i = divmod(number, 5)
        assert frame[0].equal(frames[which][i])
        assert previous[0].equal(frames[which][i - 1] if i else torch.zeros(3, H, W))
        assert largest(hidden[0], states[which][i - 1] if i else torch.zeros(8, H, W)) < 1e-5


# ---------------------------------------------------------------- the proof


def test_figures_of_the_proof() -> None:
    net = tiny_net(bidirectional=False)
    form = make_form(net, 'window', (H, W), 1)

    def wrong(values: dict[str, Tensor]) -> dict[str, Tensor]:
        found = form(values['input'])[0]
        found[0, 1, 2, 3] += 0.25
        return {'output': found}

    x = clip(2, H, W)[0]
    figures = proof.compare(form, wrong, x)
    values = 2 * 3 * 16 * H * W
    with torch.no_grad():
        peak = max(1, float(net.eval()(x[:, None]).abs().max()))
    assert figures['max_difference'] == pytest.approx(0.25, abs=1e-5)
    assert figures['psnr'] == pytest.approx(20 * np.log10(peak) - 10 * np.log10(2 * 0.25**2 / values), abs=1e-3)
    with pytest.raises(ValueError, match=r'network: 59\.\d dB on real frames, largest difference 0\.25; fp32 must'):
        proof.judge({'real': figures}, 'fp32', None)
    proof.judge({'real': figures}, 'fp32', 59)
    proof.judge({'random': figures, 'real': {**figures, 'psnr': 40}}, 'int8', 35)
    with pytest.raises(ValueError, match='int8 must reach 41 dB'):
        proof.judge({'real': {**figures, 'psnr': 40}}, 'int8', 41)


def test_what_is_not_finite_is_no_proof() -> None:
    form = make_form(tiny_net(), 'window', (H, W), 1)
    figures = proof.compare(form, lambda values: {'output': torch.full((1, 3, 4 * H, 4 * W), torch.nan)},
                            clip(1, H, W)[0])
    with pytest.raises(ValueError, match='differs'):
        proof.judge({'random': figures}, 'fp32', 0)


@pytest.mark.parametrize('to', ['openvino', 'torch'])
def test_beyond_tolerance_nothing_is_written(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(to)
    source, folder = tmp_path / 'net.safetensors', tmp_path / 'out'
    save_network(tiny_net(), source)

    def faulty(*args: Any, **kwargs: Any) -> Any:
        form: Any = lowered(*args, **kwargs)
        form.net.conv_last.bias[0] += 1e-3
        return form

    monkeypatch.setattr(formats, 'lowered', faulty)
    folder.mkdir()
    with pytest.raises(ValueError, match=r'6\d\.\d dB on random frames.*Nothing was written'):
        export(str(source), str(folder / f'net{SUFFIX[to]}'), to, size=(H, W), frames=1)
    assert not list(folder.iterdir())


@pytest.mark.parametrize('size', [(16, 32), (60, 90)])
def test_real_frames_are_cut_or_mirrored(size: tuple[int, int], folders: list[str]) -> None:
    found = proof.real_clip(folders[0], size, 7)
    frames = [np.asarray(Image.open(Path(folders[0]) / f'{i}.png')) for i in range(5)]
    for i, number in enumerate((0, 1, 2, 3, 4, 3, 2)):
        frame = frames[number]
        frame = np.pad(frame, ((18, 18), (25, 25), (0, 0)), 'symmetric') if size == (60, 90) else frame[4:20, 4:36]
        assert np.array_equal(found[i].permute(1, 2, 0).numpy(), frame.astype(np.float32) / 255)


def test_without_real_frames_a_photograph_moves() -> None:
    found = proof.real_clip(None, (30, 40), 3)
    for i in (1, 2):
        assert found[i][:, :-1, :-2].equal(found[i - 1][:, 1:, 2:])
    assert not found[0].equal(found[1])


# ---------------------------------------------------------------- running files


def test_mirrored_positions() -> None:
    assert mirrored(range(-4, 8), 3) == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    assert mirrored(range(-2, 3), 1) == [0] * 5


@torch.no_grad()
def test_a_window_slides_over_a_clip(tmp_path: Path) -> None:
    net = tiny_net().eval()
    exported = written(net, 'torch', tmp_path, frames=5)
    for count in (0, 1, 2, 3, 6):
        x = clip(count, H, W)[0]
        found = list(exported.stream(iter(x)))
        assert len(found) == count
        for i in range(count):
            window = torch.stack([x[at] for at in mirrored(range(i - 2, i + 3), count)])
            assert largest(found[i], net(window[None])[0, 2]) < 1e-5


@pytest.mark.parametrize(('form', 'every'), [('clip', False), ('window', True)])
@torch.no_grad()
def test_clips_are_laid_over_a_longer_one(form: str, every: bool, tmp_path: Path) -> None:
    net = tiny_net().eval()
    exported = written(net, 'torch', tmp_path, form, 5, every)
    for count in (2, 5, 12):
        x = clip(count, H, W)[0]
        found = torch.stack(list(exported.stream(iter(x))))
        if count < 5:
            expected = net(x[mirrored(range(5), count)][None])[0, :count]
        else:
            expected = torch.stack(list(super_resolve(net, x, segment=5, overlap=4)))
        assert largest(found, expected) < 1e-5


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    exported = written(tiny_net(), 'torch', tmp_path, frames=1)
    with pytest.raises(ValueError, match=r'frames of 24x40, not of 24x44: export the network again, with --size'):
        list(exported.stream(clip(1, 24, 44)[0]))
    with pytest.raises(ValueError, match='makes no frames'):
        list(written(flow_net(), 'torch', tmp_path).stream(clip(2, H, W)[0]))


def test_a_file_is_run_by_what_can_run_it(tmp_path: Path) -> None:
    written(tiny_net(), 'torch', tmp_path, frames=1)
    with pytest.raises(ValueError, match=r'net\.pt2 is run by torch, not by openvino'):
        Exported(tmp_path / 'net.pt2', 'openvino')


def test_openvino_runs_onnx_files_too(tmp_path: Path) -> None:
    needs('openvino')
    net = network('uni-compact')
    written(net, 'onnx', tmp_path, 'step')
    x = clip(3, H, W)
    with torch.no_grad():
        assert largest(torch.stack(list(Exported(tmp_path / 'net.onnx', 'openvino').stream(x[0]))), net(x)[0]) < 1e-5


@pytest.mark.parametrize(('name', 'runtime'), [
    ('bi', 'onnxruntime'), ('uni-compact', 'openvino'), ('edsr-compact', 'onnxruntime'),
    pytest.param('bi-flow-compact', 'openvino', marks=pytest.mark.slow)])
def test_other_runtimes_give_the_same_frames(name: str, runtime: str) -> None:
    needs({'onnxruntime': 'onnx'}.get(runtime, runtime))
    net = network(name)
    converted = ConvertedNetwork(net, runtime)
    settings: dict[str, Any]
    for x, settings in ((clip(4, 12, 16)[0], {'segment': 3, 'overlap': 1}), (clip(3, 16, 12)[0], {})):
        expected = torch.stack(list(super_resolve(net, x, **settings)))
        assert largest(torch.stack(list(super_resolve(converted, iter(x), **settings))), expected) < 1e-5


# ---------------------------------------------------------------- the command


def test_the_command_and_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs('openvino')
    net: Any = compact(tiny_net(bidirectional=False))
    source, out = tmp_path / 'net.safetensors', tmp_path / 'sub' / 'net.xml'
    save_network(net, source, stage='here', licence='MIT', options={'long': 1})
    command = ['export', str(source), str(out), '--format', 'openvino']
    assert cli.main([*command, '--form', 'step', '--size', '24', '40']) == 0
    text = capsys.readouterr().out
    assert {file.name for file in out.parent.iterdir()} == {'net.xml', 'net.bin'}
    assert re.search(r'proof +1\d\d\.\d dB against torch on random frames', text)
    assert re.search(r'proof +1\d\d\.\d dB against torch on real frames', text)
    metadata = read_metadata(out)
    assert metadata.pop('proof').keys() == {'random', 'real'}
    frames = {'layout': 'N C H W', 'type': 'float32', 'range': [0, 1], 'colour': 'RGB'}
    hidden = {'shape': [1, 8, 24, 40], 'layout': 'N C H W', 'type': 'float32'}
    assert metadata == {
        'version': 1, 'format': 'openvino', 'form': 'step', 'precision': 'fp32', 'task': 'clip', 'scale': 4,
        'frames': 1, 'every': False, 'lr_size': [24, 40], 'multiple': 1,
        'inputs': {'input': {'shape': [1, 3, 24, 40], **frames}, 'hidden_in': hidden},
        'outputs': {'output': {'shape': [1, 3, 96, 160], **frames}, 'hidden_out': hidden},
        'state': {'hidden_in': 'hidden_out'}, 'spec': json.loads(net.spec.to_json()),
        'source': {'file': 'net.safetensors', 'sha256': file_sha256(source)}, 'licence': 'MIT',
        'provenance': {'stage': 'here', 'licence': 'MIT'}, 'versions': metadata['versions']}

    assert cli.main(['info', str(out)]) == 0
    assert 'step form in fp32, for openvino' in capsys.readouterr().out
    assert cli.main(['info', '--json', str(source), str(out)]) == 0
    assert [one.get('form') for one in json.loads(capsys.readouterr().out)] == ['compact', 'step']

    assert cli.main(command) == 1
    assert f'{out} exists; remove it' in capsys.readouterr().err
    out.unlink()
    assert cli.main(command) == 1
    assert f'{out.with_suffix(".bin")} exists' in capsys.readouterr().err


@pytest.mark.parametrize('to', ['onnx', 'torch'])
def test_metadata_of_the_other_formats(to: str, tmp_path: Path) -> None:
    needs(to)
    source, out = tmp_path / 'net.safetensors', tmp_path / f'net{SUFFIX[to]}'
    save_network(tiny_net(), source)
    export(str(source), str(out), to, size=(H, W), frames=1, licence='CC0')
    described = describe(out)
    assert described['licence'] == 'CC0'
    assert described['size'] == out.stat().st_size
    assert described['proof']['real']['psnr'] > 120
    assert Exported(out).metadata == read_metadata(out)


@pytest.mark.parametrize(('name', 'args', 'message'), [
    ('bi', ['--form', 'step'], 'step form is for unidirectional networks; this one is bidirectional'),
    ('edsr-gated', ['--form', 'step'], 'step form is for unidirectional networks; this one is not recurrent'),
    ('uni-x2', ['--form', 'step', '--frames', '3'], 'one frame at a time: leave --frames out'),
    ('flow', ['--form', 'clip'], 'export it as --form window'),
    ('flow', ['--frames', '3'], 'between two frames: leave --frames out'),
    ('flow', ['--precision', 'fp16'], 'a flow network has no fp16'),
    ('flow', ['--dynamic', '--size', '64', '80'], 'multiples of 32 with this network, from 64 on, and 64x80 is not'),
    ('bi', ['--frames', '4'], 'a window of 4 frames has none in the middle: choose an odd number'),
    ('bi', ['--form', 'clip', '--all-frames'], '--all-frames is for --form window'),
    ('bi', ['--size', '0', '8'], 'positive'),
    ('bi', ['--precision', 'int8'], 'torch has no int8 here'),
    ('bi', ['--format', 'onnx'], 'the output is named *.onnx'),
])
def test_what_does_not_fit_is_refused(name: str, args: list[str], message: str, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    save_network(NETS[name](), tmp_path / 'net.safetensors')
    out = tmp_path / 'net.pt2'
    assert cli.main(['export', str(tmp_path / 'net.safetensors'), str(out), '--format', 'torch', *args]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_library_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    assert cli.main(['export', 'net.safetensors', str(tmp_path / 'net.onnx')]) == 1
    assert "onnx is needed for this and cannot be imported" in (text := capsys.readouterr().err)
    assert "pip install -c constraints.txt -e '.[export]'" in text


@pytest.mark.parametrize('suffix', SUFFIX.values())
def test_files_of_others(suffix: str, tmp_path: Path) -> None:
    if suffix == '.onnx':
        pytest.importorskip('onnx')
    path = tmp_path / f'net{suffix}'
    for content in (b'', b'nonsense', bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'is damaged, or no|was not written by'):
            read_metadata(path)
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / f'absent{suffix}')
    path.unlink()
    if suffix == '.xml':
        path.write_text('<net name="x"><layers/></net>')
    elif suffix == '.pt2':
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/extra/other.json', '{}')
    else:
        import onnx
        path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], 'x', [], [])).SerializeToString())
    with pytest.raises(ValueError, match='was not written by `basicsr-ssl export`'):
        read_metadata(path)


# ---------------------------------------------------------------- docs/deploy.md


def test_the_example_runs_without_torch(tmp_path: Path, folders: list[str], step_with_flow: Step) -> None:
    """The step form in onnxruntime, as the page shows it, gives the files that torch's frames give."""
    net, (path, _) = network('uni-flow-compact'), step_with_flow('onnx')
    [code] = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/deploy.md').read_text(encoding='utf-8'), re.DOTALL)
    assert len(code.splitlines()) <= 30
    script = tmp_path / 'example.py'
    script.write_text("import sys\nsys.modules['torch'] = None\n" + code)
    result = subprocess.run([sys.executable, str(script), str(path), folders[0], str(tmp_path / 'hr')],
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = net(proof.real_clip(folders[0], (H, W), None)[None])[0]
    for i in range(5):
        found = np.asarray(Image.open(tmp_path / 'hr' / f'{i}.png')).astype(int)
        pixels = (expected[i].clamp(0, 1) * 255).round().int().permute(1, 2, 0).numpy()
        difference = np.abs(found - pixels)
        assert difference.max() <= 1 and difference.mean() < 0.01  # halves may be rounded either way


def test_signals_arrive_after_openvino(step_with_flow: Step, tmp_path: Path) -> None:
    """Networks that are dropped in the order in which they were opened leave the process fit for signals."""
    needs('openvino')
    path, _ = step_with_flow('openvino')
    script = tmp_path / 'signals.py'
    script.write_text(f"""
import gc, os, signal, torch
from basicsr_ssl.export.runtimes import Exported
signal.signal(signal.SIGUSR1, lambda *_: print('arrived'))
opened = [Exported({str(path)!r}, 'openvino') for _ in range(2)]
for net in opened:
    list(net.stream([torch.zeros(3, {H}, {W})]))
del net
while opened:
    del opened[0]
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, 'arrived\n'), done.stderr
