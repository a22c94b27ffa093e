"""How scripts start and end, besides what `test_files.py` shows in this process."""

import errno
import os
import subprocess
import sys

import files

import pytest

from conftest import ROOT


@pytest.mark.parametrize('script', ['train', 'test', 'damage', 'visualize', 'pretrained', 'export'])
def test_threads_wait_passively_unless_the_user_says_otherwise(script, tmp_path, monkeypatch):
    """The variable is set before PyTorch is imported, which reads it."""
    (tmp_path / 'torch.py').write_text(
        'import os\nprint(os.environ["OMP_WAIT_POLICY"], flush=True)\nos._exit(0)\n')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.delenv('OMP_WAIT_POLICY', False)

    def policy():
        return subprocess.run([sys.executable, f'{script}.py'], cwd=ROOT, capture_output=True,
                              text=True).stdout
    assert policy() == 'passive\n'
    if script == 'train':
        monkeypatch.setenv('OMP_WAIT_POLICY', 'active')
        assert policy() == 'active\n'


def test_full_disk_is_a_sentence_where_python_names_no_file():
    """As when a row is added to a log."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert files.explain(error) == 'a file: No space left on device'
    assert files.explain(OSError(errno.EIO, os.strerror(errno.EIO))) is None
