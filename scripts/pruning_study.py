"""The study of naive pruning: what it does to a BasicVSR, and what groups and pruning-aware training make of it.

    python scripts/pruning_study.py --set clips
    python scripts/pruning_study.py --set BasicVSR_REDS --launcher pytorch

Every row is a recipe, ``options/train/pruning_vsr/train_<set>_<method>.yml`` at a ratio, from the same dense network.
What is finished is skipped, what was interrupted goes on: run it again until it is done, or with ``--before`` first,
for the figures that need no finetuning. Tables, figures (JSON) and plots are written to ``results/pruning_vsr_<set>/``
after every row.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr_ssl import load_network, pipeline
from basicsr_ssl.api import network_cost
from basicsr_ssl.checkpoints.store import read_metadata, save_network
from basicsr_ssl.evaluation.result import to_json
from basicsr_ssl.files import write_text
from basicsr_ssl.pruning.cost import LR_SIZE
from basicsr_ssl.pruning.masks import weights_left
from basicsr_ssl.report.plots import share_chart
from basicsr_ssl.report.published import PRUNED, PRUNED_BASELINE, SOURCES
from basicsr_ssl.report.tables import Column, format_table, human
from basicsr_ssl.runtime import Interrupted

METHODS = ('unstructured', 'naive', 'grouped', 'aware')
#: Nothing removed comes first: the dense network, and the dense network trained on.
ROWS = (('grouped', 0.0), *((method, ratio) for method in METHODS for ratio in (
    (.40, .45, .50) if method == 'unstructured' else (.05, .10, .15, .30))))


def main() -> int:
    parser = argparse.ArgumentParser(description='The study of naive, grouped and pruning-aware pruning of BasicVSR.')
    parser.add_argument('--set', default='clips', help='which recipes: train_<set>_<method>.yml')
    parser.add_argument('--rows', nargs='+', type=_row, default=list(ROWS), metavar='METHOD:RATIO',
                        help=f'method ({", ".join(METHODS)}) and ratio, in this order (default: all of the study)')
    parser.add_argument('--before', action='store_true', help='only prune and measure, without finetuning; rows that '
                                                              'train before they prune are left out')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none')
    parser.add_argument('--force_yml', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        help='change options of all rows, e.g. path:pretrain_network_g=dense.safetensors')
    args = parser.parse_args()
    try:
        for method, ratio in args.rows:
            if args.before and method == 'aware':
                continue
            overrides = [*args.force_yml, f'name={_name(args.set, method, ratio)}', f'pruning:ratio={ratio}']
            pipeline.train(f'options/train/pruning_vsr/train_{args.set}_{method}.yml', args.launcher, overrides,
                           until='pruning' if args.before else None)
            if int(os.environ.get('RANK', 0)) == 0:
                write_study(f'results/pruning_vsr_{args.set}', args.set)
    except Interrupted as stop:
        print(f'{stop}', file=sys.stderr)
        return stop.exit_code
    except (OSError, ValueError, FloatingPointError) as error:
        print(f'pruning_study: {error}', file=sys.stderr)
        return 1
    return 0


def _row(text: str) -> tuple[str, float]:
    method, _, ratio = text.partition(':')
    if method not in METHODS or not ratio.replace('.', '', 1).isdecimal() or float(ratio) >= 1:
        raise argparse.ArgumentTypeError(f'{text!r} should look like naive:0.15, with {", ".join(METHODS)}')
    return method, float(ratio)


def _name(data: str, method: str, ratio: float) -> str:
    return f'pruning_vsr_{data}_{method}_{ratio * 100:g}'


# ---- what was found

def read_rows(data: str) -> list[dict[str, Any]]:
    """A row for every method and ratio that was pruned, from what the files say of themselves.

    ``method``, ``ratio``, ``before`` and ``after`` (``{test set: {metric: value}}``, the latter None before it is
    finetuned), ``params``, ``macs``, ``left`` and ``weights`` (of masks), ``bytes`` and ``bytes_sparse`` of the file.
    """
    rows = []
    folders = sorted(Path('experiments').glob(f'pruning_vsr_{data}_*_*'))
    for method in METHODS:
        prefix = f'pruning_vsr_{data}_{method}_'
        found = {float(folder.name.removeprefix(prefix)) / 100: folder for folder in folders
                 if folder.name.startswith(prefix) and folder.name.removeprefix(prefix).replace('.', '').isdecimal()}
        for ratio, folder in sorted(found.items()):
            files = {stage: folder / stage / 'models/net_g_latest.safetensors' for stage in ('pruning', 'finetune')}
            if files['pruning'].is_file():
                rows.append({'method': method, 'ratio': ratio, **_costs(files['pruning']),
                             'before': read_metadata(files['pruning'])['metrics'],
                             'after': read_metadata(files['finetune'])['metrics']
                             if files['finetune'].is_file() else None})
    return rows


def _costs(file: Path) -> dict[str, Any]:
    """Parameters and MACs without the flow network, weights that a mask leaves, and sizes of the file.

    A network with a mask is written sparsely too, beside its file.
    """
    net = load_network(file)
    cost, left = network_cost(net, LR_SIZE), weights_left(net.state_dict())
    figures: dict[str, Any] = {'params': cost['params'], 'macs': cost['macs'], 'bytes': file.stat().st_size}
    if left:
        sparse = file.with_name('net_g_sparse.safetensors')
        if not sparse.is_file():
            save_network(net, sparse, encoding='sparse', **getattr(net, 'provenance', {}))
        figures |= {'left': sum(kept for kept, _ in left.values()), 'weights': sum(size for _, size in left.values()),
                    'bytes_sparse': sparse.stat().st_size}
    return figures


def write_study(folder: str, data: str) -> None:
    """Write ``tables.md``, ``study.json``, ``before.png`` and ``after.png``."""
    rows = read_rows(data)
    if not rows:
        return
    sets = list(rows[0]['before'])
    write_text(os.path.join(folder, 'study.json'), to_json(rows))
    tables = [f'Published: {SOURCES["Singh"]}; BasicVSR on REDS4, RGB. Another network and other data than ours: the '
              'differences compare, the levels do not. PSNR in dB, before and after finetuning.']
    for title, methods in (('Unstructured pruning', ('unstructured',)),
                           ('Structured pruning', ('naive', 'grouped', 'aware'))):
        lines = [_line(row, sets) for row in rows if row['ratio'] == 0]
        lines += [_line(row, sets) for method in methods for row in rows if row['method'] == method and row['ratio']]
        tables += [f'### {title}', format_table(lines, _columns(lines, sets))]
    write_text(os.path.join(folder, 'tables.md'), '\n\n'.join(tables) + '\n')
    for place, when in enumerate(('before', 'after')):
        curves = {method: {row['ratio']: row[when][sets[0]]['psnr'] for row in rows
                           if row['method'] == method and row[when] and row['ratio']} for method in METHODS}
        level = next((row[when][sets[0]]['psnr'] for row in rows if row['ratio'] == 0 and row[when]), None)
        published = {method: {ratio: figures[place] for ratio, figures in table.items()}
                     for method, table in PRUNED.items()}
        share_chart(os.path.join(folder, f'{when}.png'), {
            f'{sets[0]}, ours': (level, {method: curve for method, curve in curves.items() if curve}),
            'REDS4, published': (PRUNED_BASELINE[0], published)}, f'{when.capitalize()} finetuning')


def _line(row: Mapping[str, Any], sets: list[str]) -> dict[str, Any]:
    """A row of a table; of the published figures those of the same method, and of the network that lost nothing."""
    line: dict[str, Any] = {'method': row['method'] if row['ratio'] else 'dense', 'removed': f'{row["ratio"]:.0%}',
                            'params': row['params'], 'macs': row['macs'], 'left': row.get('left'),
                            'size': row.get('bytes_sparse', row['bytes'])}
    published = PRUNED.get(row['method'], {}).get(row['ratio']) if row['ratio'] else (PRUNED_BASELINE[0], None,
                                                                                     PRUNED_BASELINE[1])
    line |= dict(zip(('before', 'after', 'ssim'), published or ()))
    for name in sets:
        after = (row['after'] or {}).get(name, {})
        line |= {f'before {name}': row['before'][name]['psnr'], f'after {name}': after.get('psnr'),
                 f'ssim {name}': after.get('ssim')}
    return line


def _columns(lines: list[dict[str, Any]], sets: list[str]) -> list[Column]:
    columns: list[Column] = [('method', 'method', 's'), ('removed', 'removed', 's'),
                             ('before', 'published: before', '.2f'), ('after', 'after', '.2f'), ('ssim', 'SSIM', '.4f')]
    for name in sets:
        columns += [(f'before {name}', f'{name}: before', '.2f'), (f'after {name}', 'after', '.2f'),
                    (f'ssim {name}', 'SSIM', '.4f')]
    columns += [('params', 'params', human), ('macs', 'MACs', human), ('left', 'weights left', ','),
                ('size', 'file', human)]
    return [column for column in columns if any(line.get(column[0]) is not None for line in lines)]


if __name__ == '__main__':
    sys.exit(main())
