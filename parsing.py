"""Argument parsing: a parser with clear errors, argument types, shared options."""

import argparse
import difflib
import os
import re

import configargparse
import yaml

from files import UserError, reading


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Formatter that shows defaults other than None, and each subcommand on one line."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def add_argument(self, action):
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):  # argparse ignores their indent
            width = self._current_indent + 2 + max(map(len, action.choices))
            self._action_max_length = max(self._action_max_length, width)


class YAMLFile(configargparse.ConfigFileParser):
    """A YAML file of options: values, or lists of values, by name."""

    def get_syntax_description(self):
        return 'YAML: values, or lists of values, by option name.'

    def parse(self, stream):
        advice = 'write one "option: value" per line'
        with reading(stream.name, 'is not a YAML file of options', advice):
            content = yaml.safe_load(stream)
            if not isinstance(content, dict):
                raise ValueError(f'it holds a {type(content).__name__}')
            for key, value in content.items():
                parts = value if isinstance(value, list) else [value]
                if not isinstance(key, str) or any(isinstance(v, list | dict) for v in parts):
                    raise ValueError(f'{str(key)[:50]!r} is not an option with a value')
            return {k: v if isinstance(v, list) else str(v)
                    for k, v in content.items() if v is not None}


class Parser(configargparse.ArgumentParser):
    """Parser that shows defaults, rejects abbreviations, and raises a `UserError`."""

    def __init__(self, description, **kwargs):
        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False,
                         **kwargs)
        # Also -1e3 after an option is its value
        self._negative_number_matcher = re.compile(r'-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$', re.I)

    def parse_known_args(self, *args, **kwargs):
        options, rest = super().parse_known_args(*args, **kwargs)
        for name, value in vars(options).items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and (not text or '\0' in text):
                    found = 'a NUL character' if text else 'an empty string'
                    self.error(f'--{name}: expected a value, found {found}')
        return options, rest

    def get_possible_config_keys(self, action):
        # Otherwise `no-skipco: true` in a file would mean `skipco: true`
        keys = super().get_possible_config_keys(action)
        return [key for key in keys if not key.lstrip('-').startswith('no-')]

    def error(self, message):
        if unknown := re.match(r'unrecognized arguments: (--[^\s=]+)', message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            hint = f'did you mean {near[0]}?' if near else '--help lists them'
            message = f'unknown option {unknown[1]}; {hint}'
        elif flag := re.fullmatch(r'argument --([^/ ]+)\S*: ignored explicit argument .*', message):
            message = (f'--{flag[1]} takes no value; '
                       f'in a file, write {flag[1]}: true or {flag[1]}: false')
        elif re.match(r'the following arguments are required: .*--ny\b', message):
            message += '; or use --preset, a published configuration'
        raise UserError(' '.join(message.split()))  # YAML errors span five lines


# Argument types

def number(kind, low=None, high=None, open_low=False):
    """Argument type: a finite number of `kind` (int or float) in [low, high], or (low, high]."""
    what = 'a whole number' if kind is int else 'a number'
    if low is not None:
        what += f' greater than {low}' if open_low else f' of at least {low}'
    if high is not None:
        what += f' and at most {high}'

    def is_in_range(value):
        return (abs(value) < float('inf')  # False for NaN
                and (low is None or value > low or (value == low and not open_low))
                and (high is None or value <= high))

    def parse(text):
        try:
            if is_in_range(value := kind(text)):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f'expected {what}, found {text!r}')
    return parse


positive_int = number(int, 1)
nonnegative_int = number(int, 0)
positive_float = number(float, 0, open_low=True)
nonnegative_float = number(float, 0)
# The upper bounds are far beyond any sensible use; larger values exhaust memory or time
size = number(int, 1, 10_000)
layers = number(int, 1, 100)
euler_steps = number(int, 1, 1000)
frames = number(int, 1, 100_000)
speed = number(int, 1, 64)  # of digits: faster ones would bounce forever
seed = number(int, 0, 2 ** 32 - 1)


def device(text):
    """Argument type: 'cpu', or the index of a CUDA device."""
    return text if text == 'cpu' else nonnegative_int(text)


# Options

def flag(group, name, **kwargs):
    """Add `--name` and `--no-name`, which overrides a preset, a file or the resumed run."""
    group.add_argument(name, action=argparse.BooleanOptionalAction, **{'default': False} | kwargs)


def add_device_option(parser, several=False):
    """Add `--device`: one device or, with `several`, a list of one per process on a machine."""
    text = 'index of a CUDA device, or cpu; default: cpu'
    if several:
        text += '; under torchrun, one per process on the machine'
    parser.add_argument('--device', type=device, metavar='N', nargs='+' if several else None,
                        help=text)


def add_local_rank_option(parser):
    """Add `--local_rank` in both spellings of launchers, which set LOCAL_RANK as well."""
    parser.add_argument('--local_rank', '--local-rank', type=nonnegative_int, default=0,
                        help='set by distributed launchers')


def check_local_rank(args):
    """Raise a UserError for a rank that was not set by a launcher."""
    if args.local_rank and 'LOCAL_RANK' not in os.environ:
        raise UserError(f'--local_rank {args.local_rank} is for launchers, but none started this '
                        'process; use torchrun --nproc_per_node=…')
