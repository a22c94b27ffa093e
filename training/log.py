"""What a run logs: `log.csv`, `validation.csv` and TensorBoard event files."""

import contextlib
import csv
import io
import itertools
import os
import time
from pathlib import Path

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from files import WriteError, replacing, writing
from logs import BOTH, TRAINING, VALIDATION, read_table, split

FLUSH_INTERVAL = 30  # seconds


class Events:
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

    def write(self, step, scalars, pictures=None):
        """Write scalars, and pictures (bytes of a PNG or GIF file), by name."""
        values = [Summary.Value(tag=name, simple_value=v) for name, v in scalars.items()]
        for name, data in (pictures or {}).items():
            width, height = Image.open(io.BytesIO(data)).size
            picture = Summary.Image(width=width, height=height, colorspace=3,
                                    encoded_image_string=data)
            values.append(Summary.Value(tag=name, image=picture))
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
    times : sequence of int
        Of predicted frames, whose PSNR is logged.
    main : bool
        Whether this process is the one that writes.
    """

    def __init__(self, folder, step, validated, times, main=True):
        self.main, self.folder = main, Path(folder)
        self.columns = {'log.csv': TRAINING,
                        'validation.csv': VALIDATION + [f'psnr_{t}' for t in times]}
        if not main:
            return
        rows = self._read_all() if step else {name: [] for name in self.columns}
        # log.csv last: until then, that of an earlier run has the rows of both
        for name, last in (('validation.csv', validated), ('log.csv', step)):
            path = self.folder / name
            with replacing(path) as tmp, open(tmp, 'w', newline='') as f:
                writer = csv.DictWriter(f, self.columns[name])
                writer.writeheader()
                writer.writerows(row for row in rows[name] if int(row['step']) <= last)
        self.events = Events(folder, step + 1)

    def _read_all(self):
        """Complete rows of both tables, also if an earlier version wrote them to log.csv."""
        header, log = self._read('log.csv', TRAINING, BOTH)
        if header == BOTH:
            return dict(zip(self.columns, split(log)))
        _, validation = self._read('validation.csv', self.columns['validation.csv'])
        return {'log.csv': log, 'validation.csv': validation}

    def _read(self, name, *headers):
        """Header and complete rows of a table; one that cannot be read is moved aside."""
        path = self.folder / name
        if not path.exists():
            return headers[0], []
        try:
            with writing(path):
                header, rows = read_table(path)
            if header not in headers:
                raise ValueError('it has other columns')
            return header, rows
        except (ValueError, csv.Error) as error:
            aside = next(p for i in itertools.count(1) if not os.path.lexists(p := f'{path}.{i}'))
            with writing(aside, path):
                os.rename(path, aside)
            print(f'note: {path} is not the log of a run ({error}); it is now {aside}, '
                  'and a new one begins')
            return headers[0], []

    def write(self, step, **values):
        """Write a row of training."""
        if self.main:
            self._append('log.csv', {'step': step, **values})
            self.events.write(step, {f'train/{name}': value for name, value in values.items()})

    def write_validation(self, step, scores, psnr, pictures):
        """Write a row of validation.

        Parameters
        ----------
        scores : dict of float by column
        psnr : list of float
            PSNR of each predicted frame.
        pictures : dict of bytes by name
            Of PNG or GIF files.
        """
        columns = self.columns['validation.csv'][len(VALIDATION):]
        self._append('validation.csv', {'step': step, **scores, **dict(zip(columns, psnr))})
        self.events.write(step, {f'validation/{name}': value for name, value in scores.items()},
                          {f'validation/{name}': data for name, data in pictures.items()})

    def _append(self, name, row):
        line, path = io.StringIO(), self.folder / name
        csv.DictWriter(line, self.columns[name]).writerow(row)
        with writing(path), open(path, 'a', newline='') as f:
            f.write(line.getvalue())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if not self.main:
            return
        if kind is None:
            self.events.close()
            return
        with contextlib.suppress(WriteError):  # would hide the error that came before
            self.events.close()
