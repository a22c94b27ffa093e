"""The documentation against the code: commands, options, presets, files, links and Python examples.

Commands are parsed, never run.
"""

import argparse
import ast
import importlib
import inspect
import re
import shlex
from typing import NamedTuple

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

from args import parse_train
from conftest import ROOT
from files import UserError
from published import PUBLISHED

MANUAL = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
PAGES = [*MANUAL, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', ROOT / 'benchmarks/README.md']

# Where the parser of each script or module is; None: inside its main
PARSERS = {
    'train': ('args', 'train_parser'),
    'test': ('test', 'test_parser'),
    'visualize': ('visualize', 'visualize_parser'),
    'compare': ('compare', 'compare_parser'),
    'damage': ('damage', 'damage_parser'),
    'report': ('report', 'report_parser'),
    'export': ('export', 'export_parser'),
    'pretrained': ('pretrained', 'pretrained_parser'),
    'metrics': ('metrics.__main__', 'get_parser'),
    'metrics.fvd': ('metrics.fvd.__main__', 'get_parser'),
    'metrics.fvd.convert': None,
    'benchmarks': None,
    **{name: (name, 'get_parser') for name in (
        'preprocessing.mmnist.make_test_set',
        'preprocessing.kth.download', 'preprocessing.kth.convert',
        'preprocessing.kth.make_test_set',
        'preprocessing.human.convert', 'preprocessing.human.make_test_set',
        'preprocessing.bair.download', 'preprocessing.bair.convert',
        'preprocessing.folder.convert', 'preprocessing.folder.make_test_set')},
}
# Options of other programs (Slurm, TensorBoard) and of `None` above
OTHER_OPTIONS = {'--nodes', '--ntasks-per-node', '--gpus-per-node', '--cpus-per-task', '--signal',
                 '--logdir', '--samples_per_plugin', '--parts', '--repeats'}


class Command(NamedTuple):
    """A command of the documentation."""
    page: str
    text: str


# Extraction

def fences(text):
    """Fenced code blocks of a page: list of (language, code)."""
    return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S)


def spans(text):
    """Inline code of a page, outside of fenced blocks: list of str."""
    prose = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S)
    return [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', prose)]


def shell_lines(code):
    """Commands of a shell script: comments and variable assignments dropped, long lines joined."""
    lines = [line.strip() for line in code.replace('\\\n', ' ').splitlines()]
    return [line for line in lines if line and not re.match(r'#|\w+=\$\(', line)]


def commands(path):
    """Commands of a page, in fenced blocks and inline: list of Command."""
    text = path.read_text()
    lines = [line for kind, code in fences(text) if kind == 'sh' for line in shell_lines(code)]
    lines += [span for span in spans(text) if re.match(r'(python|torchrun|bash|make) ', span)]
    return [Command(path.name, line) for line in lines]


# Checking

def words(text):
    """Words of a command, from its program on; a variable stands for its own name."""
    text = text.replace('$resume', '')  # an optional --resume
    found = shlex.split(re.sub(r'\$(\w+)', r'\1', text), comments=True)
    while re.match(r'\w+=', found[0]):  # environment variables
        found = found[1:]
    if found[0] == 'srun':
        found = found[next(i for i, word in enumerate(found) if word in CHECKS):]
    return found


def get_parser(name):
    """Parser of a script or module; None if it is inside its main."""
    if PARSERS[name] is None:
        return None
    module, function = PARSERS[name]
    return getattr(importlib.import_module(module), function)()


def check(text):
    """Raise a UserError for a command that the repository would refuse."""
    program, *argv = words(text)
    if argv[:1] == ['-m'] and argv[1] in MODULES:
        program, argv = MODULES[argv[1]], argv[2:]
    if program in CHECKS:
        CHECKS[program](argv)
    elif program not in OTHERS:
        raise UserError(f'unknown program {program}')


def check_make(argv):
    targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
    for target in argv:
        if target not in targets:
            raise UserError(f'make has no target {target}')


def check_pytest(argv):
    for path in argv:
        if not (ROOT / path).exists():
            raise UserError(f'{path} does not exist')


def check_bash(argv):
    script, *argv = argv
    if not (ROOT / script).is_file():
        raise UserError(f'{script} does not exist')
    check_script(script.replace('.sh', '.py'), argv)


def check_torchrun(argv):
    try:
        parsed = torchrun_parser().parse_args(argv)
    except SystemExit:
        raise UserError('torchrun does not understand its options') from None
    check_script(parsed.training_script, parsed.training_script_args)


def check_python(argv):
    if argv[0] == '-m':
        check_script(f'{argv[1].replace(".", "/")}.py', argv[2:])
    else:
        check_script(argv[0], argv[1:])


def check_script(path, argv):
    """Check the arguments of a script or module, given by its path."""
    name = path.removesuffix('.py').replace('/', '.')
    if name not in PARSERS:
        raise UserError(f'{path} is not a script of this repository')
    if not ((ROOT / path).is_file() or (ROOT / path.removesuffix('.py') / '__main__.py').is_file()):
        raise UserError(f'{path} does not exist')
    if not argv:  # only the program is mentioned
        return
    parser = get_parser(name)
    if parser is None:
        raise UserError(f'{name} has no parser to check {argv} with')
    if name == 'train' and not {'--resume', '--help'} & set(argv):
        parse_train(argv)  # resolves presets and files, and checks options against each other
        return
    if '--resume' in argv:  # missing options are taken from the run
        for action in parser._actions:
            action.required = False
    try:
        parser.parse_args(argv)
    except SystemExit:  # --help
        pass


MODULES = {'torch.distributed.launch': 'torchrun', 'pytest': 'pytest'}  # programs run with -m
CHECKS = {'make': check_make, 'pytest': check_pytest, 'bash': check_bash,
          'torchrun': check_torchrun, 'python': check_python}
OTHERS = {'source', 'export'}  # not checked


def all_parsers():
    """All parsers, those of subcommands included."""
    parsers = [torchrun_parser(), *filter(None, map(get_parser, PARSERS))]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers.extend(action.choices.values())
    return parsers


# Tests

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
COMMANDS = [command for page in [*MANUAL, ROOT / 'CONTRIBUTING.md'] for command in commands(page)]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: f'{c.page}: {c.text}')
def test_command(command):
    check(command.text)


def test_every_script_is_documented():
    called = ' '.join(command.text.replace('/', '.') for command in COMMANDS)
    for name in PARSERS:
        script = 'sh' if name.endswith('download') else 'py'
        assert re.search(rf'(-m {name}\b|\b{name}\.{script}\b)', called), name


@pytest.mark.parametrize('text, reason', [
    ('python train.py --preset kht --data_dir $DATA --save_path $RUN', 'invalid choice'),
    ('python train.py --preset kth --data_dir $DATA --save_path $RUN --layers 3', '--layers'),
    ('python train.py --preset kth --data_dir $DATA --save_path $RUN --nc 3', '--nc 3'),
    ('python train.py --preset kth --save_path $RUN', 'data_dir'),
    ('python train.py --config configs/none.yaml --data_dir $DATA --save_path $RUN', 'none.yaml'),
    ('python train.py --resume --save_path $RUN --layers 3', '--layers'),
    ('python test.py --xp_dir $RUN --data_dir $DATA --nt_gen many', '--nt_gen'),
    ('python test.py --xp_dir $RUN --data_dir $DATA --metrics mse', 'mse'),
    ('python trian.py --preset kth', 'trian.py'),
    ('python -m metrics.psnr A.npz', 'metrics/psnr.py'),
    ('python -m metrics --preset kth --data_dir $DATA --best A.npz', '--best'),
    ('python -m metrics.fvd A.npz', 'FILE'),
    ('python visualize.py swop --xp_dir $RUN --data_dir $DATA', 'swop'),
    ('python visualize.py swap --xp_dir $RUN --data_dir $DATA --steps 3', '--steps'),
    ('python damage.py --xp_dir $RUN --data_dir $DATA --experiment 4', '--experiment'),
    ('python export.py --xp_dir $RUN', '--out_dir'),
    ('python preprocessing/kth/convert.py --data_dir $DATA --layout png', '--layout'),
    ('bash preprocessing/kht/download.sh $DATA', 'download.sh'),
    ('bash preprocessing/kth/download.sh $DATA --mirror X', '--mirror'),
    ('torchrun --nproc_per_gpu=4 train.py --preset kth', 'torchrun'),
    ('srun --ntasks=2 torchrun --nproc_per_node=4 train.py --preset kht --data_dir $DATA '
     '--save_path $RUN', 'kht'),
    ('OMP_NUM_THREADS=4 python -m torch.distributed.launch --nproc_per_node=4 train.py '
     '--preset kth --data_dir $DATA --save_path $RUN --layers 3', '--layers'),
    ('python -m benchmarks --fast', 'no parser'),
    ('python -m pytest tests/test_modle.py', 'test_modle.py'),
    ('make tests', 'tests'),
    ('sudo make test', 'sudo')])
def test_wrong_commands_are_caught(text, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        check(text)


def test_extraction():
    text = ('Use `python a.py --x` or\n`make\ntest`.\n'
            '```sh\n# no\nA=1 python b.py \\\n    --y  # yes\nfirst=$(date)\n```\n'
            '```python\nimport z\n```\n')
    assert fences(text) == [('sh', text.partition('```sh\n')[2].partition('```')[0]),
                            ('python', 'import z\n')]
    assert spans(text) == ['python a.py --x', 'make test']
    assert [words(line) for line in shell_lines(fences(text)[0][1])] == [['python', 'b.py', '--y']]


@each_page
def test_code_blocks_are_of_known_languages(page):
    text = page.read_text()
    assert text.count('```') == 2 * len(fences(text))
    assert {kind for kind, _ in fences(text)} <= {'sh', 'python', 'bibtex'}


@each_page
def test_options_in_text_exist(page):
    if page.name == 'CHANGELOG.md':
        return  # may name what was removed
    known = {option for parser in all_parsers() for option in parser._option_string_actions}
    text = page.read_text()
    code = [*spans(text), *(code for kind, code in fences(text) if kind == 'sh')]
    found = {option for part in code for option in re.findall(r'(?<![\w-])--[a-z][\w-]*', part)}
    assert found - known - OTHER_OPTIONS == set()


def anchors(path):
    """Anchors of the headings of a page, as GitHub makes them."""
    prose = re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.M | re.S)
    headings = re.findall(r'^#+ (.*)$', prose, re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@each_page
def test_links_and_pictures_exist(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if re.match(r'https?://', link):
            continue
        file, _, anchor = link.partition('#')
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f'{page.name} links to {link}'
        assert not anchor or anchor in anchors(target), f'{page.name} links to {link}'


def test_all_pages_and_pictures_are_linked():
    linked = {(page.parent / link.partition('#')[0]).resolve() for page in PAGES
              for link in re.findall(r'\]\(([^)\s]+)\)', page.read_text())}
    assert {*ROOT.glob('docs/*')} <= linked


@each_page
def test_source_files_in_text_exist(page):
    if page.name == 'CHANGELOG.md':
        return  # may name what was removed
    for span in spans(page.read_text()):
        for name in re.findall(r'^[a-z][a-z0-9_/]*(?:\.py|\.yaml|\.sh|/)$', span):
            assert (ROOT / name).exists(), f'{page.name} names {name}'


def test_file_table_of_the_readme_is_complete():
    table = (ROOT / 'README.md').read_text().partition('## Files')[2].partition('\n## ')[0]
    named = {span.rstrip('/') for span in spans(table)}
    folders = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert {path.name for path in ROOT.glob('*.py')} | folders <= named


@each_page
def test_python_examples(page):
    """Imported names exist, and are called with arguments that they take."""
    for tree in [ast.parse(code) for kind, code in fences(page.read_text()) if kind == 'python']:
        names = {alias.name: getattr(importlib.import_module(node.module), alias.name)
                 for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                 for alias in node.names}
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                if function := names.get(call.func.id):
                    keywords = {keyword.arg: None for keyword in call.keywords}
                    inspect.signature(function).bind(*call.args, **keywords)


def test_length_and_width():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 200
    for page in PAGES:
        lines = page.read_text().splitlines()
        long = [line for line in lines if len(line) > 100 and line[0] != '|']
        assert not long, f'{page.name}: {long[0]}'


def test_lengths_in_the_table_of_datasets_are_the_published_ones():
    rows = re.findall(r'\| `(\w+)` \|.*\| `--nt_gen (\d+)', (ROOT / 'README.md').read_text())
    assert {preset: int(nt_gen) for preset, nt_gen in rows} == {
        preset: paper.nt_gen for preset, paper in PUBLISHED.items()}
