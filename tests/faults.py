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
STAGES = ('tests/test_stages.py',)

# file below the package, old text (exactly once there), new text
FAULTS: list[tuple[str, str, str]] = [
    ('methods/ssl.py', 'add_penalty_(self.gates, self.masks, self.factor)', 'pass'),
    ('methods/ssl.py', 'factor(iteration - self.options', 'factor(iteration - 0 * self.options'),
    ('methods/ssl.py', 'iteration > self.options', 'iteration >= self.options'),
    ('methods/ssl.py', "self.select(state['kept'])", 'pass'),
    ('pruning/regularizers.py', 'torch.ones(group.size, dtype', 'torch.zeros(group.size, dtype'),
    ('pruning/regularizers.py', '= False', '= True'),
    ('models/sparsity_model.py', 'return True', 'return super().flow_is_frozen(current_iter)'),
    ('models/pruning_model.py', "selection['kept'] if selection and learnt else ", ''),
    ('models/pruning_model.py', "selection.get('pruning') == options", 'True'),
    ('models/finetune_model.py', 'return without_gates(net)', 'return net'),
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
    ('models/reconstruction_model.py', '1 - decay)', 'decay)'),
    ('models/reconstruction_model.py', 'self.optimizer_g.load_state_dict(optimizer)', 'pass'),
    ('models/reconstruction_model.py', 'self.learning_rate.load_state(scheduler)', 'pass'),
    ('models/reconstruction_model.py', "self.net_g_ema.load_state_dict(state['ema'])", 'pass'),
    ('train.py', " start, train['accumulate'])", " 0, train['accumulate'])"),
    ('losses/temporal_loss.py', 'weight = weight.flip(0)', 'pass'),
    ('losses/temporal_loss.py', 'teacher.square()', 'teacher.abs()'),
    ('pruning/surgery.py', 'mask[s.indices(removed)] = False', 'mask[s.indices(units)] = False'),
    ('pruning/scores.py', 'values / values.mean()', 'values * values.mean()'),
]


def survives(fault: tuple[str, str, str]) -> str | None:
    """None if the tests notice it, else what stands in its way or how it passed."""
    file, old, new = fault
    text = (ROOT / 'basicsr_ssl' / file).read_text()
    if text.count(old) != 1:
        return f'its text stands {text.count(old)} times in {file}'
    with tempfile.TemporaryDirectory() as folder:
        for part in ('basicsr_ssl', 'tests', 'options'):
            shutil.copytree(ROOT / part, Path(folder, part))
        shutil.copy(ROOT / 'pyproject.toml', folder)
        Path(folder, 'basicsr_ssl', file).write_text(text.replace(old, new))
        command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', *STAGES]
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
