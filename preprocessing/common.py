"""What the scripts share: options, video files, and conversions on all cores."""

import contextlib
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path

from files import (Parser, UserError, cores, count, nonnegative_int, positive_int, progress_bar,
                   replacing)

import av
import numpy as np
from av.stream import Disposition

OPTIONS = {
    '--data_dir': dict(required=True, help='folder of the dataset'),
    '--overwrite': dict(action='store_true', help='replace what is there'),
    '--image_size': dict(type=positive_int, default=64, help='width and height of frames'),
    '--seq_len': dict(type=positive_int, default=40, help='frames per clip'),
    '--size': dict(type=positive_int, default=1000, help='number of clips'),
    '--seed': dict(type=nonnegative_int, default=42, help='seed of the draws')}
# What ffmpeg reads, but holds no video itself: lists of other files, text, pictures
OTHERS = {'adf', 'bin', 'concat', 'dash', 'hls', 'ico', 'idf', 'image2', 'lavfi', 'tty', 'xbin'}
FORMATS = ','.join(name for name in av.formats_available if name not in OTHERS
                   and (name == 'jpeg_pipe' or not name.endswith('_pipe')))
PICTURES = {'avif', 'heic', 'heix', 'mif1'}  # brands of MP4 files
PATIENCE = 60  # seconds to open a file, or to read a part of it
CLOCK_RESETS = 0x200  # flag of formats such as MPEG-TS, whose clock may start again
STILL = 10  # seconds that a frame may last while its neighbours are shorter

av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)  # the same may be wrong with several files


def dataset_parser(description, *names):
    """Parser with `--data_dir`, `--overwrite` and other `OPTIONS`."""
    parser = Parser(description)
    for name in ('--data_dir', '--overwrite', *names):
        parser.add_argument(name, **OPTIONS[name])
    return parser


def check_new(path, overwrite):
    """Raise a UserError if a test set is there and must not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists already; replace it with --overwrite')


def check_lengths(videos, span):
    """Raise a UserError if a video has fewer than the `span` frames of a clip."""
    for video in videos:
        if len(video) < span:
            raise UserError(f'{video.path} has {len(video)} frames, but a clip takes {span}; use '
                            'a smaller --seq_len, or remove the video')


def find_files(folder, pattern, advice):
    """Files in a folder, by name, that do not begin with . (macOS adds ._ files) or _."""
    found = sorted(folder.glob(f'[!._]{pattern}'))
    if not found:
        raise UserError(f'{folder} has no files {pattern}; {advice}')
    return found


def printable(text):
    """Text, or a path, in which what cannot be printed is encoded as in an address: a%0Ab."""
    return ''.join(c if c.isprintable() else urllib.parse.quote(c, errors='surrogateescape')
                   for c in str(text))


class Unreadable(Exception):
    """A source cannot be decoded; the message is the reason."""


class NoVideo(Unreadable):
    """A file is no video, though it may be sound."""


@contextlib.contextmanager
def open_video(path):
    """Open a file that holds a video itself: yields container, stream, complaints of ffmpeg.

    Raises `NoVideo`, or `Unreadable` if ffmpeg knows nothing in it.
    """
    if not Path(path).is_file():
        raise NoVideo('it is no regular file')  # to open a named pipe would wait for ever
    with av.logging.Capture() as complaints, contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(
                f'file:{path}', metadata_errors='replace', timeout=PATIENCE,
                container_options={'format_whitelist': FORMATS}))
        except av.FFmpegError as error:
            if error.log and 'not on whitelist' in error.log[2]:
                raise NoVideo(f'it holds no video itself, but {error.log[1]}') from None
            raise Unreadable(error.strerror) from None
        streams = [stream for stream in container.streams.video
                   if not stream.disposition & Disposition.attached_pic]  # cover art
        if not streams or container.metadata.get('major_brand') in PICTURES:
            raise NoVideo(f'there is no video in it, but {container.format.name}')
        streams = [stream for stream in streams if stream.codec_context and stream.width]
        if not streams:
            raise Unreadable('its video is in a form that ffmpeg does not know')
        stream = max(streams, key=lambda stream: stream.width * stream.height)
        stream.codec_context.thread_count = 1  # the cores are used for several videos
        yield container, stream, complaints


def decode(path, notes):
    """Frames of a video file, each once: time and duration in seconds, (frame, pixel aspect).

    They are `av.VideoFrame`. What the decoder survived is appended to `notes`.
    """
    with open_video(path) as (container, stream, complaints):
        duration = 1 / float(stream.guessed_rate or 25)
        resets = container.format.flags & CLOCK_RESETS
        time, shift = -duration, 0
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError as error:  # the next ones may be sound
                    notes.append(error.strerror)
                    continue
                for frame in frames:
                    expected = time + duration
                    now = expected if frame.time is None else frame.time + shift
                    if time >= 0 and (now <= time or (resets and now > expected + STILL)):
                        shift += expected - now
                        now = expected
                    time = now
                    yield time, duration, (frame, stream.sample_aspect_ratio or Fraction(1))
        except av.FFmpegError as error:  # the rest cannot be read
            if time < 0:
                raise Unreadable(error.strerror) from None
            notes.append(error.strerror)
        notes += [text.strip() for _, _, text in complaints]


def run_jobs(sources, read, overwrite, unit='video', item='frame'):
    """Convert each source to one `.npy` unless that exists, and print a summary; exit code.

    `sources` are paths by target. `read(source, notes)` yields frames, uint8 arrays of one shape,
    and appends to the list `notes` what is wrong with them; any exception means that the source is
    unreadable, which makes the exit code 1. `unit` and `item` say in messages what a source is,
    and what it consists of.
    """
    for folder in {target.parent for target in sources}:
        folder.mkdir(parents=True, exist_ok=True)
        for tmp in folder.glob('.*.npy.*.tmp'):  # left by a killed process
            tmp.unlink()
    waiting = [target for target in sources if overwrite or not target.exists()]
    results, stopped = [], threading.Event()

    def read_all(source, notes):
        try:
            for frame in read(source, notes):
                if stopped.is_set():
                    raise Unreadable('interrupted')
                bar.update()
                yield frame
        except Unreadable:
            raise
        except Exception as error:  # decoders raise many kinds; the others are converted still
            raise Unreadable(f'{type(error).__name__}: {error}') from None

    def convert(target):
        source, notes = printable(sources[target]), []
        try:
            with replacing(target) as tmp:
                n = write_frames(tmp, read_all(sources[target], notes))
        except Unreadable as error:
            return None, f'unreadable: {source} ({printable(error)})'
        return n, f'damaged, but converted: {source} ({printable(notes[0])})' if notes else ''

    # Threads suffice: ffmpeg, its libraries and Pillow do not hold the interpreter lock
    with progress_bar(desc='converting', unit=item, disable=not waiting) as bar, \
            ThreadPoolExecutor(cores()) as pool:
        try:
            running = [pool.submit(convert, target) for target in waiting]
            for future in as_completed(running):
                results.append(future.result())
                done = f'{len(results)} of {count(len(waiting), unit)}'
                bar.set_postfix_str(done, refresh=False)
        except BaseException:  # such as a full disk, or Ctrl-C
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    numbers = [n for n, _ in results if n is not None]
    n_unreadable = len(waiting) - len(numbers)
    print(f'{count(len(numbers), unit)} converted ({count(sum(numbers), item)}), '
          f'{len(sources) - len(waiting)} already there, {n_unreadable} unreadable')
    for line in sorted(line for _, line in results if line):
        print(line)
    return 1 if n_unreadable else 0


def write_frames(path, frames):
    """Write frames as `np.save` would the array of all, one by one; returns their number."""
    n_frames, header = 0, {'descr': '|u1', 'fortran_order': False}
    with open(path, 'wb') as f:
        for frame in frames:
            if not n_frames:  # NumPy leaves room for a larger number
                np.lib.format.write_array_header_1_0(f, header | {'shape': (0, *frame.shape)})
            f.write(np.ascontiguousarray(frame, np.uint8))
            n_frames += 1
        if not n_frames:
            raise Unreadable('it has no frames')
        f.seek(0)
        np.lib.format.write_array_header_1_0(f, header | {'shape': (n_frames, *frame.shape)})
    return n_frames
