"""Rules of the source code: no upward imports, PyTorch only where needed, short lines and files."""

import ast
import io
import subprocess
import sys
import tokenize

from conftest import ROOT

# From low to high: a module imports only from lower floors and from its own package
FLOORS = [
    {'files', 'published'},
    {'download', 'logs', 'parsing', 'results', 'utils'},
    {'data', 'module'},
    {'args'},
    {'model'},
    {'checkpoint'},
    {'metrics'},
    {'sampling'},
    {'distributed', 'perturbation', 'pictures', 'predictor', 'preprocessing'},
    {'evaluation', 'training'},
    # Scripts
    {'compare', 'damage', 'export', 'pretrained', 'report', 'test', 'train', 'visualize',
     '__main__'},
    {'benchmarks', 'hubconf'},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

MAX_WIDTH, MAX_FUNCTION, MAX_FILE = 100, 40, 400
LONG_FUNCTIONS = {'bounce'}
LONG_FILES = {'args.py': 450}

PACKAGES = [path.parent for path in ROOT.glob('*/__init__.py') if path.parent.name != 'tests']
PATHS = [*ROOT.glob('*.py'), *(path for package in PACKAGES for path in package.rglob('*.py'))]
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(PATHS)}
TREES = {name: ast.parse(text, name) for name, text in SOURCES.items()}
TESTS = {f'tests/{path.name}': path.read_text() for path in sorted((ROOT / 'tests').glob('*.py'))}

WITHOUT_TORCH = ['files', 'download', 'parsing', 'args', 'train', 'test', 'compare', 'damage',
                 'visualize', 'export', 'pretrained', 'report', *(
    name.removesuffix('.py').removesuffix('/__init__').replace('/', '.') for name in SOURCES
    if name.startswith(('data/', 'preprocessing/')) and name != 'data/stream.py')]

# Processes with TensorFlow run metrics/fvd/tfhub.py as a file
IMPORT = '''
import importlib, runpy, sys
runpy.run_path('metrics/fvd/tfhub.py', run_name='tfhub')
print('metrics/fvd/tfhub.py', *{'torch', 'tensorflow'} & sys.modules.keys())
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *{'torch', 'tensorflow'} & sys.modules.keys())
'''


def imports(tree):
    """Names of all modules that a file imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def code_lines(text):
    """Numbers of the lines of a file that hold code, not only comments or whitespace."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENDMARKER}
    return {line for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in ignored for line in range(token.start[0], token.end[0] + 1)}


def span(node):
    return set(range(node.lineno, node.end_lineno + 1))


def test_no_import_runs_upwards():
    found = []
    for name, tree in TREES.items():
        own = name.split('/')[0].removesuffix('.py')
        floor = FLOOR[own]
        if name.endswith('/__main__.py'):
            floor = max(floor, FLOOR['__main__'])
        for module in imports(tree):
            top = module.split('.')[0]
            if module.endswith('.__main__') or top != own and FLOOR.get(top, -1) >= floor:
                found.append(f'{name} imports {module}')
    assert not found


def test_options_and_preprocessing_do_not_import_pytorch():
    done = subprocess.run([sys.executable, '-c', IMPORT, *WITHOUT_TORCH], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ['metrics/fvd/tfhub.py', *WITHOUT_TORCH]


def test_lines_are_short():
    found = [f'{name}:{number} has {len(line)} columns'
             for name, text in (SOURCES | TESTS).items()
             for number, line in enumerate(text.splitlines(), 1) if len(line) > MAX_WIDTH]
    assert not found


def test_functions_are_short():
    found = []
    for name, tree in TREES.items():
        code = code_lines(SOURCES[name])
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name not in LONG_FUNCTIONS:
                lines = span(node) & code
                if ast.get_docstring(node) is not None:
                    lines -= span(node.body[0])
                if len(lines) > MAX_FUNCTION:
                    found.append(f'{name}: {node.name} has {len(lines)} lines of code')
    assert not found


def test_files_are_short():
    lengths = {name: len(text.splitlines()) for name, text in SOURCES.items()}
    found = [f'{name} has {length} lines' for name, length in lengths.items()
             if length > LONG_FILES.get(name, MAX_FILE)]
    assert not found
