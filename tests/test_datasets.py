"""KTH, Human3.6M, BAIR and folders of videos: from files that ffmpeg and TensorFlow write to training and evaluation."""

import fcntl
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

import train
from conftest import GOLDEN, ROOT, steps
from data import load_test, load_train
from data.clips import Clips, get_fold
from data.kth import CLASSES
from data.stream import BatchStream
from data.video import ArrayVideo, NpzVideo, PngVideo, find_video, find_videos
from files import UserError, exclusive, replacing_folder
from preprocessing.convert import Job, Unreadable, decode, find_ffmpeg
from preprocessing.folder import convert as folder_convert
from preprocessing.human import convert as human_convert, make_test_set as human_test_set
from preprocessing.kth import convert as kth_convert, make_test_set as kth_test_set
from test_evaluation import evaluation
from utils import stream_rng


def encode(path, size, rate, seconds, *options, source='testsrc2'):
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([find_ffmpeg(), '-v', 'error', '-y', '-f', 'lavfi', '-i', f'{source}=size={size}:rate={rate}:duration={seconds}',
                    *options, str(path)], check=True)


def run(script, *argv):
    """A script as published: by its path."""
    return subprocess.run([sys.executable, *script.split(), *map(str, argv)], cwd=ROOT, capture_output=True, text=True)


def config(dataset, data_dir, **changes):
    nc = 1 if dataset == 'kth' else 3
    return SimpleNamespace(**{**dict(dataset=dataset, data_dir=data_dir, nx=64, nc=nc, seq_len=6, seq_len_test=8, subsampling=8), **changes})


# Small real files

@pytest.fixture(scope='session')
def kth(tmp_path_factory):
    """KTH in its folders and names: persons 1, 2 and 21 to 25, one video missing; converted, with a test set."""
    folder = tmp_path_factory.mktemp('kth')
    for c, name in enumerate(CLASSES):
        (folder / 'raw' / name).mkdir(parents=True)
        first = folder / 'raw' / name / f'person01_{name}_d1_uncomp.avi'
        encode(first, '160x120', 25, 1.2 + 0.1 * c, '-c:v', 'mpeg4', source='testsrc' if c % 2 else 'testsrc2')
        for person in (1, 2, *range(21, 26)):
            for trial in range(1, 5):
                path = first.with_name(f'person{person:02d}_{name}_d{trial}_uncomp.avi')
                if path != first:
                    os.link(first, path)
    shutil.move(folder / 'raw' / 'handclapping' / 'person02_handclapping_d3_uncomp.avi', folder / 'missing.avi')
    assert kth_convert.main(['--data_dir', str(folder)]) == 0
    kth_test_set.main(['--data_dir', str(folder), '--size', '6', '--seq_len', '12'])
    return folder


@pytest.fixture(scope='session')
def human(tmp_path_factory):
    folder = tmp_path_factory.mktemp('human')
    first = folder / 'S1' / 'Videos' / 'Directions 1.54138969.mp4'
    encode(first, '1000x1000', 50, 1.2, '-pix_fmt', 'yuv420p')
    for subject in (1, 5, 6, 7, 8, 9, 11):
        for name in ('Directions 1.54138969.mp4', 'Directions.54138969.mp4', '_ALL.54138969.mp4'):
            path = folder / f'S{subject}' / 'Videos' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path != first:
                os.link(first, path)
    assert human_convert.main(['--data_dir', str(folder)]) == 0
    human_test_set.main(['--data_dir', str(folder), '--size', '4', '--seq_len', '7', '--subsampling', '8'])
    return folder


@pytest.fixture(scope='session')
def bair(tmp_path_factory):
    """Record files of BAIR's features, written by TensorFlow in a process of its own, converted in both layouts."""
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('TensorFlow is not installed')
    folder = tmp_path_factory.mktemp('bair')
    program = '''
import sys, numpy as np, tensorflow as tf
from pathlib import Path
rng = np.random.RandomState(0)
for fold, files, n in (('train', 2, 10), ('test', 1, 3)):
    out = Path(sys.argv[1]) / 'softmotion30_44k' / fold
    out.mkdir(parents=True)
    for k in range(files):
        with tf.io.TFRecordWriter(str(out / f'traj_{k * 256}_to_{k * 256 + 255}.tfrecords')) as writer:
            for _ in range(n):
                video = rng.randint(0, 256, (30, 64, 64, 3)).astype(np.uint8)
                feature = {f'{i}/image_aux1/encoded': tf.train.Feature(bytes_list=tf.train.BytesList(value=[video[i].tobytes()])) for i in range(30)}
                feature['0/action'] = tf.train.Feature(float_list=tf.train.FloatList(value=[0., 1.]))
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
'''
    subprocess.run([sys.executable, '-c', program, str(folder)], check=True, env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'})
    done = run('preprocessing/bair/convert.py', '--data_dir', folder)
    assert done.returncode == 0, done.stderr
    assert '3 record files converted (690 frames), 0 already there, 0 unreadable' in done.stdout
    return folder


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """Ten videos of a user's own: files of several kinds and sizes, and folders of pictures."""
    source, target = tmp_path_factory.mktemp('own'), tmp_path_factory.mktemp('converted')
    for i in range(4):
        encode(source / f'clip{i}.mp4', '96x72', 25, 0.8)
        encode(source / 'more' / f'clip{i}.avi', '72x96', 25, 0.8, '-c:v', 'mpeg4')
    for k in range(2):
        (source / f'frames{k}').mkdir()
        for t in range(12):
            Image.fromarray(np.full((80, 80, 3), 10 * t, np.uint8)).save(source / f'frames{k}' / f'f{t}.png')
    assert folder_convert.main(['--data_dir', str(source), '--out_dir', str(target)]) == 0
    target.joinpath('source').write_text(str(source))
    return target


# Conversion

@pytest.mark.parametrize('rate', [25, 50])
def test_kth_frames_are_those_of_ffmpeg_itself(rate, tmp_path):
    """As published: ffmpeg writes PNG frames at 25 frames a second, 64 x 64; the loader keeps channel 0."""
    source = tmp_path / 'source.avi'
    encode(source, '160x120', rate, 1, '-c:v', 'mpeg4')
    subprocess.run([find_ffmpeg(), '-v', 'error', '-i', str(source), '-r', '25', '-f', 'image2', '-s', '64x64', str(tmp_path / 'image-%03d.png')],
                   check=True)
    expected = np.stack([np.asarray(Image.open(p).convert('RGB')) for p in sorted(tmp_path.glob('*.png'))])
    assert 25 <= len(expected) <= 27
    frames, note = kth_convert.read(source, 64, 25)
    np.testing.assert_array_equal(frames, expected)
    assert not note
    kth_convert.write(tmp_path / 'source.npy', frames)
    np.testing.assert_array_equal(np.load(tmp_path / 'source.npy'), expected[..., 0])


def test_human_frames_are_cut_then_resized(human):
    frames, _ = decode(human / 'S1' / 'Videos' / 'Directions.54138969.mp4')
    expected = np.asarray(Image.fromarray(frames[7]).crop((100, 100, 900, 900)).resize((64, 64), Image.Resampling.LANCZOS))
    converted = np.load(human / 'train' / 'S1-Directions.54138969.npy')
    assert converted.shape == (60, 64, 64, 3)
    np.testing.assert_array_equal(converted[7], expected)
    assert {p.name for p in (human / 'test').iterdir()} == {f'S{s}-Directions{n}.54138969.npy' for s in (9, 11) for n in ('', ' 1')}


def test_bair_frames_are_those_of_the_records(bair):
    rng = np.random.RandomState(0)
    for k in (0, 1):
        for i in range(10):
            video = rng.randint(0, 256, (30, 64, 64, 3)).astype(np.uint8)
            np.testing.assert_array_equal(np.load(bair / 'processed_data' / 'train' / f'traj_{k * 256}_to_{k * 256 + 255}' / f'{i + 1:03d}.npy'), video)


def test_data_and_preprocessing_import_no_framework():
    scripts = [f'{name}.convert' for name in ('kth', 'human', 'bair', 'folder')] + [f'{name}.make_test_set' for name in ('kth', 'human', 'mmnist')]
    modules = ', '.join(['data', *(f'preprocessing.{script}' for script in scripts)])
    program = f'import sys, {modules}; found = {{"torch", "tensorflow"}} & set(sys.modules); assert not found, found'
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True)


def test_folder_is_cut_to_a_square_and_split(folder):
    names = {fold: {p.name for p in (folder / fold).iterdir()} for fold in ('train', 'val', 'test')}
    assert [len(names[f]) for f in ('train', 'val', 'test')] == [8, 1, 1]
    everything = set().union(*names.values())
    assert everything == {f'clip{i}.mp4.npy' for i in range(4)} | {f'more-clip{i}.avi.npy' for i in range(4)} | {'frames0.npy', 'frames1.npy'}
    frames = np.load(next(folder.glob('*/frames0.npy')))
    assert frames.shape == (12, 64, 64, 3) and [f.mean() for f in frames] == [10 * t for t in range(12)]  # f10 follows f9
    source = folder.joinpath('source').read_text()
    raw, _ = decode(f'{source}/clip1.mp4')
    expected = np.asarray(Image.fromarray(raw[3]).crop((12, 0, 84, 72)).resize((64, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(np.load(next(folder.glob('*/clip1.mp4.npy')))[3], expected)


def test_split_is_seeded_and_stays_when_videos_come_and_go():
    names = [f'v{i}' for i in range(40)]
    folds = folder_convert.split(names, 0.05, 0.1, 42, {})
    assert sorted(folds.values()) == ['test'] * 4 + ['train'] * 34 + ['val'] * 2
    assert folds == folder_convert.split(names, 0.05, 0.1, 42, {}) != folder_convert.split(names, 0.05, 0.1, 43, {})
    more = folder_convert.split(names[5:] + [f'w{i}' for i in range(45)], 0.05, 0.1, 42, folds)
    assert all(more[name] == folds[name] for name in names[5:])
    assert sorted(more.values()) == ['test'] * 8 + ['train'] * 68 + ['val'] * 4
    assert sorted(folder_convert.split(names[:3], 0, 0, 1, {}).values()) == ['test', 'train', 'val']


def test_conversion_of_a_growing_folder(folder, tmp_path, capsys):
    source, out = tmp_path / 'in', tmp_path / 'out'
    shutil.copytree(folder.joinpath('source').read_text(), source)
    broken = source / 'broken.mp4'
    broken.write_bytes(b'no video')
    assert folder_convert.main(['--data_dir', str(source), '--out_dir', str(out), '--val', '0.2']) == 1
    before = {p: p.stat().st_mtime_ns for p in out.glob('*/*.npy')}
    shutil.copy(source / 'clip0.mp4', broken)
    shutil.copy(source / 'clip0.mp4', source / 'another.mp4')
    capsys.readouterr()
    assert folder_convert.main(['--data_dir', str(source), '--out_dir', str(out), '--val', '0.2']) == 0
    assert '2 videos converted (40 frames), 10 already there' in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(UserError, match=r'was converted with --gray False, found True; give the same, or remove'):
        folder_convert.main(['--data_dir', str(source), '--out_dir', str(out), '--gray'])


def test_split_is_made_by_one_conversion_at_a_time_and_checked(tmp_path, monkeypatch):
    source, out = tmp_path / 'in', tmp_path / 'out'
    for name in 'abc':
        for t in (0, 1):
            (source / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source / name / f'{t}.png')

    def convert():
        return folder_convert.main(['--data_dir', str(source), '--out_dir', str(out), '--image_size', '8'])
    out.mkdir()
    with monkeypatch.context() as m, exclusive(out / ".conversion.lock", ""):
        m.setattr(folder_convert, 'split', None)
        with pytest.raises(UserError, match='another conversion to .*out is running'):
            convert()
    assert not list(out.iterdir()) and convert() == 0
    before = json.loads((out / 'split.json').read_text())
    for name, text, message in (('split.json', json.dumps({**before, 'a': '../../mine'}), "assigns a to '../../mine', expected one of train, val, test; rest"),
                                ('split.json', json.dumps({**before, 'b': ['train']}), 'assigns b to'), ('split.json', '{', 'readable as JSON .*; restore it'),
                                ('conversion.json', '[]', 'found list; remove it, and the converted videos too unless')):
        (out / name).write_text(text)
        with pytest.raises(UserError, match=f'{name} .*{message}'):
            convert()
        assert (out / name).read_text() == text
        (out / name).write_text(json.dumps(before) if name == 'split.json' else '{}')
    assert not list(tmp_path.rglob('mine*')) and len(list(out.glob('*/*.npy'))) == 3


def test_fold_without_a_readable_video_is_named(tmp_path):
    for i in range(3):
        (tmp_path / 'in').mkdir(exist_ok=True)
        (tmp_path / 'in' / f'{i}.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match='out/train has no video; mend those that are unreadable'):
        folder_convert.main(['--data_dir', str(tmp_path / 'in'), '--out_dir', str(tmp_path / 'out')])


def test_what_counts_as_a_video_of_a_folder(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / 'in' / name).touch()
    touch('a.MP4', 'notes.txt', 'top.png', 'top2.png', '.hidden/b.mp4', '.c.mp4', 'frames/0.png', 'frames/1.png', 'one/0.png',
          'with cover/d.mkv', 'with cover/0.png', 'with cover/1.png')
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'e.avi').touch()
    (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'circle').symlink_to(tmp_path / 'in')
    found = folder_convert.find_sources(tmp_path / 'in')
    assert [str(p.relative_to(tmp_path / 'in')) for p in found] == ['a.MP4', 'frames', 'link/e.avi', 'with cover/d.mkv']
    long = tmp_path / ('x' * 150) / ('y' * 100 + '.mp4')
    assert len(folder_convert.get_name(long, tmp_path)) < 200 and folder_convert.get_name(tmp_path / 'a' / 'b.mp4', tmp_path) == 'a-b.mp4'


def test_pictures_of_16_bits_and_damaged_ones(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 1024, (64, 1))
    for t in range(2):
        Image.fromarray(ramp).save(tmp_path / f'{t}.png')
    frames, _ = folder_convert.read(tmp_path, 64, False)
    assert frames[0, 0, :, 0].tolist() == list(range(0, 256, 4))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / '2.tif')
    job = Job(tmp_path, tmp_path / 'out.npy', lambda source: folder_convert.read(source, 64, False), None)
    assert job() == (None, '2.tif: pictures of floating-point numbers have no range')


def test_any_error_of_a_source_is_a_note(tmp_path):
    def read(source):
        raise SyntaxError('broken PNG file')
    assert Job(tmp_path, tmp_path, read, None)() == (None, 'SyntaxError: broken PNG file')


def test_frames_of_10_bits_and_at_changing_rates(tmp_path, monkeypatch):
    encode(tmp_path / 'ten.mkv', '64x48', 25, 0.4, '-c:v', 'ffv1', '-pix_fmt', 'yuv444p10le')
    encode(tmp_path / 'eight.mkv', '64x48', 25, 0.4, '-c:v', 'ffv1', '-pix_fmt', 'yuv444p')
    ten, eight = (decode(tmp_path / name)[0].astype(int) for name in ('ten.mkv', 'eight.mkv'))
    assert ten.shape == eight.shape == (10, 48, 64, 3) and abs(ten - eight).mean() < 2
    encode(tmp_path / 'rate.mkv', '64x48', 25, 1, '-vf', "setpts='if(gt(N,12),10*PTS,PTS)'", '-fps_mode', 'vfr', '-c:v', 'ffv1')
    assert len(decode(tmp_path / 'rate.mkv')[0]) == 25
    with pytest.raises(Unreadable, match='it has more than 24 frames'):
        decode(tmp_path / 'rate.mkv', most=24)
    os.rename(tmp_path / 'ten.mkv', tmp_path / '12:30.mkv')
    monkeypatch.chdir(tmp_path)
    assert len(decode('12:30.mkv')[0]) == 10


def test_gray_folder(folder, tmp_path):
    assert folder_convert.main(['--data_dir', folder.joinpath('source').read_text(), '--out_dir', str(tmp_path), '--gray', '--image_size', '32']) == 0
    assert np.load(next(tmp_path.glob('*/clip0.mp4.npy'))).shape == (20, 32, 32)


def test_converters_skip_what_is_done_and_go_on_after_a_bad_file(kth, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / 'raw' / name).mkdir(parents=True)
        shutil.copy(kth / 'raw' / name / f'person01_{name}_d1_uncomp.avi', tmp_path / 'raw' / name)
    bad = tmp_path / 'raw' / 'jogging' / 'person02_jogging_d1_uncomp.avi'
    bad.write_bytes(b'RIFF nothing more')
    cut = tmp_path / 'raw' / 'walking' / 'person02_walking_d1_uncomp.avi'
    cut.write_bytes((tmp_path / 'raw' / 'walking' / 'person01_walking_d1_uncomp.avi').read_bytes()[:20000])
    target = tmp_path / 'processed_64' / 'boxing'
    target.mkdir(parents=True)
    (target / '.person01_boxing_d1.npy.77.tmp').write_bytes(b'half')
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert 'converting' in err and '7 videos converted' in out and '0 already there, 1 unreadable' in out
    assert f'unreadable: {bad} (' in out
    assert not list(target.glob('.*'))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npy')}
    assert len(before) == 7
    bad.unlink()
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 0
    assert capsys.readouterr() == ('0 videos converted (0 frames), 7 already there, 0 unreadable\n', '')  # no empty bar
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.npy')} == before


def test_folder_is_seen_whole_or_not_at_all(tmp_path):
    stale = tmp_path / f'.a.{os.getpid()}.tmp'  # of a killed run with the same number
    stale.mkdir()
    (stale / 'old').touch()
    with pytest.raises(ValueError), replacing_folder(tmp_path / 'a') as tmp:
        (tmp / '1').touch()
        raise ValueError
    assert not list(tmp_path.iterdir())
    with replacing_folder(tmp_path / 'a') as tmp:
        (tmp / '1').touch()
        assert not (tmp_path / 'a').exists()
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob('*')] == [Path('a'), Path('a/1')]


def test_killed_conversion_leaves_no_half_video(human, tmp_path):
    for subject in (1, 5, 6, 7, 8, 9, 11):
        shutil.copytree(human / f'S{subject}', tmp_path / f'S{subject}', copy_function=os.link)
    script = tmp_path / 'killed.py'
    script.write_text(f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
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
convert.main(['--data_dir', {str(tmp_path)!r}])
""")
    assert run(str(script)).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob('t*/*.npy'))) == 3 and [p.read_bytes() for p in tmp_path.glob('t*/.*.tmp')] == [b'half a video']
    done = run('preprocessing/human/convert.py', '--data_dir', tmp_path)
    assert done.returncode == 0 and '11 videos converted' in done.stdout and '3 already there' in done.stdout and not list(tmp_path.glob('t*/.*'))
    for path in human.glob('t*/*.npy'):
        np.testing.assert_array_equal(np.load(tmp_path / path.relative_to(human)), np.load(path))


def test_conversions_to_one_folder_wait_for_each_other(kth, tmp_path):
    shutil.copytree(kth / 'raw', tmp_path / 'raw', copy_function=os.link)
    (tmp_path / 'processed_64').mkdir()
    handle = os.open(tmp_path / 'processed_64', os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='another conversion to .*processed_64 is running'):
        kth_convert.main(['--data_dir', str(tmp_path)])
    os.close(handle)
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 0
    with pytest.raises(UserError, match='was converted with --frame_rate 25, found 10'):
        kth_convert.main(['--data_dir', str(tmp_path), '--frame_rate', '10'])
    first = tmp_path / 'raw' / 'boxing' / 'person01_boxing_d1_uncomp.avi'
    os.link(first, first.with_name('person01_boxing_d1.avi'))
    with pytest.raises(UserError, match='person01_boxing_d1.avi and .*person01_boxing_d1_uncomp.avi would both be converted to .*person01_boxing_d1.npy'):
        kth_convert.main(['--data_dir', str(tmp_path)])


def test_workers_end_with_the_process_that_started_them(tmp_path):
    code = ('import multiprocessing, time\nfrom preprocessing.convert import follow_parent\n'
            'def work(path):\n    follow_parent()\n    open(path, "w").close()\n    time.sleep(60)\n'
            f'if __name__ == "__main__":\n    p = multiprocessing.get_context("spawn").Process(target=work, args=("{tmp_path}/up",))\n'
            '    p.start()\n    print(p.pid, flush=True)\n    p.join()\n')
    (tmp_path / 'main.py').write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / 'main.py'], env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE)
    worker = int(process.stdout.readline())
    wait_until((tmp_path / 'up').exists)
    process.kill()
    process.wait()
    wait_until(lambda: not alive(worker))


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_until(condition):
    deadline = time.time() + 30
    while not condition():
        assert time.time() < deadline
        time.sleep(0.05)


def test_damaged_record_file(bair, tmp_path):
    for fold in ('train', 'test'):
        shutil.copytree(bair / 'softmotion30_44k' / fold, tmp_path / 'softmotion30_44k' / fold)
    path = next((tmp_path / 'softmotion30_44k' / 'train').iterdir())
    path.write_bytes(path.read_bytes()[:-1000])
    foreign = path.with_name('foreign.tfrecords')
    subprocess.run([sys.executable, '-c', f'import tensorflow as tf\nwith tf.io.TFRecordWriter("{foreign}") as w: w.write(b"garbage" * 9)'], check=True)
    done = run('preprocessing/bair/convert.py', '--data_dir', tmp_path)
    assert done.returncode == 1 and f'unreadable: {path} (' in done.stdout and '2 record files converted' in done.stdout
    assert f'unreadable: {foreign} (DecodeError' in done.stdout
    assert not (tmp_path / 'processed_data' / 'train' / path.stem).exists()
    done = run('preprocessing/bair/convert.py', '--data_dir', tmp_path, '--layout', 'published')
    assert done.returncode == 2 and 'was converted with --layout array, found published' in done.stderr


@pytest.mark.parametrize('script, message', [
    ('kth', 'bash preprocessing/kth/download.sh'), ('human', 'register at'), ('bair', 'bash preprocessing/bair/download.sh')])
def test_converters_say_what_is_missing(script, message, tmp_path):
    done = run(f'preprocessing/{script}/convert.py', '--data_dir', tmp_path)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1


# Layouts

@pytest.mark.parametrize('dataset', ['kth', 'human', 'bair'])
def test_both_layouts_give_identical_clips(dataset, request, tmp_path):
    source = request.getfixturevalue(dataset)
    raw = {'kth': ['raw'], 'human': [f'S{s}' for s in (1, 5, 6, 7, 8, 9, 11)], 'bair': ['softmotion30_44k']}[dataset]
    for name in raw:
        (tmp_path / name).symlink_to(source / name)
    done = run(f'preprocessing/{dataset}/convert.py', '--data_dir', tmp_path, '--layout', 'published')
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob('processed*/**/*.npy')) and not list(tmp_path.glob('t*/*.npy'))
    for ours, published in zip(load_train(config(dataset, source)), load_train(config(dataset, tmp_path))):
        assert [len(v) for v in ours.videos] == [len(v) for v in published.videos] and type(ours.videos[0]) is not type(published.videos[0])
        batches = [BatchStream(s, 1, 'train', 6)[range(15, 20)] for s in (ours, published)]
        np.testing.assert_array_equal(*batches)
    if dataset == 'kth':
        folder = tmp_path / 'processed_64' / 'boxing' / 'person01_boxing_d1'
        assert sorted(p.name for p in folder.iterdir())[0] == 'image-001.png'
        assert np.asarray(Image.open(folder / 'image-001.png')).shape == (64, 64, 3)
    if dataset == 'human':
        with np.load(tmp_path / 'test' / 'S9-Directions.54138969.npz', allow_pickle=False) as f:
            assert (str(f['filename']), int(f['subject'])) == ('Directions.54138969.mp4', 9)


def test_frames_are_ordered_by_number(tmp_path):
    folder = tmp_path / 'person01_boxing_d1'
    folder.mkdir()
    for t in range(1, 1003):
        Image.fromarray(np.full((2, 2, 3), (t % 256, t // 256, 0), np.uint8)).save(folder / f'image-{t:03d}.png')
    video = find_videos(tmp_path)['person01_boxing_d1']
    found = video.clip(990, 12).astype(int)[:, 0, 0]
    assert (found[:, 0] + 256 * found[:, 1]).tolist() == list(range(991, 1003))


def test_memory_map_is_the_array(tmp_path):
    array = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.save(tmp_path / 'a.npy', array)
    np.savez(tmp_path / 'b.npz', image=array)
    np.savez_compressed(tmp_path / 'c.npz', image=array)
    for video in find_videos(tmp_path).values():
        assert len(video) == 20
        np.testing.assert_array_equal(video.clip(3, 5, 3), array[3:16:3])


@pytest.mark.parametrize('order', [*itertools.permutations(['a', 'a.npy', 'a.npz'])], ids='-'.join)
def test_one_order_of_layouts(order, tmp_path, monkeypatch):
    """Of a video in several layouts, the array is taken, then the folder of frames, however a system lists them."""
    (tmp_path / 'a').mkdir()
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    Image.fromarray(frames[0]).save(tmp_path / 'a' / '1.png')
    np.save(tmp_path / 'a.npy', frames)
    np.savez(tmp_path / 'a.npz', image=frames)
    (tmp_path / 'notes').touch()
    iterdir = Path.iterdir
    monkeypatch.setattr(Path, 'iterdir', lambda self: sorted(iterdir(self), key=lambda p: (*order, p.name).index(p.name)))
    for layout, remove in ((ArrayVideo, os.remove), (PngVideo, shutil.rmtree), (NpzVideo, os.remove)):
        found = find_videos(tmp_path)
        assert found.keys() == {'a'} and type(found['a']) is type(find_video(tmp_path, 'a')) is layout
        remove(found['a'].path)
    assert not find_videos(tmp_path) and find_video(tmp_path, 'a') is None and find_video(tmp_path, 'notes') is None


# Random clips

def test_clips_are_random_videos_and_starts():
    class Numbered:
        path, frame_shape = 'numbered', [4, 4]

        def __init__(self, k, n):
            self.k, self.n = k, n

        def __len__(self):
            return self.n

        def clip(self, start, n, step=1):
            assert 0 <= start and start + (n - 1) * step < self.n
            return np.broadcast_to(np.array([[self.k, start + i * step, 0, 0] for i in range(n)], np.uint8)[:, :, None, None], (n, 4, 4, 1))
    source = Clips([Numbered(k, 9 + k) for k in range(3)], 4, 1, 3, subsampling=2)
    batch = BatchStream(source, 0, 'train', 3)[range(600)][:, :, :2, 0, 0]
    videos, frames = batch[0, :, 0], batch[:, :, 1].astype(int)
    assert (np.diff(frames, axis=0) == 2).all()
    for k in range(3):
        starts, counts = np.unique(frames[0, videos == k], return_counts=True)
        assert starts.tolist() == list(range(5 + k)) and counts.min() > 15  # each start that fits, about as often


def test_clips_are_those_of_videos_long_enough(tmp_path, capfd, monkeypatch):
    """Folds are those of all videos; short ones are never drawn, which is as if each had been drawn again."""
    lengths = {f'{i:03d}': 5 + i % 3 for i in range(40)}  # 5, 6 and 7 frames
    (tmp_path / 'processed_data' / 'train' / 'record').mkdir(parents=True)
    for i, (name, n) in enumerate(lengths.items()):
        np.save(tmp_path / 'processed_data' / 'train' / 'record' / f'{name}.npy', np.full((n, 64, 64, 3), i, np.uint8))

    def drawn(seq_len):
        """Numbers of the videos of both folds, and of those that are drawn, in the order of the draws."""
        sources = load_train(config('bair', tmp_path, seq_len=seq_len, seq_len_test=7))
        clips = BatchStream(sources[0], 0, 'train', seq_len)[range(1000)][0, :, 0, 0, 0]
        return [[int(v.path.stem) for v in s.videos] for s in sources], clips
    fold, fold_val = (get_fold(40, train).tolist() for train in (True, False))
    (train_videos, val_videos), clips = drawn(5)
    long_val = [i for i in fold_val if i % 3 == 2]
    assert train_videos == fold and val_videos == long_val and 0 < len(long_val) < len(fold_val)
    err = capfd.readouterr().err
    assert err.startswith('note: 1 of 2 videos have fewer than the 7 frames of a clip: ') and err.count('\n') == 1
    rngs = [stream_rng(0, 'train', i) for i in range(1000)]
    assert clips.tolist() == [fold[rng.randint(len(fold))] for rng in rngs]  # where none is short, nothing is left out
    (train_videos, _), clips = drawn(6)
    n_short = sum(i % 3 == 0 for i in fold)
    assert train_videos == [i for i in fold if i % 3] and set(clips) == set(train_videos)
    shown = ', '.join(f'{tmp_path}/processed_data/train/record/{i:03d}.npy (5)' for i in fold if i % 3 == 0)
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 2 and err[0].startswith(f'note: {n_short} of 38 videos have fewer than the 6 frames of a clip: {shown[:100]}')
    assert err[0].count('.npy') == 3 and err[0].endswith(' …; no clips are drawn from these')
    with pytest.raises(UserError, match=r'^38 of 38 videos .* 8 frames of a clip: .*; ask for shorter clips \(--seq_len, --seq_len_test\), or add longer'):
        drawn(8)
    monkeypatch.setenv('RANK', '1')  # another process of a job
    drawn(5)
    assert not capfd.readouterr().err
    np.save(tmp_path / 'processed_data' / 'train' / 'record' / '000.npy', np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match='000.npy has frames 32x32x3'):  # of short ones too
        drawn(6)


def test_short_videos_of_a_test_set_are_all_counted(tmp_path):
    (tmp_path / 'test').mkdir()
    for i in range(6):
        np.save(tmp_path / 'test' / f'{i}.npy', np.zeros((6 + i, 64, 64, 3), np.uint8))
    assert len(load_test(config('folder', tmp_path), tmp_path, 6)) == 6
    for nt, names, more in ((8, ['0.npy (6)', '1.npy (7)'], ''), (10, ['0.npy (6)', '1.npy (7)', '2.npy (8)'], ' …')):
        names = ', '.join(f'{tmp_path}/test/{name}' for name in names)
        with pytest.raises(UserError, match=re.escape(f'{nt - 6} of 6 videos have fewer than the {nt} frames of a clip: {names}{more}; remove them, or')):
            load_test(config('folder', tmp_path), tmp_path, nt)


def test_wrong_videos_are_named_at_the_start(folder, tmp_path):
    with pytest.raises(UserError, match=r'8 of 8 videos have fewer than the 21 frames of a clip: .*/train/.*npy \(\d\d\), .* …; ask for shorter'):
        load_train(config('folder', folder, seq_len=21))
    with pytest.raises(UserError, match='has frames 64x64x3, but 32x32'):
        load_train(config('folder', folder, nx=32))
    for fold in ('train', 'val'):
        (tmp_path / fold).mkdir()
        np.save(tmp_path / fold / 'gray.npy', np.zeros((20, 64, 64), np.uint8))
    with pytest.raises(UserError, match='gray.npy has 1 channels; give --nc 1, or convert again without --gray'):
        load_train(config('folder', tmp_path))
    with pytest.raises(UserError, match='has 3 channels; give --nc 3, or convert again with --gray'):
        load_test(config('folder', folder, nc=1), folder, 8)
    assert load_train(config('folder', tmp_path, nc=1))[0].videos
    np.save(tmp_path / 'train' / 'float.npy', np.zeros((20, 64, 64)))
    with pytest.raises(UserError, match='must hold uint8 frames'):
        load_train(config('folder', tmp_path, nc=1))
    (tmp_path / 'train' / 'float.npy').write_bytes(b'no array')
    with pytest.raises(UserError, match='float.npy is not an array'):
        load_train(config('folder', tmp_path, nc=1))
    cut = tmp_path / 'train' / 'gray.npy'
    (tmp_path / 'train' / 'float.npy').unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match='cut short'):
        load_train(config('folder', tmp_path, nc=1))


@pytest.mark.parametrize('dataset', ['kth', 'human', 'bair', 'folder'])
def test_empty_folders_say_what_was_expected(dataset, tmp_path):
    for load in (lambda: load_train(config(dataset, tmp_path)), lambda: load_test(config(dataset, tmp_path), tmp_path, 8)):
        with pytest.raises(UserError, match=f'--data_dir {tmp_path}.* python preprocessing/{dataset}/'):
            load()


@pytest.mark.parametrize('shape, message', [
    ('(6, 4, 4', 'is not an array of NumPy'), ('(6, [], 4)', 'is not an array of NumPy|found uint8'), ('(-6, -4, 4)', 'found uint8 .-6, -4, 4.'),
    ('(True, 4, 4)', 'found uint8 .True, 4, 4.'), ('(6, 4, 4, 1%s)' % ('0' * 30), 'is cut short'), ('(4294967296, 4294967296, 4)', 'is cut short')])
def test_damaged_headers_of_arrays(tmp_path, shape, message):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
    content = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header.encode() + bytes(6 * 4 * 4)
    (tmp_path / 'a.npy').write_bytes(content)
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
        archive.writestr('image.npy', content)
    for name in ('a.npy', 'b.npz'):
        with pytest.raises(UserError, match=f'{name} .*({message}).*; convert'):
            find_videos(tmp_path)
        (tmp_path / name).unlink()


def test_damaged_archives_of_videos(tmp_path):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, image=np.random.RandomState(0).randint(0, 256, (6, 4, 4)).astype(np.uint8))
    content = path.read_bytes()
    directory = content.rindex(b'PK\x01\x02')
    for places, value, message in (((6, directory + 8), 1, 'encrypted'), ((8, directory + 10), 97, 'compression method'),
                                   ((directory + 16,), content[directory + 16] ^ 1, 'CRC'), ((90,), content[90] ^ 255, 'Error -3|CRC')):
        damaged = bytearray(content)
        for place in places:
            damaged[place] = value
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f'a.npz is not .*({message}).*; convert the video again'):
            find_videos(tmp_path)['a'].clip(0, 6)
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(UserError, match='a.npz is not a video of the published layout .*; convert the video again'):
        find_videos(tmp_path)


def test_damaged_videos_are_named(tmp_path, monkeypatch):
    folder = tmp_path / 'a'
    folder.mkdir()
    for t, size in ((1, 4), (2, 4), (3, 5)):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / f'{t}.png')
    (folder / '._1.png').touch()  # as some systems add
    video = find_videos(tmp_path)['a']
    assert len(video) == 3 and video.clip(0, 2).shape == (2, 4, 4, 3)
    with pytest.raises(UserError, match='a/3.png is of another size'):
        video.clip(0, 3)
    for mode in ('1', 'P', 'LA', 'I;16'):
        Image.fromarray(np.zeros((4, 4), np.uint16 if mode == 'I;16' else np.uint8)).convert(mode).save(folder / '1.png')
        with pytest.raises(UserError, match=rf'a/1.png is no picture that can be read \(mode {mode}, expected'):
            find_videos(tmp_path)
    with monkeypatch.context() as m, pytest.raises(UserError, match='a/3.png is no picture that can be read .*decompression bomb'):
        m.setattr(Image, 'MAX_IMAGE_PIXELS', 12)
        video.clip(2, 1)
    (folder / '1.png').write_bytes(b'')
    with pytest.raises(UserError, match='a/1.png is no picture that can be read'):
        find_videos(tmp_path)
    shutil.rmtree(folder)
    (tmp_path / 'b.npy').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='b.npy cannot be read'):
        find_videos(tmp_path)


def test_a_single_training_video_is_too_few(kth, tmp_path):
    (tmp_path / 'processed_64' / 'boxing').mkdir(parents=True)
    shutil.copy(kth / 'processed_64' / 'boxing' / 'person01_boxing_d1.npy', tmp_path / 'processed_64' / 'boxing')
    with pytest.raises(UserError, match='is the only training video; at least 2'):
        load_train(config('kth', tmp_path))


# Test sets

def test_draws_of_the_published_test_sets():
    draws = json.loads((GOLDEN / 'test_set_draws.json').read_text())
    kth, human = draws['kth'], draws['human']
    found = kth_test_set.draw_clips(lambda c, person, trial: 60 + (7 * c + 13 * person + 29 * trial) % 120, len(kth['picks']), 40, 42)
    assert [list(map(int, pick)) for pick in found] == kth['picks']
    found = human_test_set.draw_clips(human['lengths'], len(human['picks']), 417, 42)
    assert [list(map(int, pick)) for pick in found] == human['picks']


def test_kth_test_set(kth, tmp_path):
    with np.load(kth / 'svg_test_set_12.npz', allow_pickle=False) as f:
        sequences, persons, actions = f['sequences'], f['persons'], f['actions']
    assert sequences.shape == (6, 12, 64, 64) and persons.shape == (6,)
    lengths = {c: len(np.load(kth / 'processed_64' / name / f'person21_{name}_d1.npy')) for c, name in enumerate(CLASSES)}
    for i, (c, person, trial, t_0) in enumerate(kth_test_set.draw_clips(lambda c, *_: lengths[c], 6, 12, 42)):
        video = np.load(kth / 'processed_64' / CLASSES[c] / f'person{person}_{CLASSES[c]}_d{trial}.npy')
        np.testing.assert_array_equal(sequences[i], video[t_0:t_0 + 12])
        assert (persons[i], actions[i]) == (person, CLASSES[c])
    np.testing.assert_array_equal(load_test(config('kth', kth), kth, 9).videos([4, 1])[..., 0], sequences[[4, 1], :9].swapaxes(0, 1))
    with pytest.raises(UserError, match='svg_test_set_12.npz is already there; remove it'):
        kth_test_set.main(['--data_dir', str(kth), '--seq_len', '12'])
    with pytest.raises(UserError, match='of at least 13 frames; make it with: .* --seq_len 40'):
        load_test(config('kth', kth), kth, 13)
    for bad in (np.uint8(3), np.zeros((2, 12, 64), np.uint8)):
        np.savez(tmp_path / 'svg_test_set_12.npz', sequences=bad)
        with pytest.raises(UserError, match=r'sequences must be uint8 \(N, 12, 64, 64\), found .*; make it again'):
            load_test(config('kth', tmp_path), tmp_path, 12)


def test_human_test_set(human):
    names = sorted(p.name for p in (human / 'test').iterdir())
    assert names[0] == 'S11-Directions 1.54138969.npy'
    for i, (v, start) in enumerate(human_test_set.draw_clips([60] * 4, 4, 49, 42)):
        with np.load(human / 'test_set_7_8' / f'test_{i}.npz', allow_pickle=False) as f:
            np.testing.assert_array_equal(f['image'], np.load(human / 'test' / names[v])[start:start + 49])
            assert f'S{f["subject"]}-{f["filename"]}' == names[v].replace('.npy', '.mp4') and f['frame'] == start
            np.testing.assert_array_equal(load_test(config('human', human), human, 5).videos([i])[:, 0], f['image'][:40:8])
    with pytest.raises(UserError, match='already there'):
        human_test_set.main(['--data_dir', str(human), '--seq_len', '7'])


def test_incomplete_human_test_set(human, tmp_path):
    shutil.copytree(human / 'test_set_7_8', tmp_path / 'test_set_7_8')
    (tmp_path / 'test_set_7_8' / 'test_1.npz').unlink()
    with pytest.raises(UserError, match='test_1.npz is missing; remove .*test_set_7_8 and make the test set again'):
        load_test(config('human', tmp_path), tmp_path, 5)
    shutil.copytree(human / 'test', tmp_path / 'test')
    shutil.copy(human / 'test' / 'S9-Directions.54138969.npy', tmp_path / 'test' / 'other.npy')
    with pytest.raises(UserError, match='other.npy is not called S<id>-<video>'):
        human_test_set.main(['--data_dir', str(tmp_path), '--seq_len', '6'])
    (tmp_path / 'test' / 'other.npy').unlink()
    (tmp_path / '.test_set_6_8.77.tmp').mkdir()  # of a killed run
    human_test_set.main(['--data_dir', str(tmp_path), '--size', '2', '--seq_len', '6'])
    assert not list(tmp_path.glob('.*')) and len(list((tmp_path / 'test_set_6_8').iterdir())) == 2


def test_missing_test_video_is_named(kth, tmp_path):
    shutil.copytree(kth / 'processed_64', tmp_path / 'processed_64')
    for path in (tmp_path / 'processed_64' / 'jogging').glob('person25*'):
        path.unlink()
    with pytest.raises(UserError, match=r'processed_64/jogging has no person25_jogging_d\d'):
        kth_test_set.main(['--data_dir', str(tmp_path), '--size', '200', '--seq_len', '12'])


# Training and evaluation by the presets

SMALL = ['--nf', '2', '--nhx', '8', '--ny', '4', '--nz', '3', '--nh_inf', '8', '--nh_res', '8', '--batch_size', '3', '--batch_size_test', '2',
         '--n_iter_test', '1', '--n_samples_test', '2', '--n_workers', '1', '--seed', '1', *steps(3, 1)]


@pytest.mark.parametrize('dataset, more, nt_gen, clips, test_set', [
    ('kth', ['--seq_len', '12', '--seq_len_test', '12'], 11, 6, 'svg_test_set_12.npz'),  # no shorter one is there
    ('human', ['--seq_len', '4', '--seq_len_test', '5', '--nt_cond', '3'], 7, 4, 'test_set_7_8'),
    ('bair', [], 30, 3, 'processed_data/test'),
    ('folder', ['--nc', '3', '--nt_inf', '2', '--nt_cond', '3', '--seq_len', '6', '--archi', 'vgg', '--skipco'], 10, 1, 'test')])
def test_presets_train_and_evaluate(dataset, more, nt_gen, clips, test_set, request, tmp_path, capsys):
    data_dir = request.getfixturevalue(dataset)
    which = ['--dataset', 'folder'] if dataset == 'folder' else ['--preset', dataset]
    assert train.main([*which, *SMALL, *more, '--data_dir', str(data_dir), '--save_path', str(tmp_path / 'run')]) == 0
    evaluation.main(['--xp_dir', str(tmp_path / 'run'), '--data_dir', str(data_dir), '--nt_gen', str(nt_gen), '--n_samples', '2', '--n_pictures', '1',
                     '--metrics', 'psnr', 'ssim'])
    protocol = json.loads((tmp_path / 'run' / 'results.json').read_text())['protocol']
    assert (protocol['dataset'], protocol['test_set'], protocol['clips']) == (dataset, test_set.rpartition('/')[2], clips)
    assert f'\ntest set: {data_dir}/{test_set}\n' in capsys.readouterr().out
    with np.load(tmp_path / 'run' / 'psnr_best.npz') as f:
        assert f['samples'].shape[0] == clips and f['samples'].shape[-1] == (1 if dataset == 'kth' else 3)
    assert Image.open(tmp_path / 'run' / 'pictures' / 'video_0000.png').width > 600
