"""The documentation against the code: commands (parsed, never run), options, files, links."""

import argparse
import contextlib
import importlib
import io
import re
import shlex

from files import UserError

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

import args
from conftest import ROOT

MANUAL = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md')),
          ROOT / 'benchmarks' / 'README.md']
# Options of Slurm, TensorBoard and curl, and of the dataset that CONTRIBUTING.md makes up
OTHER_OPTIONS = {'--nodes', '--ntasks-per-node', '--gpus-per-node', '--cpus-per-task', '--signal',
                 '--logdir', '--samples_per_plugin', '--retry', '--camera'}
SCRIPTS = [str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob('*.py'))
           if path.relative_to(ROOT).parts[0] not in ('tests', '.venv', 'runs')
           and "if __name__ == '__main__'" in path.read_text()]


def shell(text):
    """Shell code of the fenced blocks of a page."""
    return ''.join(re.findall(r'^```sh\n(.*?)^```$', text, re.M | re.S))


def spans(text):
    """Inline code outside of fenced blocks: list of str."""
    prose = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)
    return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', prose)]


def commands(page):
    """Commands of a page, in blocks and inline; comments and assignments are dropped."""
    text = page.read_text()
    lines = [line.strip() for line in shell(text).replace('\\\n', ' ').splitlines()]
    return [line for line in lines if line and not re.match(r'#|\w+=\$\(', line)] + [
        span for span in spans(text) if re.match(r'(python|torchrun|bash|make) ', span)]


def get_parser(script):
    """Parser of a script, which its function `get_parser` or `<script>_parser` returns."""
    name = script.removesuffix('.py')
    module = args if name == 'train' else importlib.import_module(name.replace('/', '.'))
    return getattr(module, 'get_parser' if hasattr(module, 'get_parser') else f'{name}_parser')()


def check(command):
    """Raise a UserError for a command that the repository would refuse."""
    command = re.sub(r'\$(\w+)', r'\1', command.replace('$resume', ''))
    words = shlex.split(command, comments=True)
    while re.match(r'\w+=', words[0]):  # environment variables
        words = words[1:]
    if words[0] == 'srun':
        words = words[words.index('torchrun'):]
    if words[:3] == ['python', '-m', 'torch.distributed.launch']:
        words = ['torchrun', *words[3:]]
    program, *argv = words
    if program == 'torchrun':
        try:
            parsed = torchrun_parser().parse_args(argv)
        except SystemExit:
            raise UserError('torchrun does not understand its options') from None
        program, argv = 'python', [parsed.training_script, *parsed.training_script_args]
    if program == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
        if not set(argv) <= set(targets):
            raise UserError(f'the Makefile lacks one of {argv}')
    elif program == 'bash' or argv[:2] == ['-m', 'pytest']:
        path = argv[0 if program == 'bash' else -1]
        if not (ROOT / path).is_file():
            raise UserError(f'{path} does not exist')
    elif program == 'python':
        script, *options = argv if argv[0] != '-m' else [argv[1].replace('.', '/'), *argv[2:]]
        found = [path for path in (script, f'{script}.py', f'{script}/__main__.py')
                 if path in SCRIPTS]
        if not found:
            raise UserError(f'{script} is not a script of this repository')
        if found == ['train.py'] and not {'--resume', '--help'} & set(options):
            args.parse_train(options)  # with presets, and options that contradict each other
        elif options:
            parser = get_parser(found[0])
            for action in parser._actions:  # what is missing on --resume comes from the run
                action.required &= '--resume' not in options
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
                parser.parse_args(options)  # --help exits
    elif program not in ('source', 'export', 'curl'):
        raise UserError(f'unknown program {program}')


@pytest.mark.parametrize('page', MANUAL, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        try:
            check(command)
        except UserError as error:
            raise AssertionError(f'{command}: {error}') from None


def test_every_script_is_documented():
    called = ' '.join(command for page in MANUAL for command in commands(page)).replace('/', '.')
    for script in SCRIPTS:
        name = script.removesuffix('.py').removesuffix('/__main__').replace('/', '.')
        assert re.search(rf'(-m {name}\b|\b{name}\.py\b)', called), script


@pytest.mark.parametrize('command, reason', [
    ('python train.py --preset kht --data_dir D --save_path R', 'kht'),
    ('python -m metrics.psnr A.npz', 'metrics/psnr'),
    ('torchrun --nproc_per_gpu=4 train.py --preset kth', 'torchrun'),
    ('OMP_NUM_THREADS=4 python -m torch.distributed.launch --nproc_per_node=4 train.py '
     '--preset kth --data_dir D --save_path R --layers 3', '--layers'),
    ('python -m benchmarks --fast', '--fast'),
    ('sudo make tests', 'sudo')])
def test_wrong_commands_are_caught(command, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        check(command)


def test_options_in_text_exist():
    parsers = [torchrun_parser(), *map(get_parser, SCRIPTS)]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers.extend(action.choices.values())
    known = {option for parser in parsers for option in parser._option_string_actions}
    for page in MANUAL:
        text = page.read_text()
        found = re.findall(r'(?<![\w-])--[a-z][\w-]*', '\n'.join([*spans(text), shell(text)]))
        assert set(found) - known - OTHER_OPTIONS == set(), page.name


def test_links_and_files_exist():
    linked = set()
    for page in MANUAL:
        text = page.read_text()
        long = [line for line in text.splitlines() if len(line) > 100 and line[0] != '|']
        assert not long, f'{page.name}: {long}'
        for link in re.findall(r'\]\((?!https?://)([^)\s]+)\)', text):
            file, _, anchor = link.partition('#')
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f'{page.name} links to {link}'
            headings = re.findall(r'^#+ (.*)$', target.read_text(), re.M) if anchor else []
            assert not anchor or anchor in [
                re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings
            ], f'{page.name} links to {link}'
            linked.add(target)
        for span in spans(text):
            if 'waves' not in span and re.fullmatch(
                    r'[a-z][a-z0-9_/]*(?:\.py|\.yaml|\.sh|/)', span):
                assert (ROOT / span).exists(), f'{page.name} names {span}'
    assert {*ROOT.glob('docs/*')} <= linked


def test_readme():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 180
    named = {span.rstrip('/') for span in spans(text.partition('## Files')[2])}
    folders = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert {path.name for path in ROOT.glob('*.py')} | folders <= named
    for preset, nt_gen in re.findall(r'\| `(\w+)` \|.*\| `--nt_gen (\d+)', text):
        assert args.PUBLISHED[preset]['nt_gen'] == int(nt_gen)
