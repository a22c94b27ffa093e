"""What a run logs: `log.csv` and TensorBoard event files."""

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
COLUMNS = ['step', *TERMS, 'lr', 'steps_per_s', 'val_psnr', 'best_psnr']
FLUSH_INTERVAL = 30  # seconds


class Scalars:
    """TensorBoard event file; its steps from `first` on replace those of earlier files.

    Events are written synchronously: SummaryWriter hangs when the disk is full.
    """

    def __init__(self, folder, first):
        self.path, self.flushed = Path(folder) / 'events', time.monotonic()
        with writing(self.path):
            self.writer = EventsWriter(str(self.path))
            self._write(first, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step, **content):
        self.writer.write_event(Event(wall_time=time.time(), step=step, **content))

    def write(self, step, values):
        """Write scalars by name."""
        values = [Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
        with writing(self.path):
            self._write(step, summary=Summary(value=values))
            if time.monotonic() > self.flushed + FLUSH_INTERVAL:
                self.writer.flush()
                self.flushed = time.monotonic()

    def close(self):
        with writing(self.path):
            self.writer.close()


class RunLog:
    """Log of a run. A resumed run drops what was logged after the state that it resumes from.

    Parameters
    ----------
    folder : path
    step, validated : int
        Step that the run starts from, and that of its last validation; 0 for a new run.
    main : bool
        Whether this process is the one that writes.
    """

    def __init__(self, folder, step, validated, main=True):
        self.main = main
        if not main:
            return
        self.path = Path(folder) / 'log.csv'
        rows = self._read(step, validated) if step and self.path.exists() else []
        with replacing(self.path) as tmp, open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.tensorboard = Scalars(folder, step + 1)

    def _read(self, step, validated):
        """Complete rows up to a step; a row truncated by a kill lacks columns."""
        with reading(self.path, 'is not the log of a run', 'move it away'):
            with open(self.path, newline='') as f:
                rows = list(csv.DictReader(f))
            return [row for row in rows
                    if list(row) == COLUMNS and None not in row.values()
                    and re.fullmatch('[0-9]+', row['step'])
                    and int(row['step']) <= (validated if row['val_psnr'] else step)]

    def write(self, step, **values):
        """Write one row; missing columns stay empty."""
        if not self.main:
            return
        row = io.StringIO()
        csv.DictWriter(row, COLUMNS).writerow({'step': step, **values})
        with writing(self.path), open(self.path, 'a', newline='') as f:
            f.write(row.getvalue())
        self.tensorboard.write(step, {
            ('validation/' if name.endswith('psnr') else 'train/') + name: value
            for name, value in values.items()})

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if not self.main:
            return
        if kind is None:
            self.tensorboard.close()
            return
        with contextlib.suppress(WriteError):  # would hide the error that came before
            self.tensorboard.close()
