"""What a run writes about itself: `log.csv` and TensorBoard event files."""

import contextlib
import csv
import io
import re
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from files import WriteError, reading, replacing, writing

TERMS = ['loss', 'nll', 'kl_y_0', 'kl_z', 'res']
FLUSH = 30  # seconds
COLUMNS = ['step', *TERMS, 'lr', 'steps_per_s', 'val_psnr', 'best_psnr']


class Scalars:
    """TensorBoard event file, in which steps from `first` on replace those of earlier files.

    Written at once: of a full disk, SummaryWriter's thread would die, and the run wait for it for ever.
    """

    def __init__(self, folder, first):
        self.path, self.flushed = Path(folder) / 'events', time.monotonic()
        with writing(self.path):
            self.writer = EventsWriter(str(self.path))
            self.writer.write_event(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step, values):
        """Add values by name."""
        with writing(self.path):
            self.writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(
                value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])))
            if time.monotonic() > self.flushed + FLUSH:
                self.writer.flush()
                self.flushed = time.monotonic()

    def close(self):
        with writing(self.path):
            self.writer.close()


class RunLog:
    """Log of a run, continued after the state it resumes from: later lines of the interrupted run are dropped.

    Parameters
    ----------
    folder : path
    step, validated : int
        Step of the state that the run starts from, and of its last validation; 0 for a new run.
    main : bool
        Whether this process writes; another one of the job does otherwise.
    """

    def __init__(self, folder, step, validated, main=True):
        self.main = main
        if not main:
            return
        self.path = Path(folder) / 'log.csv'
        kept = []
        if step and self.path.exists():
            with reading(self.path, 'is not the log of a run', 'move it away'), open(self.path, newline='') as f:
                # a line cut short by a kill lacks columns
                kept = [row for row in csv.DictReader(f) if list(row) == COLUMNS and None not in row.values() and re.fullmatch('[0-9]+', row['step'])
                        and int(row['step']) <= (validated if row['val_psnr'] else step)]
        with replacing(self.path) as tmp, open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.tensorboard = Scalars(folder, step + 1)

    def write(self, step, **values):
        """Write one line; columns left out stay empty."""
        if not self.main:
            return
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS).writerow({'step': step, **values})
        with writing(self.path), open(self.path, 'a', newline='') as f:
            f.write(line.getvalue())
        self.tensorboard.write(step, {('validation/' if name.endswith('psnr') else 'train/') + name: value for name, value in values.items()})

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.main:
            with contextlib.suppress(WriteError) if kind else contextlib.nullcontext():  # the first error says more
                self.tensorboard.close()
