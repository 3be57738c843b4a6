"""Small deliberate faults, one by one in a copy of the package: are they noticed? By hand: python tests/faults.py"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: the stages first: what they notice is noticed soonest
TESTS = [f'tests/test_{name}.py' for name in (
    'stages', 'methods', 'masks', 'regularizers', 'temporal_loss', 'scores', 'selection', 'surgery', 'gates', 'cost',
    'data', 'flow', 'training', 'recipes', 'sensitivity', 'study', 'config', 'bad_input', 'obproxsg', 'laplacian_loss',
    'compression', 'swinir', 'plans')]

# file below the package, old text (exactly once there), new text
FAULTS: list[tuple[str, str, str]] = [
    ('methods/growing_l2.py', 'add_penalty_(self.parameters, self.masks, self.factor)', 'pass'),
    ('methods/growing_l2.py', 'factor(iteration - self.options', 'factor(iteration - 0 * self.options'),
    ('methods/growing_l2.py', 'iteration > self.options', 'iteration >= self.options'),
    ('methods/growing_l2.py', "self.select(state['kept'])", 'pass'),
    ('methods/growing_l2.py', 'parameters[name][~mask]', 'parameters[name]'),
    ('methods/method.py', 'else without_gates(net)', 'else net'),
    ('methods/assl.py', "iteration > self.options['select_iter'] or", "iteration >= self.options['select_iter'] or"),
    ('methods/assl.py', 'len(group.gates) > 1]', 'len(group.gates) > 0]'),
    ('methods/assl.py', 'group.size - self.widths[group.name]', 'self.widths[group.name]'),
    ('methods/assl.py', "self.options['align_weight'] *", '1 *'),
    ('methods/assl.py', 'size = gates.abs()', 'size = gates'),
    ('methods/assl.py', 'removed:removed + 1]', 'removed:removed + 1].detach()'),
    ('methods/assl.py', '-masks.mean(0).square().sum()', '-masks.square().mean(0).sum()'),
    ('methods/assl.py', 'mask.dim() == 1', 'False'),
    ('methods/srp.py', "manual_seed(self.pruning['seed'])", 'manual_seed(0)'),
    ('methods/srp.py', 'if len(group.gates) > 1:', 'if True:'),
    ('methods/srp.py', "self.options['aligned'] == 'random'", 'True'),
    ('pruning/regularizers.py', 's.indices(removed), True', 'torch.tensor(removed), True'),
    ('pruning/regularizers.py', 'for s in group.own if removed', 'for s in group.slices if removed'),
    ('pruning/regularizers.py', 'masks.setdefault(s.param, torch', 'masks[s.param] = (torch'),
    ('models/networks.py', 'fresh.flow_network.load_state_dict(net.flow_network.state_dict())', 'pass'),
    ('models/networks.py', "if opt['path'].get('reinitialise') else net", "if False else net"),
    ('config/__init__.py', "('param_key_g', 'reinitialise')", "('param_key_g',)"),
    ('config/__init__.py', "('compression',): None, ", ''),
    ('config/__init__.py', "('pruning', 'layout'): 'free',", ''),
    ('report/recipe.py', "in_fastest_form(net, opt['val'], lambda: lr_size)", 'net'),
    ('evaluation/evaluate.py', "val.get('optimize') != 'auto'", 'True'),
    ('pruning/regularizers.py', 'torch.ones(group.size, dtype', 'torch.zeros(group.size, dtype'),
    ('pruning/regularizers.py', '= False', '= True'),
    ('models/sparsity_model.py', 'return True', 'return super().flow_is_frozen(current_iter)'),
    ('models/pruning_model.py', "selection['kept'] if selection and learnt else ", ''),
    ('models/pruning_model.py', "_same_choice(selection.get('pruning'), options)", 'True'),
    ('models/finetune_model.py', 'else without_gates(net)', 'else net'),
    ('models/finetune_model.py', 'read_teacher(self.opt, self.net_g)', 'self.net_g'),
    ('models/finetune_model.py', 'self.cri_temporal(states, expected)', 'self.cri_temporal(expected, states)'),
    ('models/finetune_model.py', 'self.cri_temporal(states, expected)', '0 * self.cri_temporal(states, expected)'),
    ('models/reconstruction_model.py', 'self.net_g if self.net_g_ema is None else self.net_g_ema', 'self.net_g'),
    ('models/optimization.py', "train['flow_lr_mul']", '1'),
    ('models/optimization.py', "train['gate_lr_mul']", '1'),
    ('models/optimization.py', "if part == 'gates'", "if part == 'none'"),
    ('models/optimization.py', 'if iteration > 1:', 'if iteration > 0:'),
    ('models/optimization.py', '/ self.warmup_iter * iteration', '/ self.warmup_iter'),
    ('models/reconstruction_model.py', 'current_iter < fix_flow', 'current_iter <= fix_flow'),
    ('models/reconstruction_model.py', 'self.adjust_gradients(current_iter)\n', 'pass\n'),
    ('models/reconstruction_model.py', "if train['clip_grad_norm']:", 'if False:'),
    ('models/reconstruction_model.py', '.sum() / chunks', '.sum()'),
    ('models/reconstruction_model.py', 'parameters()), 1 - decay', 'parameters()), decay'),
    ('models/reconstruction_model.py', 'self.optimizer_g.load_state_dict(optimizer)', 'pass'),
    ('models/reconstruction_model.py', 'self.learning_rate.load_state(scheduler)', 'pass'),
    ('models/reconstruction_model.py', "self.net_g_ema.load_state_dict(state['ema'])", 'pass'),
    ('train.py', " start, train['accumulate'])", " 0, train['accumulate'])"),
    ('losses/temporal_loss.py', 'weight = weight.flip(0)', 'pass'),
    ('losses/temporal_loss.py', 'teacher.square()', 'teacher.abs()'),
    ('pruning/surgery.py', 'mask[s.indices(removed)] = False', 'mask[s.indices(units)] = False'),
    ('pruning/scores.py', 'values / values.mean()', 'values * values.mean()'),
    # the distance of two processes from one
    ('models/finetune_model.py', 'self.net(*inputs, return_states=True)', 'self.net_g(*inputs, return_states=True)'),
    ('models/reconstruction_model.py', 'self.net(*inputs)', 'self.net_g(*inputs)'),
    ('models/reconstruction_model.py', 'distributed and i < chunks - 1', 'distributed and i > 0'),
    # an iteration
    ('models/reconstruction_model.py', "        self.learning_rate.update(current_iter)\n", ''),
    ('models/reconstruction_model.py', '        self.freeze_flow(current_iter)\n', ''),
    ('models/reconstruction_model.py', 'value.detach() / chunks', 'value.detach()'),
    ('models/reconstruction_model.py', 'set_random_state(', 'id('),
    ('models/reconstruction_model.py', "self.net_g.load_state_dict(state['net'])", 'pass'),
    ('models/reconstruction_model.py', "self.load_stage_state(state['stage'])", 'pass'),
    ('models/reconstruction_model.py', 'if not value.isfinite().all():', 'if False:'),
    ('models/sparsity_model.py', ', **self.sparsity.losses(current_iter)}', '}'),
    ('models/sparsity_model.py', 'return self.sparsity.state()', 'return {}'),
    ('models/stage.py', 'net.train(training)', 'pass'),
    ('models/stage.py', '        net.eval()\n', ''),
    ('models/networks.py', '    if own != other:', '    if False:'),
    ('models/finetune_model.py', 'if own[key] != other.get(key)]', 'if False]'),
    ('models/pruning_model.py', 'cut_network(net, kept)', 'net'),
    ('models/training_state.py', "state['fingerprint'], state['iter']", '0'),
    ('methods/method.py', 'return with_gates(net, cls.kind) if', 'return net if'),
    ('methods/ssl.py', '.abs() < ZERO', ' < ZERO'),
    # a run
    ('train.py', 'if before not in (None, now):', 'if False:'),
    ('train.py', '            archive(run.folder)\n', ''),
    ('train.py', '    validate(total)\n', ''),
    ('train.py', "phase.split('_')[0] == 'val'", 'False'),
    ('pipeline.py', 'outputs[name] = run.output', 'outputs.setdefault(name, next(iter(outputs.values()), run.output))'),
    ('pipeline.py', 'done = is_finished(run)', 'done = False'),
    ('pipeline.py', 'return 2 if missed else 0', 'return 0'),
    ('config/files.py', "if keys[0] not in ('stages', 'path'):", "if keys[0] == 'train':"),
    ('data/clips_dataset.py', '- self.options.num_frame + 1 for clip', '- self.options.num_frame for clip'),
    ('data/clips_dataset.py', 'len(clip.gt_frames) - span)', 'len(clip.gt_frames) - span - 1)'),
    # what the stages are made of
    ('pruning/regularizers.py', 'dict.fromkeys(group.gates, mask)', 'dict.fromkeys(group.gates[:1], mask)'),
    ('pruning/regularizers.py', 'max(step, 0) // self.interval', 'max(step, 0) / self.interval'),
    ('pruning/regularizers.py', 'factor * parameter * mask', 'factor * mask'),
    ('losses/temporal_loss.py', 'torch.arange(1, n + 1', 'torch.arange(0, n'),
    ('losses/temporal_loss.py', 'teacher[d].detach(), d', 'teacher[d], d'),
    ('losses/temporal_loss.py', 'self.loss_weight * total.mean()', 'total.mean()'),
    ('losses/temporal_loss.py', '+ self.eps**2', '+ self.eps'),
    ('losses/flow_loss.py', 'torch.arange(len(per_level) - 1, -1, -1', 'torch.arange(0, len(per_level)'),
    ('losses/flow_loss.py', 'known.sum()', 'known.numel()'),
    ('pruning/gates.py', 'torch.ones(group.size)\n', '2 * torch.ones(group.size)\n'),
    ('pruning/gates.py', 'return gate / unit_norms(weights)', 'return gate * unit_norms(weights)'),
    ('pruning/surgery.py', '[full[u] for u in units]', 'list(units)'),
    ('pruning/scores.py', '.abs() for gate in group.gates]).sum(0)', ' for gate in group.gates]).sum(0)'),
    ('pruning/selection.py', '(float(scores[name][unit]), name, unit)', '(-float(scores[name][unit]), name, unit)'),
    ('pruning/selection.py', '+ Fraction(1, 2))', '+ Fraction(1, 3))'),
    ('pruning/cost.py', 'self.work() * self.times * self.area', 'self.work() * self.area'),
    # pruning-aware training, masks, shares by name
    ('methods/aware.py', "(iteration - 1) % self", "iteration % self"),
    ('methods/aware.py', "% self.options['interval'] == 0", "% 10**6 == 0"),
    ('methods/aware.py', 'torch.cat(norms).square()', 'torch.cat(norms).abs()'),
    ('methods/aware.py', 'for norm, _ in', 'for _, norm in'),
    ('methods/aware.py', "kind = 'weight_norm'", "kind = 'scale'"),
    ('methods/aware.py', 'self._norms(net)))', 'self._norms(self.net)))'),
    ('models/finetune_model.py', "net if net.spec.gates == 'mask' else without_gates(net)", 'without_gates(net)'),
    ('nn/gated.py', 'weight * self.weight_mask', 'weight'),
    ('nn/gated.py', "(gates != 'mask' and not units)", 'not units'),
    ('pruning/gates.py', 'torch.where(state.pop(mask_name(param)), state[param], 0)',
     'torch.where(state.pop(mask_name(param)), state[param], state[param])'),
    ('pruning/masks.py', "power = 2 if options.score == 'l2' else 1", 'power = 1'),
    ('pruning/masks.py', 'if relative else score', 'if False else score'),
    ('pruning/masks.py', 'order[-options.min_keep:], False', 'order[-1:], False'),
    ('pruning/masks.py', 'max(0, len(order) - options.min_keep)', 'len(order)'),
    ('pruning/masks.py', 'mask[line[removable[line]][:removed]]', 'mask[line[:removed]]'),
    ('pruning/masks.py', '.get(layer, options.ratio)', '.get(layer, 0)'),
    ('api.py', 'plain = without_gates(net)\n    masks', 'plain = net\n    masks'),
    ('api.py', ' and not layer.flow]', ']'),
    ('api.py', 'options.ratios.get(name, options.ratio), scope', 'options.ratios.get(name, 0), scope'),
    ('models/pruning_model.py', 'PruningOptions.of(**pruning) == options', 'pruning == options'),
    ('checkpoints/sparse.py', "bool(flat[count:].any())", 'False'),
    ('checkpoints/sparse.py', "int(flat.sum()) != len(values)", 'False'),
    ('checkpoints/sparse.py', '> MOST_BYTES', '< 0'),
    ('report/sensitivity.py', "if not found['psnr'] - value", "if found['psnr'] - value"),
    ('report/sensitivity.py', 'sorted(zip(shares', 'list(zip(shares'),
    ('report/sensitivity.py', 'dict.fromkeys(groups, share), score', 'dict.fromkeys(groups[:1], share), score'),
    # CDISM
    ('models/optimization.py', 'lr * penalty).clamp_min(0)', 'penalty).clamp_min(0)'),
    ('models/optimization.py', "['iterations'] < group", "['iterations'] <= group"),
    ('models/optimization.py', "z.abs() > group['eps']", 'z.abs() > 0'),
    ('models/optimization.py', 'if x.dim() < 2:', 'if x.dim() < 1:'),
    ('losses/laplacian_loss.py', '2**i * level', 'level'),
    ('losses/laplacian_loss.py', 'difference - blur(difference)', 'difference'),
    ('losses/laplacian_loss.py', '4 * blur(spread)', '2 * blur(spread)'),
    ('losses/laplacian_loss.py', '[*pyramid, x]', '[*pyramid, 0 * x]'),
    ('models/distillation_model.py', 'self.cri_distill(output, expected)', 'self.cri_distill(output, target)'),
    ('models/distillation_model.py', 'self.cri_pix(output, target)', 'self.cri_pix(expected, target)'),
    ('models/compression_model.py', 'without_gates(net) if net.spec.gates else net', 'net'),
    ('pruning/compression.py', "score_units(state, groups, 'l1')", "score_units(state, groups, 'random')"),
    ('pruning/compression.py', 'depth**0.5), depth**0.5)', 'depth**0.5), depth)'),
    ('pruning/compression.py', '(-values[i], i)', '(values[i], i)'),
    # SwinIR
    ('archs/swinir_arch.py', 'window_size // 2 if j % 2 else 0', '0'),
    ('archs/swinir_arch.py', 'mask if shift else None', 'None'),
    ('archs/swinir_arch.py', 'self.features**-0.5 * q', 'q'),
    ('archs/swinir_arch.py', '2 * size - 2 - at', '2 * size - 1 - at'),
    ('archs/swinir_arch.py', "Slice(f'{attn}.relative_position_bias_table', 1),", ''),
    # the order of channels
    ('pruning/layout.py', 'if float(found[place]) <= held * (1 + 1e-9):', 'if True:'),
    ('pruning/layout.py', 'start = int(sums.argmax())', 'start = 0'),
    ('pruning/layout.py', 'parts[-1].append(i)', 'parts.append([i])'),
    ('pruning/rewrites.py', 'units = sorted(range(len(channels)), key=lambda unit: place[channels[unit]])',
     'units = list(range(len(channels)))'),
    ('pruning/rewrites.py', '.clamp(min=0)) * there', '.clamp(min=0))'),
    ('pruning/rewrites.py', 'sorted(replaced)', 'replaced'),
    ('api.py', "if options.layout == 'runs':", 'if False:'),
]


def survives(fault: tuple[str, str, str]) -> str | None:
    """None if the tests notice it, else what stands in its way or how it passed."""
    file, old, new = fault
    text = (ROOT / 'basicsr_ssl' / file).read_text()
    if text.count(old) != 1:
        return f'its text stands {text.count(old)} times in {file}'
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.venv', '.git', '__pycache__'))
        Path(folder, 'basicsr_ssl', file).write_text(text.replace(old, new))
        command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', 'not slow', *TESTS]
        done = subprocess.run(command, cwd=folder, capture_output=True, env={
            **os.environ, 'PYTHONPATH': folder, 'OMP_NUM_THREADS': '1'})
    return None if done.returncode == 1 else f'pytest ended with {done.returncode}'


if __name__ == '__main__':
    with ThreadPoolExecutor(2) as threads:
        same = FAULTS[0][:2] + FAULTS[0][1:2]
        if survives(same) is None:
            sys.exit('the tests fail without any fault')
        survivors = 0
        for fault, why in zip(FAULTS, threads.map(survives, FAULTS)):
            survivors += why is not None
            print('caught  ' if why is None else f'SURVIVED ({why})', *fault, sep=' | ', flush=True)
    print(f'{len(FAULTS) - survivors} of {len(FAULTS)} caught')
