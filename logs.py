"""Tables of a training run: `log.csv`, of its steps, and `validation.csv`."""

import csv
import re
from pathlib import Path

from files import UserError, reading

TERMS = ['loss', 'nll', 'kl_y_0', 'kl_z', 'res']
TRAINING = ['step', *TERMS, 'lr', 'steps_per_s']
VALIDATION = ['step', 'val_psnr', 'best_psnr', 'val_ssim']  # followed by psnr_<t> of frames
# Of log.csv in earlier runs, whose rows are those of training and of validation
BOTH = [*TRAINING, 'val_psnr', 'best_psnr']


def read_table(path):
    """Header and complete rows of a table; a row truncated by a kill lacks columns.

    Returns
    -------
    header : list of str
    rows : list of dict of str by column

    Raises
    ------
    ValueError, csv.Error
        It is not a table with a column step.
    """
    with open(path, newline='') as f:
        table = csv.DictReader(f)
        if 'step' not in (table.fieldnames or []):
            raise ValueError('it has no column step')
        rows = [row for row in table if list(row) == table.fieldnames and None not in row.values()
                and re.fullmatch('[0-9]+', row['step'])]
    return table.fieldnames, rows


def split(rows):
    """Rows of training and of validation, from those of an earlier `log.csv`."""
    scores = 'val_psnr', 'best_psnr'
    training = [{name: value for name, value in row.items() if name not in scores}
                for row in rows if not row['val_psnr']]
    validation = [{name: row.get(name, '') for name in ('step', *scores)}
                  for row in rows if row['val_psnr']]
    return training, validation


def read_log(folder):
    """Rows of training and of validation of a run, also of an earlier or a present one.

    Raises
    ------
    UserError
        There is no log, or it cannot be read.
    """
    def read(path):
        with reading(path, 'is not the log of a run', 'use the folder of a run of train.py'):
            return read_table(path)
    paths = [Path(folder) / name for name in ('log.csv', 'validation.csv')]
    if not paths[0].exists():
        raise UserError(f'{paths[0]} does not exist; use the folder of a run of train.py')
    header, rows = read(paths[0])
    if 'val_psnr' in header:
        return split(rows)
    return rows, read(paths[1])[1] if paths[1].exists() else []
