"""Progress that is written to a file."""

import sys

from files import progress_bar


def test_progress_in_a_file_is_lines_and_not_many(capsys):
    with progress_bar(total=200, desc='work', unit='step') as bar:
        for i in range(200):
            bar.update()
            if i == 100:
                bar.write('a result')
    out, err = capsys.readouterr()
    assert out == 'a result\n' and '\r' not in err and '\x1b' not in err
    first, *_, last = err.splitlines()
    assert first.startswith('work:   0%') and last.startswith('work: 100%') and '200/200' in last and len(err.splitlines()) < 5


def test_progress_on_a_terminal_is_redrawn(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    with progress_bar(total=2, desc='work') as bar:
        bar.update(2)
    assert '\rwork' in capsys.readouterr().err


def test_bars_within_bars_are_for_terminals_only(capsys):
    for _ in progress_bar(range(3), disable=None):
        pass
    assert capsys.readouterr().err == ''
