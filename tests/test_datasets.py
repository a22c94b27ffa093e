"""KTH, Human3.6M, BAIR and folders of videos: conversion, loading, training and evaluation."""

import functools
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import damage
import train
import visualize
from args import parse_train
from conftest import GOLDEN, ROOT, steps
from data import find_size, load_test, load_train
from data.clips import Clips, get_fold
from data.kth import CLASSES
from data.stream import BatchStream
from data.video import ArrayVideo, NpzVideo, PngVideo, find_video, find_videos
from files import UserError, exclusive, replacing_folder
from pictures import frames as pictures
from preprocessing.convert import Job, run_jobs, write_array
from preprocessing.decoding import Unreadable, decode, find_ffmpeg, probe
from preprocessing.folder import convert as folder_convert
from preprocessing.folder.frames import FrameFormat, open_frames
from preprocessing.folder.sources import find_sources, get_name
from preprocessing.folder.split import split
from preprocessing.human import convert as human_convert
from preprocessing.human import make_test_set as human_test_set
from preprocessing.kth import convert as kth_convert
from preprocessing.kth import make_test_set as kth_test_set
from utils import stream_rng

SUBJECTS = (1, 5, 6, 7, 8, 9, 11)


def encode(path, size, rate, seconds, *options, source='testsrc2'):
    path.parent.mkdir(parents=True, exist_ok=True)
    video = f'{source}=size={size}:rate={rate}:duration={seconds}'
    subprocess.run([find_ffmpeg(), '-v', 'error', '-y', '-f', 'lavfi', '-i', video, *options,
                    str(path)], check=True)


def stored(path, **kwargs):
    """Frames of a video as they are stored: uint8 (T, H, W, 3)."""
    content = probe(path)
    return decode(path, (content.height, content.width, 3), **kwargs)[0]


def run(script, *argv):
    """Run a script as published, by its path."""
    return subprocess.run([sys.executable, script, *map(str, argv)], cwd=ROOT,
                          capture_output=True, text=True)


def config(dataset, data_dir, **changes):
    options = dict(dataset=dataset, data_dir=data_dir, nx=64, nc=1 if dataset == 'kth' else 3,
                   seq_len=6, seq_len_test=8, subsampling=4)
    return SimpleNamespace(**options | changes)


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


# Small real files

@pytest.fixture(scope='session')
def kth(tmp_path_factory):
    """KTH with some videos of persons 1 and 2, one video missing, and all of the test persons.

    Videos of a class are the same; those of the test persons are there converted only.
    """
    folder = tmp_path_factory.mktemp('kth')
    for c, name in enumerate(CLASSES):
        first = folder / 'raw' / name / f'person01_{name}_d1_uncomp.avi'
        encode(first, '160x120', 25, 1.2 + 0.1 * c, '-c:v', 'mpeg4',
               source='testsrc' if c % 2 else 'testsrc2')
        if name != 'handclapping':
            link(first, first.with_name(f'person02_{name}_d3_uncomp.avi'))
    assert kth_convert.main(['--data_dir', str(folder)]) == 0
    for name, person, trial in itertools.product(CLASSES, range(21, 26), range(1, 5)):
        first = folder / 'processed_64' / name / f'person01_{name}_d1.npy'
        link(first, first.with_name(f'person{person}_{name}_d{trial}.npy'))
    kth_test_set.main(['--data_dir', str(folder), '--size', '6', '--seq_len', '12'])
    return folder


@pytest.fixture(scope='session')
def human(tmp_path_factory):
    """Human3.6M with one video per training subject and two per test subject, of 30 frames."""
    folder = tmp_path_factory.mktemp('human')
    first = folder / 'S1' / 'Videos' / 'Directions.54138969.mp4'
    encode(first, '1000x1000', 50, 0.6, '-pix_fmt', 'yuv420p')
    for subject in SUBJECTS:
        names = ['Directions.54138969.mp4', '_ALL.54138969.mp4']
        if subject in (9, 11):
            names.append('Directions 1.54138969.mp4')
        for name in names:
            if folder / f'S{subject}' / 'Videos' / name != first:
                link(first, folder / f'S{subject}' / 'Videos' / name)
    assert human_convert.main(['--data_dir', str(folder)]) == 0
    human_test_set.main(['--data_dir', str(folder), '--size', '4', '--seq_len', '7',
                         '--subsampling', '4'])
    return folder


RECORDS = '''
import os, shutil, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
import tensorflow as tf
from preprocessing.bair import convert

folder, published, damaged = map(Path, sys.argv[1:])
rng = np.random.RandomState(0)
for fold, files, n in (('train', 2, 3), ('test', 1, 3)):
    out = folder / 'softmotion30_44k' / fold
    out.mkdir(parents=True)
    for k in range(files):
        path = out / f'traj_{k * 256}_to_{k * 256 + 255}.tfrecords'
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(n):
                video = rng.randint(0, 256, (30, 64, 64, 3)).astype(np.uint8)
                feature = {
                    f'{i}/image_aux1/encoded': tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[video[i].tobytes()]))
                    for i in range(30)}
                feature['0/action'] = tf.train.Feature(
                    float_list=tf.train.FloatList(value=[0., 1.]))
                features = tf.train.Features(feature=feature)
                writer.write(tf.train.Example(features=features).SerializeToString())

# In this process, as it has imported TensorFlow already
convert.ProcessPoolExecutor = lambda *_: ThreadPoolExecutor(1)
(published / 'softmotion30_44k').symlink_to(folder / 'softmotion30_44k')
print(convert.main(['--data_dir', str(published), '--layout', 'published']))
shutil.copytree(folder / 'softmotion30_44k', damaged / 'softmotion30_44k')
path = damaged / 'softmotion30_44k' / 'train' / 'traj_0_to_255.tfrecords'
path.write_bytes(path.read_bytes()[:-1000])
with tf.io.TFRecordWriter(str(path.with_name('foreign.tfrecords'))) as writer:
    writer.write(b'garbage' * 9)
print(convert.main(['--data_dir', str(damaged)]))
'''


@pytest.fixture(scope='session')
def bair_folders(tmp_path_factory):
    """Record files of BAIR's features, converted in both layouts, and damaged ones.

    Written by TensorFlow in a process of its own. Returns the three folders and its output.
    """
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('TensorFlow is not installed')
    folders = [tmp_path_factory.mktemp(name) for name in ('bair', 'published', 'damaged')]
    env = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', RECORDS, *folders], env=env, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return *folders, done.stdout


@pytest.fixture(scope='session')
def bair(bair_folders):
    """Folder of BAIR, converted by the command line. On one core, it starts one worker."""
    folder = bair_folders[0]
    code = ('import os, runpy, sys\n'
            'if hasattr(os, "sched_setaffinity"):\n'
            '    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n'
            'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])')
    done = run('-c', code, 'preprocessing/bair/convert.py', '--data_dir', folder)
    assert done.returncode == 0, done.stderr
    summary = '3 record files converted (270 frames), 0 already there, 0 unreadable'
    assert summary in done.stdout
    return folder


@pytest.fixture(scope='session')
def own(tmp_path_factory):
    """Ten videos of several kinds and sizes, and folders of images."""
    source = tmp_path_factory.mktemp('own')
    for name, size, *options in (('clip0.mp4', '96x72'),
                                 ('more/clip0.avi', '72x96', '-c:v', 'mpeg4')):
        encode(source / name, size, 25, 0.8, *options)
        for i in range(1, 4):
            link(source / name, source / name.replace('0', str(i)))
    for k in range(2):
        for t in range(12):
            write_image(source / f'frames{k}' / f'f{t}.png', np.full((80, 80, 3), 10 * t))
    return source


def write_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope='session')
def folder(own, tmp_path_factory):
    """The videos of `own`, converted."""
    target = tmp_path_factory.mktemp('converted')
    assert folder_convert.main(['--data_dir', str(own), '--out_dir', str(target)]) == 0
    return target


# Conversion

@pytest.mark.parametrize('rate', [25, 50])
def test_kth_frames_are_those_of_ffmpeg_itself(rate, tmp_path):
    """As published: PNG frames at 25 frames per second, 64 x 64; the loader keeps channel 0."""
    source = tmp_path / 'source.avi'
    encode(source, '160x120', rate, 1, '-c:v', 'mpeg4')
    subprocess.run([find_ffmpeg(), '-v', 'error', '-i', str(source), '-r', '25', '-f', 'image2',
                    '-s', '64x64', str(tmp_path / 'image-%03d.png')], check=True)
    expected = np.stack([np.asarray(Image.open(path).convert('RGB'))
                         for path in sorted(tmp_path.glob('*.png'))])
    assert 25 <= len(expected) <= 27
    frames, note = kth_convert.read(source, 64, 25)
    np.testing.assert_array_equal(frames, expected)
    assert not note
    kth_convert.write(tmp_path / 'source.npy', frames)
    np.testing.assert_array_equal(np.load(tmp_path / 'source.npy'), expected[..., 0])


def test_human_frames_are_cropped_then_resized(human):
    frames = stored(human / 'S1' / 'Videos' / 'Directions.54138969.mp4')
    crop = Image.fromarray(frames[7]).crop((100, 100, 900, 900))
    expected = np.asarray(crop.resize((64, 64), Image.Resampling.LANCZOS))
    converted = np.load(human / 'train' / 'S1-Directions.54138969.npy')
    assert converted.shape == (30, 64, 64, 3)
    np.testing.assert_array_equal(converted[7], expected)
    names = {f'S{s}-Directions{n}.54138969.npy' for s in (9, 11) for n in ('', ' 1')}
    assert {path.name for path in (human / 'test').iterdir()} == names


def test_bair_frames_are_those_of_the_records(bair):
    rng = np.random.RandomState(0)
    for k, i in np.ndindex(2, 3):
        video = rng.randint(0, 256, (30, 64, 64, 3)).astype(np.uint8)
        record = bair / 'processed_data' / 'train' / f'traj_{k * 256}_to_{k * 256 + 255}'
        np.testing.assert_array_equal(np.load(record / f'{i + 1:03d}.npy'), video)


def test_data_and_preprocessing_import_no_framework():
    modules = ['data', *(f'preprocessing.{name}' for name in (
        'kth.convert', 'human.convert', 'bair.convert', 'folder.convert', 'kth.make_test_set',
        'human.make_test_set', 'folder.make_test_set', 'mmnist.make_test_set'))]
    program = (f'import sys, {", ".join(modules)}\n'
               'found = {"torch", "tensorflow"} & set(sys.modules)\n'
               'assert not found, found')
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


def test_folder_is_cropped_to_squares_and_split(own, folder):
    names = {fold: {path.name for path in (folder / fold).iterdir()}
             for fold in ('train', 'val', 'test')}
    assert [len(names[fold]) for fold in ('train', 'val', 'test')] == [8, 1, 1]
    assert set().union(*names.values()) == {
        *(f'clip{i}.mp4.npy' for i in range(4)), *(f'more-clip{i}.avi.npy' for i in range(4)),
        'frames0.npy', 'frames1.npy'}
    frames = np.load(next(folder.glob('*/frames0.npy')))
    assert frames.shape == (12, 64, 64, 3)
    assert [frame.mean() for frame in frames] == [10 * t for t in range(12)]  # f10 follows f9
    frame = Image.fromarray(stored(own / 'clip1.mp4')[3])
    found = np.load(next(folder.glob('*/clip1.mp4.npy')))[3]

    def difference(left):
        crop = frame.crop((left, 0, left + 72, 72)).resize((64, 64), Image.Resampling.LANCZOS)
        return abs(found - np.asarray(crop).astype(int)).mean()

    assert difference(12) < 5 < 2 * difference(12) < min(difference(10), difference(14))


def test_split_is_seeded_and_stays_when_videos_come_and_go():
    assign = functools.partial(split, val=0.05, test=0.1)
    names = [f'v{i}' for i in range(40)]
    folds = assign(names, seed=42, before={})
    assert sorted(folds.values()) == ['test'] * 4 + ['train'] * 34 + ['val'] * 2
    assert folds == assign(names, seed=42, before={}) != assign(names, seed=43, before={})
    more = assign(names[5:] + [f'w{i}' for i in range(45)], seed=42, before=folds)
    assert all(more[name] == folds[name] for name in names[5:])
    assert sorted(more.values()) == ['test'] * 8 + ['train'] * 68 + ['val'] * 4
    folds = split(names[:3], 0, 0, 1, {})
    assert sorted(folds.values()) == ['test', 'train', 'val']


def test_conversion_of_a_growing_folder(own, tmp_path, capsys):
    source, out = tmp_path / 'in', tmp_path / 'out'
    shutil.copytree(own, source)
    broken = source / 'broken.mp4'
    broken.write_bytes(b'no video')
    argv = ['--data_dir', str(source), '--out_dir', str(out), '--val', '0.2']
    assert folder_convert.main(argv) == 1
    before = {path: path.stat().st_mtime_ns for path in out.glob('*/*.npy')}
    shutil.copy(source / 'clip0.mp4', broken)
    shutil.copy(source / 'clip0.mp4', source / 'another.mp4')
    capsys.readouterr()
    assert folder_convert.main(argv) == 0
    assert '2 videos converted (40 frames), 10 already there' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    message = 'was converted with --gray False, found True; use the same, or remove'
    with pytest.raises(UserError, match=message):
        folder_convert.main([*argv, '--gray'])


@pytest.fixture
def small(tmp_path):
    """Three folders of two images, and the options that convert them to `out`."""
    for name, t in itertools.product('abc', range(2)):
        write_image(tmp_path / 'in' / name / f'{t}.png', np.zeros((8, 8, 3)))
    (tmp_path / 'out').mkdir()
    return ['--data_dir', str(tmp_path / 'in'), '--out_dir', str(tmp_path / 'out'),
            '--image_size', '8']


def test_split_is_made_by_one_conversion_at_a_time(small, tmp_path, monkeypatch):
    with monkeypatch.context() as m, exclusive(tmp_path / 'out' / '.conversion.lock', ''):
        m.setattr(folder_convert, 'assign', None)
        with pytest.raises(UserError, match='another conversion to .*out is running'):
            folder_convert.main(small)
    assert not list((tmp_path / 'out').iterdir()) and folder_convert.main(small) == 0


@pytest.mark.parametrize('name, text, message', [
    ('split.json', '{"a": "../../mine"}',
     "assigns a to '../../mine', expected one of train, val, test; rest"),
    ('split.json', '{"b": ["train"]}', 'assigns b to'),
    ('split.json', '{', 'readable as JSON .*; restore it'),
    ('conversion.json', '[]', 'found list; remove it, and the converted videos too unless')])
def test_damaged_records(small, tmp_path, name, text, message):
    (tmp_path / 'out' / name).write_text(text)
    with pytest.raises(UserError, match=f'{name} .*{message}'):
        folder_convert.main(small)
    assert (tmp_path / 'out' / name).read_text() == text
    assert not list(tmp_path.rglob('mine*')) and not list(tmp_path.rglob('*.npy'))


def test_fold_without_a_readable_video_is_reported(tmp_path):
    (tmp_path / 'in').mkdir()
    for i in range(3):
        (tmp_path / 'in' / f'{i}.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match='out/train has no videos; repair unreadable ones'):
        folder_convert.main(['--data_dir', f'{tmp_path}/in', '--out_dir', f'{tmp_path}/out'])


def test_what_counts_as_a_video_of_a_folder(tmp_path):
    folder, elsewhere = tmp_path / 'in', tmp_path / 'elsewhere'
    for name in ('a.MP4', 'notes.txt', 'top.png', 'top2.png', '.hidden/b.mp4', '.c.mp4',
                 'frames/0.png', 'frames/1.png', 'one/0.png', 'with cover/d.mkv',
                 'with cover/0.png', 'with cover/1.png', '../elsewhere/e.avi'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / 'link').symlink_to(elsewhere)
    (elsewhere / 'cycle').symlink_to(folder)
    found = find_sources(folder)
    assert list(found.sources.items()) == [
        ('a.MP4', folder / 'a.MP4'), ('frames', folder / 'frames'),
        ('link-e.avi', folder / 'link' / 'e.avi'),
        ('with cover-d.mkv', folder / 'with cover' / 'd.mkv')]
    reasons = {str(path.relative_to(folder)): reason for path, reason in found.left_out}
    assert reasons.pop('notes.txt').startswith('Invalid data')
    beside, alone = 'a picture beside video files', 'pictures of a video need a folder of their own'
    assert reasons == {'top.png': alone, 'top2.png': alone, 'with cover/0.png': beside,
                       'with cover/1.png': beside, 'one/0.png': 'a single picture is no video'}
    (folder / 'with cover-d.mkv').touch()
    with pytest.raises(UserError, match='would both be called with cover-d.mkv; rename one'):
        find_sources(folder)
    long = tmp_path / ('x' * 150) / ('y' * 100 + '.mp4')
    assert len(get_name(long, tmp_path)) < 200
    assert get_name(tmp_path / 'a' / 'b.mp4', tmp_path) == 'a-b.mp4'


def test_missing_folder_of_videos(tmp_path):
    argv = ['--data_dir', str(tmp_path / 'in'), '--out_dir', str(tmp_path / 'out')]
    with pytest.raises(UserError, match='in is not a folder'):
        folder_convert.main(argv)
    (tmp_path / 'in').mkdir()
    with pytest.raises(UserError, match='in has 0 videos .*; at least 3 are needed'):
        folder_convert.main(argv)
    assert not (tmp_path / 'out').exists()


def test_16_bit_images_and_damaged_ones(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 1024, (64, 1))
    for t in range(2):
        Image.fromarray(ramp).save(tmp_path / f'{t}.png')
    frames, _ = open_frames(tmp_path, FrameFormat(64))
    assert frames[0, 0, :, 0].tolist() == list(range(0, 256, 4))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / '2.tif')
    job = folder_convert.FolderJob(tmp_path, [tmp_path / 'out' / 'a.npy'], FrameFormat(64),
                                   bar=SimpleNamespace(update=[].append))
    assert job() == (None, '2.tif: floating-point images have no defined range')
    assert not list((tmp_path / 'out').iterdir())


def test_any_error_of_a_source_is_a_note(tmp_path):
    def read(source):
        raise SyntaxError('broken PNG file')
    assert Job(tmp_path, tmp_path, read, None)() == (None, 'SyntaxError: broken PNG file')


def test_frames_of_10_bits_and_variable_rates(tmp_path, monkeypatch):
    ffv1 = ['-c:v', 'ffv1']
    encode(tmp_path / 'ten.mkv', '64x48', 25, 0.4, *ffv1, '-pix_fmt', 'yuv444p10le')
    encode(tmp_path / 'eight.mkv', '64x48', 25, 0.4, *ffv1, '-pix_fmt', 'yuv444p')
    ten, eight = (stored(tmp_path / name).astype(int) for name in ('ten.mkv', 'eight.mkv'))
    assert ten.shape == eight.shape == (10, 48, 64, 3) and abs(ten - eight).mean() < 2
    encode(tmp_path / 'rate.mkv', '64x48', 25, 1, '-vf', "setpts='if(gt(N,12),10*PTS,PTS)'",
           '-fps_mode', 'vfr', *ffv1)
    assert len(stored(tmp_path / 'rate.mkv')) == 25
    with pytest.raises(Unreadable, match='it has more than 24 frames'):
        stored(tmp_path / 'rate.mkv', max_frames=24)
    os.rename(tmp_path / 'ten.mkv', tmp_path / '12:30.mkv')
    monkeypatch.chdir(tmp_path)
    assert len(stored('12:30.mkv')) == 10


def test_gray_folder(small, tmp_path):
    assert folder_convert.main([*small, '--gray', '--image_size', '4']) == 0
    assert np.load(next(tmp_path.glob('out/*/a.npy'))).shape == (2, 4, 4)


def test_converters_skip_finished_videos_and_go_on_after_a_bad_one(kth, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / 'raw' / name).mkdir(parents=True)
        shutil.copy(kth / 'raw' / name / f'person01_{name}_d1_uncomp.avi', tmp_path / 'raw' / name)
    bad = tmp_path / 'raw' / 'jogging' / 'person02_jogging_d1_uncomp.avi'
    bad.write_bytes(b'RIFF nothing more')
    whole = tmp_path / 'raw' / 'walking' / 'person01_walking_d1_uncomp.avi'
    whole.with_name('person02_walking_d1_uncomp.avi').write_bytes(whole.read_bytes()[:20000])
    target = tmp_path / 'processed_64' / 'boxing'
    target.mkdir(parents=True)
    (target / '.person01_boxing_d1.npy.77.tmp').write_bytes(b'half')
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert 'converting' in err
    assert '7 videos converted' in out and '0 already there, 1 unreadable' in out
    assert f'unreadable: {bad} (' in out
    assert not list(target.glob('.*'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npy')}
    assert len(before) == 7
    bad.unlink()
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 0
    assert capsys.readouterr() == (
        '0 videos converted (0 frames), 7 already there, 0 unreadable\n', '')  # no empty bar
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npy')} == before


def test_folder_appears_complete_or_not_at_all(tmp_path):
    stale = tmp_path / f'.a.{os.getpid()}.tmp'  # left by a killed process with the same id
    stale.mkdir()
    (stale / 'old').touch()
    with pytest.raises(ValueError), replacing_folder(tmp_path / 'a') as tmp:
        (tmp / '1').touch()
        raise ValueError
    assert not list(tmp_path.iterdir())
    with replacing_folder(tmp_path / 'a') as tmp:
        (tmp / '1').touch()
        assert not (tmp_path / 'a').exists()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob('*')] == [
        Path('a'), Path('a/1')]


KILLED = """
import os, signal, sys
import numpy as np
from preprocessing.human import convert
convert.cores = lambda: 1  # one video after the other
save, calls = np.save, []
def killed(f, frames, **kwargs):
    calls.append(f)
    if len(calls) == 4:
        f.write(b'half a video')
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(f, frames, **kwargs)
np.save = killed
convert.main(['--data_dir', sys.argv[1]])
"""


def test_killed_conversion_leaves_no_half_video(human, tmp_path, capsys):
    for subject in SUBJECTS:
        shutil.copytree(human / f'S{subject}', tmp_path / f'S{subject}', copy_function=os.link)
    assert run('-c', KILLED, tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob('t*/*.npy'))) == 3
    assert [path.read_bytes() for path in tmp_path.glob('t*/.*.tmp')] == [b'half a video']
    assert (tmp_path / '.conversion.lock').exists()  # no longer locked
    assert human_convert.main(['--data_dir', str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert '6 videos converted' in out and '3 already there' in out
    assert not list(tmp_path.glob('.*')) and not list(tmp_path.glob('t*/.*'))
    for path in human.glob('t*/*.npy'):
        np.testing.assert_array_equal(np.load(tmp_path / path.relative_to(human)), np.load(path))


def test_conversions_to_one_folder_exclude_each_other(kth, tmp_path):
    shutil.copytree(kth / 'raw', tmp_path / 'raw', copy_function=os.link)
    out = tmp_path / 'processed_64'
    out.mkdir()
    argv = ['--data_dir', str(tmp_path)]
    holder = subprocess.Popen(
        [sys.executable, '-c', 'import sys\nfrom files import exclusive\n'
         'with exclusive(sys.argv[1], ""):\n    print(flush=True)\n    sys.stdin.read()',
         out / '.conversion.lock'], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UserError, match='another conversion to .*processed_64 is running'):
        kth_convert.main(argv)
    holder.kill()
    holder.communicate()
    assert kth_convert.main(argv) == 0 and not (out / '.conversion.lock').exists()
    with pytest.raises(UserError, match='was converted with --frame_rate 25, found 10'):
        kth_convert.main([*argv, '--frame_rate', '10'])
    first = tmp_path / 'raw' / 'boxing' / 'person01_boxing_d1_uncomp.avi'
    link(first, first.with_name('person01_boxing_d1.avi'))
    with pytest.raises(UserError, match='person01_boxing_d1.avi and .*person01_boxing_d1_uncomp.avi'
                                        ' would both be converted to .*person01_boxing_d1.npy'):
        kth_convert.main(argv)


def test_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    job = Job(tmp_path, tmp_path / 'file' / 'a.npy', None, write_array)
    with pytest.raises(UserError, match='output folder .*file cannot be created'):
        run_jobs([job], None, {})


def test_workers_end_with_the_process_that_started_them(tmp_path):
    (tmp_path / 'main.py').write_text(
        'import multiprocessing, time\n'
        'from data.workers import follow_parent\n'
        'def work():\n'
        '    follow_parent()\n'
        '    print("up", flush=True)\n'
        '    time.sleep(60)\n'
        'if __name__ == "__main__":\n'
        '    worker = multiprocessing.get_context("spawn").Process(target=work)\n'
        '    worker.start()\n'
        '    worker.join()\n')
    process = subprocess.Popen([sys.executable, tmp_path / 'main.py'], stdout=subprocess.PIPE,
                               env={**os.environ, 'PYTHONPATH': str(ROOT)})
    process.stdout.readline()
    process.kill()
    killed = time.monotonic()
    process.communicate()  # until the worker, which inherited stdout, has ended too
    assert time.monotonic() - killed < 30


def test_damaged_record_file(bair, bair_folders, capsys):
    _, _, damaged, out = bair_folders
    records = damaged / 'softmotion30_44k' / 'train'
    assert out.splitlines()[-1] == '1' and '2 record files converted' in out
    assert f'unreadable: {records}/traj_0_to_255.tfrecords (' in out
    assert f'unreadable: {records}/foreign.tfrecords (DecodeError' in out
    assert not (damaged / 'processed_data' / 'train' / 'traj_0_to_255').exists()
    done = run('preprocessing/bair/convert.py', '--data_dir', bair, '--layout', 'published')
    assert done.returncode == 2
    assert 'was converted with --layout array, found published' in done.stderr


@pytest.mark.parametrize('script, message', [
    ('kth', 'bash preprocessing/kth/download.sh'), ('human', 'register at'),
    ('bair', 'bash preprocessing/bair/download.sh')])
def test_converters_say_what_is_missing(script, message, tmp_path):
    done = run(f'preprocessing/{script}/convert.py', '--data_dir', tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1


# Layouts

@pytest.fixture
def published(request, tmp_path):
    """Function that converts a dataset, the folder of which is given, in the published layout."""
    def convert(dataset, source):
        if dataset == 'bair':
            folders = request.getfixturevalue('bair_folders')
            assert folders[-1].splitlines()[1] == '0'
            return folders[1]
        main, names = {'kth': (kth_convert.main, ['raw']),
                       'human': (human_convert.main, [f'S{s}' for s in SUBJECTS])}[dataset]
        for name in names:
            (tmp_path / name).symlink_to(source / name)
        assert main(['--data_dir', str(tmp_path), '--layout', 'published']) == 0
        return tmp_path
    return convert


@pytest.mark.parametrize('dataset', ['kth', 'human', 'bair'])
def test_both_layouts_give_identical_clips(dataset, request, published):
    source = request.getfixturevalue(dataset)
    target = published(dataset, source)
    assert not list(target.rglob('processed*/**/*.npy')) and not list(target.glob('t*/*.npy'))
    for ours, theirs in zip(load_train(config(dataset, source)),
                            load_train(config(dataset, target))):
        assert [len(video) for video in ours.videos] == [len(video) for video in theirs.videos]
        assert type(ours.videos[0]) is not type(theirs.videos[0])
        batches = [BatchStream(s, 1, 'train', 6)[range(15, 20)] for s in (ours, theirs)]
        np.testing.assert_array_equal(*batches)
    if dataset == 'kth':
        folder = target / 'processed_64' / 'boxing' / 'person01_boxing_d1'
        assert min(path.name for path in folder.iterdir()) == 'image-001.png'
        assert np.asarray(Image.open(folder / 'image-001.png')).shape == (64, 64, 3)
    if dataset == 'human':
        path = target / 'test' / 'S9-Directions.54138969.npz'
        with np.load(path, allow_pickle=False) as f:
            assert (str(f['filename']), int(f['subject'])) == ('Directions.54138969.mp4', 9)


def test_frames_are_ordered_by_number(tmp_path):
    for t in range(998, 1003):
        write_image(tmp_path / 'person01_boxing_d1' / f'image-{t:03d}.png',
                    np.full((2, 2, 3), (t % 256, t // 256, 0)))
    video = find_videos(tmp_path)['person01_boxing_d1']
    found = video.clip(0, 5).astype(int)[:, 0, 0]
    assert (found[:, 0] + 256 * found[:, 1]).tolist() == list(range(998, 1003))


def test_memory_map_is_the_array(tmp_path):
    array = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.save(tmp_path / 'a.npy', array)
    np.savez(tmp_path / 'b.npz', image=array)
    np.savez_compressed(tmp_path / 'c.npz', image=array)
    videos = find_videos(tmp_path)
    assert len(videos) == 3
    for video in videos.values():
        assert len(video) == 20
        np.testing.assert_array_equal(video.clip(3, 5, 3), array[3:16:3])


@pytest.mark.parametrize(
    'order', list(itertools.permutations(['a', 'a.npy', 'a.npz'])), ids='-'.join)
def test_precedence_of_layouts(order, tmp_path, monkeypatch):
    """The array comes first, then the folder of frames, in whatever order a system lists them."""
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    write_image(tmp_path / 'a' / '1.png', frames[0])
    np.save(tmp_path / 'a.npy', frames)
    np.savez(tmp_path / 'a.npz', image=frames)
    (tmp_path / 'notes').touch()
    glob = Path.glob
    monkeypatch.setattr(Path, 'glob', lambda self, pattern: sorted(
        glob(self, pattern), key=lambda path: (*order, path.name).index(path.name)))
    for layout, remove in ((ArrayVideo, os.remove), (PngVideo, shutil.rmtree),
                           (NpzVideo, os.remove)):
        found = find_videos(tmp_path)
        assert found.keys() == {'a'}
        assert type(found['a']) is type(find_video(tmp_path, 'a')) is layout
        remove(found['a'].path)
    assert not find_videos(tmp_path)
    assert find_video(tmp_path, 'a') is None and find_video(tmp_path, 'notes') is None


# Random clips

class Numbered:
    """Video k of n frames, the pixels of which are their video's and their own number."""
    path, frame_shape = 'numbered', [4, 4]

    def __init__(self, k, n):
        self.k, self.n = k, n

    def __len__(self):
        return self.n

    def clip(self, start, n, step=1):
        assert 0 <= start and start + (n - 1) * step < self.n
        rows = [[self.k, start + i * step, 0, 0] for i in range(n)]
        return np.broadcast_to(np.array(rows, np.uint8)[:, :, None, None], (n, 4, 4, 1))


def test_clips_are_random_videos_and_starts():
    source = Clips([Numbered(k, 9 + k) for k in range(3)], 4, 1, 3, subsampling=2)
    batch = BatchStream(source, 0, 'train', 3)[range(600)][:, :, :2, 0, 0]
    videos, frames = batch[0, :, 0], batch[:, :, 1].astype(int)
    assert (np.diff(frames, axis=0) == 2).all()
    for k in range(3):
        starts, counts = np.unique(frames[0, videos == k], return_counts=True)
        # each start that fits, about equally often
        assert starts.tolist() == list(range(5 + k)) and counts.min() > 15


@pytest.fixture
def lengths(tmp_path):
    """Folder of 40 training videos of 5, 6 and 7 frames, the pixels of which are their number."""
    folder = tmp_path / 'processed_data' / 'train' / 'record'
    folder.mkdir(parents=True)
    for i in range(40):
        np.save(folder / f'{i:03d}.npy', np.full((5 + i % 3, 64, 64, 3), i, np.uint8))
    return folder


def drawn(data_dir, seq_len):
    """Numbers of the videos of both folds, and those of 1,000 draws."""
    sources = load_train(config('bair', data_dir, seq_len=seq_len, seq_len_test=7))
    clips = BatchStream(sources[0], 0, 'train', seq_len)[range(1000)][0, :, 0, 0, 0]
    return [[int(video.path.stem) for video in s.videos] for s in sources], clips


def test_clips_are_from_videos_that_are_long_enough(lengths, tmp_path, capfd, monkeypatch):
    """Folds include short videos, but these are never drawn: as if each draw was repeated."""
    fold, fold_val = (get_fold(40, train).tolist() for train in (True, False))
    (train_videos, val_videos), clips = drawn(tmp_path, 5)
    long_val = [i for i in fold_val if i % 3 == 2]
    assert train_videos == fold and val_videos == long_val and 0 < len(long_val) < len(fold_val)
    err = capfd.readouterr().err
    assert err.startswith('note: 1 of 2 videos have fewer than the 7 frames of a clip: ')
    assert err.count('\n') == 1
    rngs = [stream_rng(0, 'train', i) for i in range(1000)]
    assert clips.tolist() == [fold[rng.randint(len(fold))] for rng in rngs]  # none is short

    (train_videos, _), clips = drawn(tmp_path, 6)
    assert train_videos == [i for i in fold if i % 3] and set(clips) == set(train_videos)
    short = [i for i in fold if i % 3 == 0]
    examples = ', '.join(f'{lengths}/{i:03d}.npy (5)' for i in short[:3])
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 2
    assert err[0] == (f'note: {len(short)} of 38 videos have fewer than the 6 frames of a clip: '
                      f'{examples} …; no clips are drawn from these')
    with pytest.raises(UserError, match=r'^38 of 38 videos .* 8 frames of a clip: .*; use shorter '
                                        r'clips \(--seq_len, --seq_len_test\), or add longer'):
        drawn(tmp_path, 8)
    monkeypatch.setenv('RANK', '1')  # another process of the job
    drawn(tmp_path, 5)
    assert not capfd.readouterr().err
    np.save(lengths / '000.npy', np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match='000.npy has frames 32x32x3'):  # although it is short
        drawn(tmp_path, 6)


def test_short_videos_of_a_test_set_are_all_counted(tmp_path, capsys):
    """Those of a fixed test set are an error, your own are left out with a note."""
    record, test = tmp_path / 'processed_data' / 'test' / 'record', tmp_path / 'test'
    for folder in (record, test):
        folder.mkdir(parents=True)
        for i in range(6):
            np.save(folder / f'{i}.npy', np.zeros((6 + i, 64, 64, 3), np.uint8))
    assert len(load_test(config('folder', tmp_path), tmp_path, 6)) == 6
    assert not capsys.readouterr().err
    for nt, names, more in ((8, ['0.npy (6)', '1.npy (7)'], ''),
                            (10, ['0.npy (6)', '1.npy (7)', '2.npy (8)'], ' …')):
        message = f'{nt - 6} of 6 videos have fewer than the {nt} frames of a clip: '
        examples, own = (', '.join(f'{folder}/{name}' for name in names) + more
                         for folder in (record, test))
        with pytest.raises(UserError, match=re.escape(f'{message}{examples}; remove them, or')):
            load_test(config('bair', tmp_path), tmp_path, nt)
        assert len(load_test(config('folder', tmp_path), tmp_path, nt)) == 12 - nt
        assert capsys.readouterr().err == f'note: {message}{own}; no clips are drawn from these\n'
    with pytest.raises(UserError, match='6 of 6 .* use shorter clips .--nt_gen., or add longer'):
        load_test(config('folder', tmp_path), tmp_path, 12)


def test_unsuitable_videos_are_reported_at_the_start(folder):
    with pytest.raises(UserError, match=r'8 of 8 videos have fewer than the 21 frames of a clip: '
                                        r'.*/train/.*npy \(\d\d\), .* …; use shorter'):
        load_train(config('folder', folder, seq_len=21))
    with pytest.raises(UserError, match='has frames 64x64x3, but 32x32 with --nc 3 is needed'):
        load_train(config('folder', folder, nx=32))
    with pytest.raises(UserError, match='was converted for --nc 3; use that, or convert again '
                                        'with --gray'):
        load_test(config('folder', folder, nc=1), folder, 8)


def test_damaged_arrays_are_reported(tmp_path):
    for fold in ('train', 'val'):
        (tmp_path / fold).mkdir()
        np.save(tmp_path / fold / f'{fold}.npy', np.zeros((20, 64, 64), np.uint8))
    with pytest.raises(UserError, match='train.npy was converted for --nc 1; use that, or '
                                        'convert again without --gray'):
        load_train(config('folder', tmp_path))
    gray = config('folder', tmp_path, nc=1)
    assert load_train(gray)[0].videos
    other = tmp_path / 'train' / 'float.npy'
    np.save(other, np.zeros((20, 64, 64)))
    with pytest.raises(UserError, match='must hold uint8 frames'):
        load_train(gray)
    other.write_bytes(b'no array')
    with pytest.raises(UserError, match='float.npy is not a NumPy array'):
        load_train(gray)
    other.unlink()
    cut = tmp_path / 'train' / 'train.npy'
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match='is truncated'):
        load_train(gray)


@pytest.mark.parametrize('dataset', ['kth', 'human', 'bair', 'folder'])
def test_empty_folders_say_what_was_expected(dataset, tmp_path):
    message = f'--data_dir {tmp_path}.* python preprocessing/{dataset}/'
    with pytest.raises(UserError, match=message):
        load_train(config(dataset, tmp_path))
    with pytest.raises(UserError, match=message):
        load_test(config(dataset, tmp_path), tmp_path, 8)


@pytest.mark.parametrize('shape, message', [
    ('(6, 4, 4', 'is not a NumPy array'), ('(6, [], 4)', 'is not a NumPy array|found uint8'),
    ('(-6, -4, 4)', 'found uint8 .-6, -4, 4.'), ('(True, 4, 4)', 'found uint8 .True, 4, 4.'),
    (f'(6, 4, 4, 1{"0" * 30})', 'is truncated'), ('(4294967296, 4294967296, 4)', 'is truncated')])
def test_damaged_headers_of_arrays(tmp_path, shape, message):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
    content = (b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode()
               + bytes(6 * 4 * 4))
    (tmp_path / 'a.npy').write_bytes(content)
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
        archive.writestr('image.npy', content)
    for name in ('a.npy', 'b.npz'):
        with pytest.raises(UserError, match=f'{name} .*({message}).*; convert'):
            find_videos(tmp_path)
        (tmp_path / name).unlink()


def test_damaged_archives_of_videos(tmp_path):
    path = tmp_path / 'a.npz'
    frames = np.random.RandomState(0).randint(0, 256, (6, 4, 4)).astype(np.uint8)
    np.savez_compressed(path, image=frames)
    content = path.read_bytes()
    directory = content.rindex(b'PK\x01\x02')
    for places, value, message in (
            ((6, directory + 8), 1, 'encrypted'),
            ((8, directory + 10), 97, 'compression method'),
            ((directory + 16,), content[directory + 16] ^ 1, 'CRC'),
            ((90,), content[90] ^ 255, 'Error -3|CRC')):
        damaged = bytearray(content)
        for place in places:
            damaged[place] = value
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f'a.npz is not .*({message}).*; convert the video '):
            find_videos(tmp_path)['a'].clip(0, 6)
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match='a.npz is not a video of the published layout .*; convert '
                                        'the video again'):
        find_videos(tmp_path)


def test_damaged_frames_are_named(tmp_path, monkeypatch):
    folder = tmp_path / 'a'
    for t, size in ((1, 4), (2, 4), (3, 5)):
        write_image(folder / f'{t}.png', np.zeros((size, size, 3)))
    (folder / '._1.png').touch()  # as some systems add
    video = find_videos(tmp_path)['a']
    assert len(video) == 3 and video.clip(0, 2).shape == (2, 4, 4, 3)
    with pytest.raises(UserError, match='a/3.png and the frames before it have different sizes'):
        video.clip(0, 3)
    for mode in ('1', 'P', 'LA', 'I;16'):
        pixels = np.zeros((4, 4), np.uint16 if mode == 'I;16' else np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / '1.png')
        message = rf'a/1.png is not a readable image \(mode {mode}, expected'
        with pytest.raises(UserError, match=message):
            find_videos(tmp_path)
    with monkeypatch.context() as m:
        m.setattr(Image, 'MAX_IMAGE_PIXELS', 12)
        with pytest.raises(UserError, match='a/3.png is not a readable image .*decompression bomb'):
            video.clip(2, 1)
    (folder / '1.png').write_bytes(b'')
    with pytest.raises(UserError, match='a/1.png is not a readable image'):
        find_videos(tmp_path)
    shutil.rmtree(folder)
    (tmp_path / 'b.npy').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='b.npy cannot be read'):
        find_videos(tmp_path)


def test_a_single_training_video_is_too_few(kth, tmp_path):
    path = Path('processed_64', 'boxing', 'person01_boxing_d1.npy')
    link(kth / path, tmp_path / path)
    with pytest.raises(UserError, match='is the only training video; at least 2'):
        load_train(config('kth', tmp_path))


# Test sets

def test_draws_of_the_published_test_sets():
    draws = json.loads((GOLDEN / 'test_set_draws.json').read_text())
    kth, human = draws['kth'], draws['human']

    def length(c, person, trial):
        return 60 + (7 * c + 13 * person + 29 * trial) % 120
    found = kth_test_set.draw_clips(length, len(kth['picks']), 40, 42)
    assert [list(map(int, pick)) for pick in found] == kth['picks']
    found = human_test_set.draw_clips(human['lengths'], len(human['picks']), 417, 42)
    assert [list(map(int, pick)) for pick in found] == human['picks']


def test_kth_test_set(kth, tmp_path):
    with np.load(kth / 'svg_test_set_12.npz', allow_pickle=False) as f:
        sequences, persons, actions = f['sequences'], f['persons'], f['actions']
    assert sequences.shape == (6, 12, 64, 64) and persons.shape == (6,)
    videos = kth / 'processed_64'
    lengths = [len(np.load(videos / name / f'person21_{name}_d1.npy')) for name in CLASSES]
    clips = kth_test_set.draw_clips(lambda c, *_: lengths[c], 6, 12, 42)
    for i, (c, person, trial, t_0) in enumerate(clips):
        name = CLASSES[c]
        video = np.load(videos / name / f'person{person}_{name}_d{trial}.npy')
        np.testing.assert_array_equal(sequences[i], video[t_0:t_0 + 12])
        assert (persons[i], actions[i]) == (person, name)
    found = load_test(config('kth', kth), kth, 9).videos([4, 1])[..., 0]
    np.testing.assert_array_equal(found, sequences[[4, 1], :9].swapaxes(0, 1))
    with pytest.raises(UserError, match='svg_test_set_12.npz exists already; remove it'):
        kth_test_set.main(['--data_dir', str(kth), '--seq_len', '12'])
    with pytest.raises(UserError, match='of at least 13 frames; make it with: .* --seq_len 40'):
        load_test(config('kth', kth), kth, 13)
    for bad in (np.uint8(3), np.zeros((2, 12, 64), np.uint8)):
        np.savez(tmp_path / 'svg_test_set_12.npz', sequences=bad)
        with pytest.raises(UserError, match=r'sequences must be uint8 \(N, 12, 64, 64\), found .*; '
                                            'make it again'):
            load_test(config('kth', tmp_path), tmp_path, 12)


def test_human_test_set(human):
    names = sorted(path.name for path in (human / 'test').iterdir())
    assert names[0] == 'S11-Directions 1.54138969.npy'
    testset = load_test(config('human', human), human, 5)
    for i, (v, start) in enumerate(human_test_set.draw_clips([30] * 4, 4, 25, 42)):
        video = np.load(human / 'test' / names[v])
        with np.load(human / 'test_set_7_4' / f'test_{i}.npz', allow_pickle=False) as f:
            np.testing.assert_array_equal(f['image'], video[start:start + 25])
            assert f'S{f["subject"]}-{f["filename"]}' == names[v].replace('.npy', '.mp4')
            assert f['frame'] == start
            np.testing.assert_array_equal(testset.videos([i])[:, 0], f['image'][:20:4])
    with pytest.raises(UserError, match='exists already'):
        human_test_set.main(['--data_dir', str(human), '--seq_len', '7', '--subsampling', '4'])


def test_incomplete_human_test_set(human, tmp_path):
    shutil.copytree(human / 'test_set_7_4', tmp_path / 'test_set_7_4')
    (tmp_path / 'test_set_7_4' / 'test_1.npz').unlink()
    with pytest.raises(UserError, match='test_1.npz is missing; remove .*test_set_7_4 and make the '
                                        'test set again'):
        load_test(config('human', tmp_path), tmp_path, 5)
    shutil.copytree(human / 'test', tmp_path / 'test')
    other = tmp_path / 'test' / 'other.npy'
    shutil.copy(human / 'test' / 'S9-Directions.54138969.npy', other)
    argv = ['--data_dir', str(tmp_path), '--size', '2', '--seq_len', '6', '--subsampling', '4']
    with pytest.raises(UserError, match='other.npy is not called S<id>-<video>'):
        human_test_set.main(argv)
    other.unlink()
    (tmp_path / '.test_set_6_4.77.tmp').mkdir()  # left by a killed process
    human_test_set.main(argv)
    assert not list(tmp_path.glob('.*'))
    assert len(list((tmp_path / 'test_set_6_4').iterdir())) == 2


def test_missing_test_video_is_named(kth, tmp_path):
    shutil.copytree(kth / 'processed_64', tmp_path / 'processed_64', copy_function=os.link)
    for path in (tmp_path / 'processed_64' / 'jogging').glob('person25*'):
        path.unlink()
    argv = ['--data_dir', str(tmp_path), '--size', '200', '--seq_len', '12']
    with pytest.raises(UserError, match=r'processed_64/jogging has no person25_jogging_d\d'):
        kth_test_set.main(argv)


# Training and evaluation with the presets

SMALL = ['--nf', '2', '--nhx', '8', '--ny', '4', '--nz', '3', '--nh_inf', '8', '--nh_res', '8',
         '--batch_size', '3', '--batch_size_test', '2', '--n_iter_test', '1',
         '--n_samples_test', '2', '--n_workers', '1', '--seed', '1', *steps(3, 1)]


@pytest.mark.parametrize('dataset, options, nt_gen, clips, test_set', [
    ('kth', '--preset kth --seq_len 12 --seq_len_test 12', 11, 6, 'svg_test_set_12.npz'),
    ('human', '--preset human --subsampling 4 --seq_len 4 --seq_len_test 5 --nt_cond 3', 7, 4,
     'test_set_7_4'),
    ('bair', '--preset bair --seq_len 4 --seq_len_test 6', 30, 3, 'processed_data/test'),
    ('folder', '--preset folder --nt_inf 2 --nt_cond 3 --seq_len 6 --seq_len_test 8',
     10, 1, 'test')])
def test_presets_train_and_evaluate(dataset, options, nt_gen, clips, test_set, request, tmp_path,
                                    capsys):
    data_dir = request.getfixturevalue(dataset)
    xp_dir = tmp_path / 'run'
    assert train.main([*options.split(), *SMALL, '--data_dir', str(data_dir),
                       '--save_path', str(xp_dir)]) == 0
    evaluate(['--xp_dir', str(xp_dir), '--data_dir', str(data_dir), '--nt_gen', str(nt_gen),
              '--n_samples', '2', '--n_pictures', '1', '--metrics', 'psnr', 'ssim'])
    protocol = json.loads((xp_dir / 'results.json').read_text())['protocol']
    assert protocol['dataset'] == dataset and protocol['clips'] == clips
    assert protocol['test_set'] == Path(test_set).name
    assert f'\ntest set: {data_dir}/{test_set}\n' in capsys.readouterr().out
    with np.load(xp_dir / 'psnr_best.npz') as f:
        samples = f['samples']
    assert samples.shape[0] == clips and samples.shape[-1] == (1 if dataset == 'kth' else 3)
    assert Image.open(xp_dir / 'pictures' / 'video_0000.png').width > 600


def at_32(dataset, request, folder):
    """Options of training on a dataset converted to 32 x 32 below `folder`, its data folder."""
    size = ['--image_size', '32']
    if dataset == 'folder':
        own, out = request.getfixturevalue('own'), folder / 'out'
        folder_convert.main(['--data_dir', str(own), '--out_dir', str(out), *size])
        return out, '--dataset folder --nc 3 --nt_inf 2 --nt_cond 3 --seq_len 6'
    source = request.getfixturevalue(dataset)
    if dataset == 'kth':
        shutil.copytree(source / 'raw', folder / 'raw', copy_function=os.link)
        kth_convert.main(['--data_dir', str(folder), *size])
        for name, trial in itertools.product(CLASSES, range(1, 5)):
            first = folder / 'processed_32' / name / f'person01_{name}_d1.npy'
            for person in range(21, 26):
                link(first, first.with_name(f'person{person}_{name}_d{trial}.npy'))
        kth_test_set.main(['--data_dir', str(folder), '--size', '2', '--seq_len', '12', *size])
        return folder, '--preset kth --seq_len 12 --seq_len_test 12'
    for subject in SUBJECTS:
        shutil.copytree(source / f'S{subject}', folder / f'S{subject}', copy_function=os.link)
    human_convert.main(['--data_dir', str(folder), *size])
    human_test_set.main(['--data_dir', str(folder), '--size', '2', '--seq_len', '7',
                         '--subsampling', '4'])
    return folder, '--preset human --subsampling 4 --seq_len 4 --seq_len_test 5 --nt_cond 3'


@pytest.mark.parametrize('dataset, nt_gen, clip, test_set', [
    ('kth', 11, 'walking/person01_walking_d1', 'svg_test_set_12_32.npz'),
    ('human', 5, 'train/S1-Directions.54138969', 'test_set_7_4'),
    ('folder', 8, 'train/clip0.mp4', 'test')])
def test_converted_size_is_that_of_everything(dataset, nt_gen, clip, test_set, request, tmp_path,
                                              call):
    """Without --nx; then folders of 64 x 64, where a model of 32 x 32 names what it needs."""
    data_dir, options = at_32(dataset, request, tmp_path)
    xp_dir, other = tmp_path / 'run', request.getfixturevalue(dataset)
    argv = [*options.split(), *SMALL, '--save_path', str(xp_dir)]
    assert train.main([*argv, '--data_dir', str(data_dir)]) == 0
    assert json.loads((xp_dir / 'config.json').read_text())['nx'] == 32
    common = ['--xp_dir', str(xp_dir), '--nt_gen', str(nt_gen)]
    evaluate([*common, '--data_dir', str(data_dir), '--n_samples', '2', '--metrics', 'psnr'])
    protocol = json.loads((xp_dir / 'results.json').read_text())['protocol']
    assert (protocol['size'], protocol['test_set']) == (32, test_set)
    clip = next(path.relative_to(data_dir / ('processed_32' if dataset == 'kth' else ''))
                for path in data_dir.rglob(f'{Path(clip).name}.npy')).as_posix()
    small = ['--n_iterations', '1', '--n_damages', '1']
    damage.main([*common, '--data_dir', str(data_dir), '--video', clip, *small])
    visualize.main(['samples', *common, '--data_dir', str(data_dir), '--index', '0', '--out',
                    str(tmp_path / 'a.png')])
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.width > nt_gen * pictures.SIDE

    command = f'preprocessing/{dataset}/convert.py --data_dir .* --image_size 32'
    missing = {'kth': 'processed_32', 'human': 'has frames 64x64x3, but 32x32',
               'folder': 'has frames 64x64x3, but 32x32'}[dataset]
    scripts = [(train.main, [*argv[:-1], str(tmp_path / 'new'), '--nx', '32']),
               (damage.main, [*common, '--video', clip, *small, '--out_dir', str(tmp_path / 'd')])]
    for main, arguments in scripts:
        code, _, err = call(main, *arguments, '--data_dir', other)
        assert code == 2 and re.search(f'{other}.*{missing}.*{command}', err), err
    code, _, err = call(evaluate, *common, '--data_dir', other, '--out_dir', tmp_path / 'e')
    if dataset == 'kth':
        command = 'preprocessing/kth/make_test_set.py .* --image_size 32'
    assert code == 2 and re.search(command, err), err


@pytest.mark.parametrize('sizes, expected', [
    ([], 64), ([128], 128), ([48, 256], 256), ([48], 'processed_48 has frames of 48 pixels, but'),
    ([128, 64], 'has processed_64 and processed_128; choose a size with --nx')])
def test_size_of_kth(sizes, expected, tmp_path):
    for size in sizes:
        (tmp_path / f'processed_{size}').mkdir()
    argv = ['--preset', 'kth', '--data_dir', str(tmp_path), '--save_path', 's']
    if isinstance(expected, int):
        assert parse_train(argv).nx == expected
    else:
        with pytest.raises(UserError, match=expected):
            parse_train(argv)
    assert parse_train([*argv, '--nx', '32']).nx == 32


@pytest.mark.parametrize('size', [256, 100])
def test_size_of_the_first_training_video(size, tmp_path):
    (tmp_path / 'train').mkdir()
    np.save(tmp_path / 'train' / 'a.npy', np.zeros((2, size, size, 3), np.uint8))
    assert find_size('human', tmp_path, [size]) == size
    assert find_size('bair', tmp_path, [size]) == find_size('human', None, [size]) == 64
    message = (f'a.npy has frames of {size} pixels, but models have 32 or 64; remove it and '
               'convert again, .* --image_size 64')
    with pytest.raises(UserError, match=message):
        find_size('folder', tmp_path, [32, 64])


def evaluate(argv):
    """Run test.py, the name of which is also that of a package of Python."""
    spec = importlib.util.spec_from_file_location('srvp_test', ROOT / 'test.py')
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(argv)
