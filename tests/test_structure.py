"""How scripts start: from any folder, by path and by -m, and converters without PyTorch."""

import subprocess
import sys

import pytest

from conftest import ROOT

SCRIPTS = [str(path.relative_to(ROOT)) for folder in ('preprocessing', 'metrics')
           for path in sorted((ROOT / folder).rglob('*.py'))
           if "if __name__ == '__main__'" in path.read_text()]
CONVERTERS = [name for name in SCRIPTS if name.startswith('preprocessing') or 'convert' in name]

# Starts each script with --help in a fork, which has what they share, and prints what went wrong
START = '''
import os, runpy, sys
import numpy, PIL.Image, tqdm, yaml
root, forbidden, *scripts = sys.argv[1:]
forbidden = set(forbidden.split())
sys.stdout = open(os.devnull, 'w')
for script in scripts:
    for by_path in (True, False):
        if os.fork():
            os.wait()
            continue
        sys.argv = [script, '--help']
        sys.path[0] = os.path.join(root, os.path.dirname(script)) if by_path else root
        code = None
        try:
            if by_path:
                runpy.run_path(os.path.join(root, script), run_name='__main__')
            else:
                name = script.removesuffix('.py').replace('/', '.').removesuffix('.__main__')
                runpy.run_module(name, run_name='__main__', alter_sys=True)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
        imported = forbidden & set(sys.modules)
        if code != 0 or imported:
            print(script, 'by path' if by_path else 'by -m', code, imported, file=sys.stderr)
        os._exit(0)
'''


@pytest.mark.parametrize('scripts, forbidden', [
    (CONVERTERS, 'torch tensorflow'), (sorted({*SCRIPTS} - {*CONVERTERS}), 'tensorflow')])
def test_scripts_start(scripts, forbidden, tmp_path):
    done = subprocess.run([sys.executable, '-c', START, str(ROOT), forbidden, *scripts],
                          cwd=tmp_path, capture_output=True, text=True)
    assert scripts and (done.returncode, done.stderr) == (0, '')
