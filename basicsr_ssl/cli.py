"""The command ``basicsr-ssl``: parsing only; the work is imported when it is known what is asked for."""

from __future__ import annotations

import argparse
import json
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print('\nInterrupted. Finished stages are kept; the same command continues, for a single stage with '
              '--auto_resume.', file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        # an error of these kinds says what is wrong and how to mend it: no traceback in its way
        print(f'basicsr-ssl: {error}', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='basicsr-ssl', description='Structured pruning for video super-resolution.')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for name, run, text in (('train', _train, 'train a stage, or run all stages of a recipe'),
                            ('test', _test, 'test a network on the test sets of an option file')):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('-opt', required=True, metavar='FILE', help='option file (YAML)')
        command.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none',
                             help='who starts the processes; scripts/dist_train.sh sets it')
        command.add_argument('--force_yml', nargs='+', default=[], metavar='KEY=VALUE',
                             help='change options, e.g. train:total_iter=100')
        command.add_argument('--debug', action='store_true', help='short intervals; the name gets the prefix debug_')
        command.add_argument('--auto_resume', action='store_true',
                             help='continue from the latest state (a recipe does so anyway)')
        command.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
        command.set_defaults(run=run)
    schema = commands.add_parser('schema', help='print the JSON schema of option files, for editors')
    schema.set_defaults(run=_schema)
    return parser


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
    test.test(args.opt, args.launcher, args.force_yml, args.debug)
    return 0


def _schema(args: argparse.Namespace) -> int:
    from basicsr_ssl import config
    print(json.dumps(config.json_schema(), indent=2))
    return 0
