"""What a run logs: `log.csv`, `validation.csv` and TensorBoard event files."""

import csv
from pathlib import Path

from files import reading, replacing

import numpy as np
from tensorboardX import SummaryWriter

from model import Losses

TRAINING = ['step', *Losses._fields, 'lr', 'steps_per_s']
VALIDATION = ['step', 'val_psnr', 'best_psnr', 'val_ssim']  # followed by psnr_<t> of frames


def read_table(path):
    """Complete rows of a table, dicts of str by column; a row truncated by a kill lacks columns."""
    with reading(path, 'is not the log of a run', 'move it away'), open(path, newline='') as f:
        table = csv.DictReader(f)
        if 'step' not in (table.fieldnames or []):
            raise ValueError('it has no column step')
        return [row for row in table if None not in row.values() and row['step'].isdigit()]


def read_log(folder):
    """Rows of training and of validation of a run."""
    log, validation = (Path(folder) / name for name in ('log.csv', 'validation.csv'))
    return read_table(log), read_table(validation) if validation.exists() else []


class RunLog:
    """Log of a run. A resumed run drops what was logged after the state that it resumes from.

    The state is that of `step`, its last validation that of step `validated`; both are 0 in a new
    run. `times` are those of the predicted frames, whose PSNR is logged.
    """

    def __init__(self, folder, step, validated, times):
        self.folder = folder
        self.columns = {'log.csv': TRAINING,
                        'validation.csv': VALIDATION + [f'psnr_{t}' for t in times]}
        for (name, columns), last in zip(self.columns.items(), (step, validated)):
            path = folder / name
            rows = read_table(path) if path.exists() else []
            with replacing(path) as tmp, open(tmp, 'w', newline='') as f:
                writer = csv.DictWriter(f, columns, extrasaction='ignore')
                writer.writeheader()
                writer.writerows(row for row in rows if int(row['step']) <= last)
        self.events = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def write(self, step, **values):
        """Write a row of training."""
        self._append('log.csv', {'step': step, **values})
        for name, value in values.items():
            self.events.add_scalar(f'train/{name}', value, step)

    def write_validation(self, step, scores, psnr, picture):
        """Write a row of validation; `psnr` is by frame, the picture uint8 (H, W, 3) or None."""
        columns = self.columns['validation.csv'][len(VALIDATION):]
        self._append('validation.csv', {'step': step, **scores, **dict(zip(columns, psnr))})
        for name, value in scores.items():
            self.events.add_scalar(f'validation/{name}', value, step)
        if picture is not None:
            self.events.add_image('validation/futures', np.asarray(picture), step,
                                  dataformats='HWC')

    def _append(self, name, row):
        with open(self.folder / name, 'a', newline='') as f:
            csv.DictWriter(f, self.columns[name]).writerow(row)
