"""What a run writes about itself: `log.csv` and TensorBoard event files."""

import csv
import io
from pathlib import Path

from tensorboardX import SummaryWriter

from files import replacing

TERMS = ['loss', 'nll', 'kl_y_0', 'kl_z', 'res']
COLUMNS = ['step', *TERMS, 'lr', 'steps_per_s', 'val_psnr', 'best_psnr']


class RunLog:
    """Log of a run, continued after the state it resumes from: later lines of the interrupted run are dropped.

    Parameters
    ----------
    folder : path
    step : int
        Step of the state that the run starts from, 0 for a new run.
    main : bool
        Whether this process writes; another one of the job does otherwise.
    """

    def __init__(self, folder, step, main=True):
        self.main = main
        if not main:
            return
        self.path = Path(folder) / 'log.csv'
        kept = []
        if step and self.path.exists():
            with open(self.path, newline='') as f:
                # a line cut short by a kill lacks columns
                kept = [row for row in csv.DictReader(f) if None not in row.values() and row['step'].isdigit() and int(row['step']) <= step]
        with replacing(self.path) as tmp, open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.tensorboard = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def write(self, step, **values):
        """Write one line; columns left out stay empty."""
        if not self.main:
            return
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS).writerow({'step': step, **values})
        with open(self.path, 'a', newline='') as f:
            f.write(line.getvalue())
        for name, value in values.items():
            self.tensorboard.add_scalar(('validation/' if name.endswith('psnr') else 'train/') + name, value, step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.main:
            self.tensorboard.close()
