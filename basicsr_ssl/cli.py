"""The command ``basicsr-ssl``: parsing only; the work is imported when it is known what is asked for."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print('\nInterrupted. What was finished is kept; the same command continues, a single training stage with '
              '--auto_resume.', file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, FloatingPointError) as error:
        # an error of these kinds says what is wrong and how to mend it: no traceback in its way
        return _complain(error)


def _complain(error: Exception) -> int:
    from basicsr_ssl.terminal import plain
    print(f'basicsr-ssl: {plain(error)}', file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='basicsr-ssl', description='Structured pruning for video super-resolution.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    for name, run, text in (('train', _train, 'train a stage, or run all stages of a recipe'),
                            ('test', _test, 'test a network on the test sets of an option file')):
        command = add(name, run, text)
        command.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML)')
        command.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none',
                             help='who starts the processes; scripts/dist_train.sh sets it')
        command.add_argument('--force_yml', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                             help='change options, e.g. train:total_iter=100')
        command.add_argument('--debug', action='store_true', help='short intervals; the name gets the prefix debug_')
        command.add_argument('--auto_resume', action='store_true',
                             help='continue from the latest state (a recipe does so anyway)')
        command.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
        if name == 'test':
            command.add_argument('--allow-partial', action='store_true',
                                 help="test on what there is of a benchmark; the results are marked as partial")

    prepare = add('prepare', _prepare, 'check the frames of a data set, make LR frames, meta files and LMDB')
    prepare.add_argument('dataset', choices=('reds', 'vimeo90k', 'vid4', 'udm10', 'div2k', 'df2k', 'set5', 'set14',
                                            'b100', 'urban100', 'manga109'))
    prepare.add_argument('--root', default=os.environ.get('DATA_ROOT') or 'datasets', metavar='DIR',
                         help='where the data sets lie, as in datasets/README.md (default: $DATA_ROOT or datasets)')
    prepare.add_argument('--degradation', nargs='+', choices=('BI', 'BD'), metavar='KIND',
                         help='LR frames to make, BI and / or BD (default: what the data set is tested on)')
    prepare.add_argument('--scale', nargs='+', type=int, choices=(2, 3, 4), metavar='N',
                         help='of LR images, 2, 3 and / or 4 (default: all; LR frames of video are made at 4)')
    prepare.add_argument('--lmdb', action='store_true', help="also build LMDB with BasicSR's keys")
    prepare.add_argument('--check', action='store_true', help='only check; write nothing')
    prepare.add_argument('--allow-partial', action='store_true', help='go on with what there is')
    prepare.add_argument('--workers', type=int, metavar='N', help='processes (default: one per core)')

    upscale = add('upscale', _upscale, 'make a video, a folder of images or an image larger')
    upscale.add_argument('source', metavar='IN', help='a video, a folder of images, or an image')
    upscale.add_argument('output', metavar='OUT', help='the same: *.mp4, *.mkv ..., a folder, or *.png ...')
    upscale.add_argument('--net', metavar='FILE',
                         help='a network file, also an exported one, zoo://NAME, or bicubic (default: a small network '
                              'that comes along)')
    upscale.add_argument('--backend', choices=('torch', 'onnxruntime', 'openvino'),
                         help='what runs it (default: torch, or what an exported file was made for)')
    upscale.add_argument('--device', help='cpu, cuda, cuda:1 ... (default: a GPU if there is one)')
    upscale.add_argument('--start', type=_number(0), default=0, metavar='N',
                         help='the frame to begin with, counted from 0')
    upscale.add_argument('--frames', type=_number(1), metavar='N', help='how many frames')
    upscale.add_argument('--preview', type=_number(0), metavar='N',
                         help='write only frame N, beside bicubic interpolation, into the image OUT')
    upscale.add_argument('--overwrite', action='store_true', help='replace OUT')
    upscale.add_argument('--codec', metavar='NAME', help='encoder, e.g. libx265, libsvtav1, ffv1 (default: libx264)')
    upscale.add_argument('--crf', type=float, metavar='N', help='quality, lower is better (default: 18 for libx264)')
    upscale.add_argument('--pix-fmt', metavar='NAME', help='e.g. yuv444p10le (default: as IN)')
    upscale.add_argument('--lossless', action='store_true', help='of a video: its pixel format; of images: PNG')
    upscale.add_argument('--fps', type=Fraction, default=Fraction(25), metavar='N',
                         help='of a video made of images (default: 25)')
    upscale.add_argument('--scenes', choices=('on', 'off'), default='on',
                         help='whether networks start anew where a new scene begins (default: on)')
    upscale.add_argument('--segment', type=_number(1), metavar='N',
                         help='frames that a network sees at once (default: no bound, if it looks only back)')
    upscale.add_argument('--overlap', type=_number(0), metavar='N', help='frames that neighbouring segments share')
    upscale.add_argument('--keep-states', choices=('device', 'host'), default='device',
                         help='where hidden states wait (default: device)')

    table = add('table', _table, "the paper's table, methods as rows and benchmarks as columns")
    table.add_argument('results', nargs='+', metavar='results.json', help='written by `basicsr-ssl test`')
    table.add_argument('--format', choices=('markdown', 'csv', 'latex', 'html'), default='markdown')
    table.add_argument('--published', action='store_true', help='with the published rows')
    table.add_argument('--plot', metavar='FILE.png', help='also draw PSNR against MACs and milliseconds')

    report = add('report', _report, 'one HTML file of tests, recipes and trainings: tables, charts, pictures, curves')
    report.add_argument('folders', nargs='+', metavar='PATH', help='folders of results/ and experiments/')
    report.add_argument('--output', default='report.html', metavar='FILE.html', help='(default: report.html)')
    report.add_argument('--published', action='store_true', help='with the published rows')

    info = add('info', _info, 'what a network file is, also an exported one, or one of another project')
    info.add_argument('files', nargs='+', metavar='FILE', help='network files, or zoo://NAME')
    info.add_argument('--json', action='store_true', help='for programs; of several files, a list')

    profile = add('profile', _profile, 'where the time of a network goes, layer by layer, in its fastest form here')
    profile.add_argument('file', metavar='FILE', help='a network file, or zoo://NAME')
    profile.add_argument('--lr-size', nargs=2, type=int, default=[180, 320], metavar=('H', 'W'),
                         help='LR frame (default: 180 320)')
    profile.add_argument('--threads', type=int, metavar='N', help='of the CPU (default: as many as torch uses)')
    profile.add_argument('--device', default='cpu', help='cpu (default), cuda, ...')
    profile.add_argument('--json', action='store_true', help='for programs')

    sensitive = add('sensitivity', _sensitivity, 'PSNR after pruning one part of a network, without finetuning')
    sensitive.add_argument('file', metavar='FILE', help='a network file, or zoo://NAME')
    sensitive.add_argument('--data', required=True, metavar='DIR',
                           help='with a folder of GT frames for each clip, or GT images')
    sensitive.add_argument('--lq', metavar='DIR', help='the same of LR frames (default: made from GT)')
    sensitive.add_argument('--degradation', choices=('BI', 'BD'), default='BI', help='how LR is made (default: BI)')
    sensitive.add_argument('--max-frames', type=int, metavar='N', help='of each clip (default: all)')
    sensitive.add_argument('--by', choices=('kind', 'group'), default='kind',
                           help='a part is all groups of a kind, or a single group (default: kind)')
    sensitive.add_argument('--shares', nargs='+', type=float, metavar='SHARE',
                           help='of its units (default: 0.1 to 0.9)')
    sensitive.add_argument('--score', choices=('l1', 'l2', 'gate', 'random'), default='l1',
                           help='which units go first (default: l1)')
    sensitive.add_argument('--max-drop', type=float, default=0.1, metavar='DB',
                           help='what a part may lose in the ratios that pruning: {ratios: FILE} reads (default: 0.1)')
    sensitive.add_argument('--output', metavar='DIR', help='where results go (default: results/sensitivity_NETWORK)')

    convert = add('convert', _convert, 'import a network file of another project, or export a dense one to BasicSR')
    convert.add_argument('source', help='a network file, or zoo://NAME')
    convert.add_argument('output')
    convert.add_argument('--to', choices=('safetensors', 'sparse', 'basicsr'), default='safetensors',
                         help="format of the output: this project's safetensors, of masked weights only those that are "
                              "left (sparse), or BasicSR's .pth")

    export = add('export', _export, 'write a network for another program: ONNX, OpenVINO, or a program of torch; '
                 'docs/deploy.md says which and how')
    export.add_argument('source', metavar='FILE', help='a network file of any form, or zoo://NAME')
    export.add_argument('output', metavar='OUT', help='.onnx, .xml (OpenVINO, with a .bin beside it) or .pt2 (torch)')
    export.add_argument('--format', choices=('onnx', 'openvino', 'torch'), default='onnx')
    export.add_argument('--form', choices=('window', 'step', 'clip'), default='window',
                        help='window: frames stacked in channels, as programs for images load it (default); step: '
                             'frame by frame, with a state, for unidirectional networks; clip: all frames at once')
    export.add_argument('--frames', type=int, metavar='N', help='of a window or clip (default: 7; of image networks 1)')
    export.add_argument('--all-frames', action='store_true', help='of a window give all frames, not the middle one')
    export.add_argument('--size', nargs=2, type=int, default=(180, 320), metavar=('H', 'W'),
                        help='of LR frames (default: 180 320)')
    export.add_argument('--dynamic', action='store_true',
                        help='leave height and width free; with a flow network, multiples of 32')
    export.add_argument('--precision', choices=('fp32', 'fp16', 'bf16', 'int8'), default='fp32')
    export.add_argument('--clips', nargs='+', action='extend', default=[], metavar='DIR',
                        help='folders of real LR frames, one clip each: int8 is calibrated on all of them, and the '
                             'proof runs on the last one')
    export.add_argument('--min-psnr', type=float, metavar='DB',
                        help='how close to torch the file must be (default: fp32 100, fp16 50, bf16 40, int8 35)')
    export.add_argument('--licence', metavar='TEXT', help='under which the network may be used, for the metadata')

    for command in (info, convert, export):
        command.add_argument('--param-key', choices=('params', 'params_ema'),
                             help='which weights of a file that has both (default: params_ema, the moving average)')
        command.add_argument('--assume', nargs='+', action='extend', default=[], type=_assignment, metavar='KEY=VALUE',
                             help='arguments of the network that tensors cannot tell, e.g. act=relu or img_range=2')

    download = add('download', _download, 'download pretrained networks')
    download.add_argument('names', nargs='*', metavar='NAME',
                          help='entries of options/zoo.yml, or all; none: list them')
    download.add_argument('--to', default='experiments/pretrained_models', metavar='DIR')

    add('schema', _schema, 'print the JSON schema of option files, for editors')
    return parser


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f'{text} should be at least {least}')
        return value
    return number


def _assignment(text: str) -> tuple[str, Any]:
    import yaml
    key, equals, value = text.partition('=')
    if not equals:
        raise argparse.ArgumentTypeError(f'{text!r} should look like img_range=2')
    return key, yaml.safe_load(value)


def _train(args: argparse.Namespace) -> int:
    from basicsr_ssl import pipeline
    from basicsr_ssl.runtime import Interrupted
    try:
        return pipeline.train(args.opt, args.launcher, args.force_yml, args.debug, args.auto_resume)
    except Interrupted as stop:
        print(f'basicsr-ssl: {stop}', file=sys.stderr)
        return stop.exit_code


def _test(args: argparse.Namespace) -> int:
    from basicsr_ssl import test
    test.test(args.opt, args.launcher, args.force_yml, args.debug, args.allow_partial)
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from basicsr_ssl.data.preparation import prepare
    prepare.prepare(args.dataset, args.root, args.degradation, args.lmdb, args.check, args.allow_partial, args.workers,
                    args.scale)
    return 0


def _upscale(args: argparse.Namespace) -> int:
    from basicsr_ssl.upscale import command
    from basicsr_ssl.upscale.media import Encoding
    from basicsr_ssl.upscale.networks import open_network
    runner = open_network(args.net, args.backend, device=args.device, segment=args.segment, overlap=args.overlap,
                          keep_states=args.keep_states)
    shared: dict[str, Any] = {'detect_scenes': args.scenes == 'on', 'overwrite': args.overwrite}
    if args.preview is not None:
        command.preview(args.source, args.output, runner, args.preview, **shared)
        return 0
    encoding = Encoding(args.codec, args.crf, args.pix_fmt, args.lossless, args.fps)
    return command.upscale(args.source, args.output, runner, encoding=encoding, start=args.start, frames=args.frames,
                           **shared)


def _table(args: argparse.Namespace) -> int:
    from basicsr_ssl.report import benchmarks
    print(benchmarks.paper_table(args.results, args.format, args.published))
    if args.plot:
        benchmarks.plot_results(args.results, args.plot, args.published)
    return 0


def _report(args: argparse.Namespace) -> int:
    from basicsr_ssl.report import page
    page.write_page(args.folders, args.output, args.published)
    print(f'Wrote {args.output}')
    return 0


def _info(args: argparse.Namespace) -> int:
    from basicsr_ssl import zoo
    from basicsr_ssl.export import metadata as exported
    from basicsr_ssl.report import info
    described, failed = [], 0
    for file in args.files:
        try:
            path = zoo.resolve(file)
            described.append(exported.describe(path) if exported.is_exported(path) else
                             info.describe(path, args.param_key, dict(args.assume)))
        except (OSError, ValueError) as error:
            if len(args.files) == 1:
                raise
            failed = _complain(error)  # one that fails does not keep the others from being shown
    if args.json:  # infinity, as the PSNR of equal frames, and NaN are no JSON: null
        shown = described if len(args.files) > 1 else described[0]
        print(json.dumps(json.loads(json.dumps(shown), parse_constant=lambda _: None), indent=2))
    else:
        print('\n\n'.join(exported.format_info(one) if 'runtimes' in one else info.format_info(one)
                          for one in described))
    return failed


def _profile(args: argparse.Namespace) -> int:
    from basicsr_ssl import zoo
    from basicsr_ssl.report import profile
    described = profile.describe(zoo.resolve(args.file), tuple(args.lr_size), args.threads, args.device)
    print(json.dumps(described, indent=2) if args.json else profile.format_profile(described))
    return 0


def _sensitivity(args: argparse.Namespace) -> int:
    from basicsr_ssl import zoo
    from basicsr_ssl.report.sensitivity import SHARES, sensitivity
    from basicsr_ssl.test import network_label
    file = zoo.resolve(args.file)
    folder = args.output or os.path.join('results', f'sensitivity_{network_label(file)}')
    print(sensitivity(file, args.data, folder, lq=args.lq, degradation=args.degradation, max_frames=args.max_frames,
                      by=args.by, shares=args.shares or SHARES, score=args.score, max_drop=args.max_drop,
                      progress=lambda line: print(line, file=sys.stderr, flush=True)))
    print(f'\nWrote sensitivity.json, table.md and heatmap.png into {folder}')
    return 0


def _convert(args: argparse.Namespace) -> int:
    from basicsr_ssl import zoo
    from basicsr_ssl.checkpoints import convert
    print(convert.convert(zoo.resolve(args.source), args.output, args.to, args.param_key, dict(args.assume)))
    return 0


def _export(args: argparse.Namespace) -> int:
    from basicsr_ssl.export import command
    print(command.export(args.source, args.output, args.format, args.form, tuple(args.size), args.frames,
                         args.all_frames, args.precision, args.dynamic, args.clips, args.min_psnr, args.licence,
                         args.param_key, dict(args.assume)))
    return 0


def _download(args: argparse.Namespace) -> int:
    from basicsr_ssl import zoo
    if not args.names:
        print(zoo.listing(args.to))
    for path in zoo.download(args.names, args.to):
        print(path)
    return 0


def _schema(args: argparse.Namespace) -> int:
    from basicsr_ssl import config
    print(json.dumps(config.json_schema(), indent=2))
    return 0
