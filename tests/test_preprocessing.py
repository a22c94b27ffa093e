"""Conversion of KTH, Human3.6M and BAIR, test sets, downloads."""

import functools
import hashlib
import http.server
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

from files import UserError

import numpy as np
import pytest
from PIL import Image
from test_folder import encode, ffmpeg, pattern, write_picture

from data.kth import CLASSES
from preprocessing.common import Unreadable, run_jobs, write_frames
from preprocessing.human import convert as human_convert
from preprocessing.human import make_test_set as human_test_set
from preprocessing.kth import convert as kth_convert
from preprocessing.kth import make_test_set as kth_test_set
from preprocessing.mmnist import make_test_set as mmnist_test_set
from preprocessing.video import read_video

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
SUBJECTS = (1, 5, 6, 7, 8, 9, 11)


def python(*argv, **kwargs):
    return subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, text=True,
                          capture_output=True, **kwargs)


def read(function, *args):
    """Frames that a converter reads, of a sound source."""
    notes = []
    frames = np.stack(list(function(*args, notes)))
    assert not notes
    return frames


@pytest.fixture(scope='module')
def kth(tmp_path_factory):
    """KTH: a video of a training person of each class; converted, all of the test persons too."""
    folder = tmp_path_factory.mktemp('kth')
    for c, name in enumerate(CLASSES):
        first = folder / 'raw' / name / f'person01_{name}_d1_uncomp.avi'
        encode(first, pattern(20 + c), codec='mpeg4', pix_fmt='yuv420p')
        first.with_name(f'._{first.name}').write_bytes(b'\0\5\x16\7')  # as macOS adds
    assert kth_convert.main(['--data_dir', str(folder)]) == 0
    for name, person, trial in itertools.product(CLASSES, range(21, 26), range(1, 5)):
        first = folder / 'processed_64' / name / f'person01_{name}_d1.npy'
        os.link(first, first.with_name(f'person{person}_{name}_d{trial}.npy'))
    return folder


@pytest.fixture(scope='module')
def human(tmp_path_factory):
    """Human3.6M: one video of a training subject, two of a test subject, of 6 frames."""
    folder = tmp_path_factory.mktemp('human')
    first = folder / 'S1' / 'Videos' / 'Directions.54138969.mp4'
    encode(first, pattern(6, 1000, 1000), 50, 'libx264', 'yuv420p')
    for subject in SUBJECTS:
        names = [first.name, '_ALL.54138969.mp4', f'._{first.name}']
        if subject in (9, 11):
            names.append('Directions 1.54138969.mp4')
        for name in names:
            path = folder / f'S{subject}' / 'Videos' / name
            if path != first:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(first, path)
    assert human_convert.main(['--data_dir', str(folder)]) == 0
    return folder


# Published recipes

@pytest.mark.parametrize('rate', [25, 50])
def test_kth_frames_are_those_of_ffmpeg_itself(rate, tmp_path):
    """As published: PNG frames at 25 frames per second, 64 x 64; the loader keeps channel 0."""
    source = tmp_path / 'a.avi'
    encode(source, pattern(rate, 120, 160), rate, 'mpeg4', 'yuv420p')
    ffmpeg('-i', source, '-r', '25', '-f', 'image2', '-s', '64x64', tmp_path / 'image-%03d.png')
    expected = np.stack([np.asarray(Image.open(path).convert('RGB'))
                         for path in sorted(tmp_path.glob('*.png'))])
    assert 25 <= len(expected) <= 27 and expected.shape[1:] == (64, 64, 3)
    np.testing.assert_array_equal(read(kth_convert.read, source, 64), expected[..., 0])


def test_kth_folder(kth):
    assert len(list((kth / 'processed_64').glob('*/person01_*_d1.npy'))) == 6
    video = np.load(kth / 'processed_64' / 'walking' / 'person01_walking_d1.npy')
    assert video.shape == (25, 64, 64) and video.dtype == np.uint8
    source = kth / 'raw' / 'walking' / 'person01_walking_d1_uncomp.avi'
    np.testing.assert_array_equal(video, read(kth_convert.read, source, 64))


@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuvj420p'])
def test_human_frames_are_those_of_ffmpeg_cropped_then_resized(pix_fmt, tmp_path):
    source = tmp_path / 'a.mp4'
    encode(source, pattern(2, 1000, 1002), 50, 'libx264', pix_fmt)
    whole = np.frombuffer(ffmpeg('-i', source, '-pix_fmt', 'rgb24', '-f', 'rawvideo', '-'),
                          np.uint8).reshape(2, 1000, 1002, 3)
    expected = [np.asarray(Image.fromarray(frame).crop((100, 100, 900, 900)).resize(
        (64, 64), Image.Resampling.LANCZOS)) for frame in whole]
    np.testing.assert_array_equal(read(human_convert.read_any, source, 64, None), expected)


def test_human_folder(human, tmp_path):
    assert [path.name for path in (human / 'train').glob('S1-*')] == ['S1-Directions.54138969.npy']
    names = {f'S{s}-Directions{n}.54138969.npy' for s in (9, 11) for n in ('', ' 1')}
    assert {path.name for path in (human / 'test').iterdir()} == names
    video = np.load(human / 'test' / 'S9-Directions 1.54138969.npy')
    assert video.shape == (6, 64, 64, 3)
    encode(tmp_path / 'small.mp4', pattern(1, 120, 160), codec='libx264')
    message = 'frames of 1000 x 1000 are expected, found 160 x 120'
    with pytest.raises(Unreadable, match=message):
        read(human_convert.read_any, tmp_path / 'small.mp4', 64, None)


RECORDS = '''
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
from preprocessing.bair import convert

folder, rng = Path(sys.argv[1]), np.random.RandomState(0)
for fold, names in (('train', ['traj_1024_to_1279', 'traj_0_to_255']), ('test', ['traj_0_to_9'])):
    out = folder / 'softmotion30_44k' / fold
    out.mkdir(parents=True)
    for name in names:
        with tf.io.TFRecordWriter(str(out / f'{name}.tfrecords')) as writer:
            for _ in range(2):
                video = rng.randint(0, 256, (30, 64, 64, 3)).astype(np.uint8)
                feature = {
                    f'{i}/image_aux1/encoded': tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[video[i].tobytes()]))
                    for i in range(30)}
                feature['0/action'] = tf.train.Feature(
                    float_list=tf.train.FloatList(value=[0., 1.]))
                features = tf.train.Features(feature=feature)
                writer.write(tf.train.Example(features=features).SerializeToString())
print(convert.main(['--data_dir', str(folder)]))
path = folder / 'softmotion30_44k' / 'test' / 'traj_0_to_9.tfrecords'
path.write_bytes(path.read_bytes()[:-1000])
with tf.io.TFRecordWriter(str(folder / 'softmotion30_44k' / 'train' / 'z.tfrecords')) as writer:
    writer.write(b'garbage' * 9)
print(convert.main(['--data_dir', str(folder)]))
(folder / 'processed_data' / 'test.npy').unlink()
(folder / 'processed_data' / 'train.npy').rename(folder / 'train.npy')
print(convert.main(['--data_dir', str(folder)]))
assert 'torch' not in sys.modules
'''


def test_bair(tmp_path):
    """One array a fold, in order of the names of the record files; all of it or nothing."""
    if importlib.util.find_spec('tensorflow') is None:
        pytest.skip('TensorFlow is not installed')
    env = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'PYTHONPATH': str(ROOT)}
    done = python('-c', RECORDS, tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    rng = np.random.RandomState(0)
    first = rng.randint(0, 256, (2, 30, 64, 64, 3)).astype(np.uint8)
    second = rng.randint(0, 256, (2, 30, 64, 64, 3)).astype(np.uint8)
    found = np.load(tmp_path / 'train.npy', mmap_mode='r')
    np.testing.assert_array_equal(found, np.concatenate([second, first]))
    lines = done.stdout.splitlines()
    assert lines[:4] == ['2 folds converted (6 videos), 0 already there, 0 unreadable', '0',
                         '0 folds converted (0 videos), 2 already there, 0 unreadable', '0']
    assert lines[4] == '0 folds converted (0 videos), 0 already there, 2 unreadable'
    records = tmp_path / 'softmotion30_44k'
    assert lines[5].startswith(f'unreadable: {records}/test (traj_0_to_9.tfrecords is not a record')
    assert lines[6].startswith(f'unreadable: {records}/train (z.tfrecords is not a record file of')
    assert lines[7] == '1' and not list((tmp_path / 'processed_data').iterdir())


# Jobs

def test_converters_go_on_after_a_bad_video(kth, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / 'raw' / name).mkdir(parents=True)
        path = tmp_path / 'raw' / name / f'person01_{name}_d1_uncomp.avi'
        os.link(kth / 'raw' / name / path.name, path)
    bad = path.with_name('person02_walking_d1_uncomp.avi')
    bad.write_bytes(b'RIFF nothing more')
    cut = path.with_name('person03_walking_d1_uncomp.avi')
    cut.write_bytes(path.read_bytes()[:-1200])
    target = tmp_path / 'processed_64' / 'walking'
    target.mkdir(parents=True)
    (target / '.person01_walking_d1.npy.77.tmp').write_bytes(b'half')  # left by a killed process
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert '7 videos converted' in out and '0 already there, 1 unreadable' in out
    assert f'unreadable: {bad} (' in out and 'converting' in err
    assert len(err.splitlines()) <= 2  # the begin and the end, not each of 8 videos
    assert 0 < len(np.load(target / 'person03_walking_d1.npy')) <= 25
    assert not list(target.glob('.*'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npy')}
    assert len(before) == 7
    bad.unlink()
    assert kth_convert.main(['--data_dir', str(tmp_path)]) == 0
    assert capsys.readouterr() == (
        '0 videos converted (0 frames), 7 already there, 0 unreadable\n', '')  # no empty bar
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.npy')} == before
    assert kth_convert.main(['--data_dir', str(tmp_path), '--overwrite', '--frame_rate', '5']) == 0
    assert len(np.load(target / 'person01_walking_d1.npy')) < 10


def test_frames_are_written_as_by_numpy(tmp_path):
    frames = np.random.RandomState(0).randint(0, 256, (300, 5, 4, 3)).astype(np.uint8)
    assert write_frames(tmp_path / 'a.npy', iter(frames[:, :, ::-1])) == 300
    np.save(tmp_path / 'b.npy', frames[:, :, ::-1].copy())
    assert (tmp_path / 'a.npy').read_bytes() == (tmp_path / 'b.npy').read_bytes()
    with pytest.raises(Unreadable, match='it has no frames'):
        write_frames(tmp_path / 'a.npy', [])


def test_any_error_of_a_source_is_a_note_but_not_of_the_disk(tmp_path, capsys):
    def read(source, notes):
        yield np.zeros((2, 2), np.uint8)
        raise SyntaxError('broken\nPNG')
    assert run_jobs({tmp_path / 'out' / 'a.npy': tmp_path / 'a\n'}, read, False) == 1
    assert f'unreadable: {tmp_path}/a%0A (SyntaxError: broken%0APNG)' in capsys.readouterr().out
    assert not list((tmp_path / 'out').iterdir())
    (tmp_path / 'out' / 'b.npy').mkdir()  # cannot be replaced by a file
    sources = {tmp_path / 'out' / name: name for name in ('a.npy', 'b.npy')}

    def frames(source, notes):
        while True:
            yield np.zeros((2, 2), np.uint8)
            if source == 'b.npy':
                return
    with pytest.raises((OSError, UserError)):  # and the endless one is stopped
        run_jobs(sources, frames, True)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['b.npy']


@pytest.mark.parametrize('name', ['kth', 'human', 'bair'])
def test_converters_say_what_is_missing(name, tmp_path):
    main = importlib.import_module(f'preprocessing.{name}.convert').main
    message = 'register at' if name == 'human' else f'bash preprocessing/{name}/download.sh'
    with pytest.raises(UserError, match=f'has no files .*{message}'):
        main(['--data_dir', str(tmp_path)])


# Any video for a model

def test_predict_takes_the_frames_of_the_conversion(human, tmp_path):
    def config(dataset, **more):
        return SimpleNamespace(**{'dataset': dataset, 'nx': 32, 'nc': 3, **more})
    source = human / 'S1' / 'Videos' / 'Directions.54138969.mp4'
    expected = read(human_convert.read_any, source, 32, None)
    found, note = read_video(source, config('human', subsampling=3), 1, 5)
    np.testing.assert_array_equal(found, expected[3::3])
    assert not note
    images = pattern(3, 901, 901)
    for t, image in enumerate(images):
        write_picture(tmp_path / 'human' / f'{t}.bmp', image)
    found, _ = read_video(tmp_path / 'human', config('human', subsampling=2), 0, 9)
    crop = Image.fromarray(images[2]).crop(human_convert.BOX)
    np.testing.assert_array_equal(found[1], crop.resize((32, 32), Image.Resampling.LANCZOS))
    assert len(found) == 2

    encode(tmp_path / 'a.mkv', pattern(10))
    ffmpeg('-i', tmp_path / 'a.mkv', tmp_path / '%d.png')
    (tmp_path / 'pictures').mkdir()
    for path in tmp_path.glob('*.png'):
        path.rename(tmp_path / 'pictures' / path.name)
    expected = read(kth_convert.read, tmp_path / 'a.mkv', 32)[2:8, ..., None]
    for name in ('a.mkv', 'pictures'):
        found, _ = read_video(tmp_path / name, config('kth', nc=1), 2, 6)
        assert abs(found.astype(int) - expected).max() <= (name == 'pictures')
    for dataset, nc in (('smmnist', 1), ('bair', 3), ('folder', 3)):
        found, _ = read_video(tmp_path / 'a.mkv', config(dataset, nc=nc), 7, 6)
        assert found.shape == (3, 32, 32, nc) and found.dtype == np.uint8
        assert read_video(tmp_path / 'a.mkv', config(dataset, nc=nc), 20, 6)[0].shape[0] == 0
    bars, _ = read_video(tmp_path / 'a.mkv', config('folder'), 0, 9, 'none', 5)
    assert len(bars) == 2 and not bars[:, 0].any()
    (tmp_path / 'pictures' / '5.png').write_bytes(b'no picture')
    for dataset in ('kth', 'folder', 'human'):
        with pytest.raises(UserError, match=f'pictures cannot be read as a video of '
                                            rf'{dataset} \((5.png|frames of)'):
            read_video(tmp_path / 'pictures', config(dataset, subsampling=1), 0, 9)


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
    argv = ['--data_dir', str(kth), '--size', '6', '--seq_len', '12']
    kth_test_set.main(argv)
    with np.load(kth / 'svg_test_set_12.npz', allow_pickle=False) as f:
        sequences, persons, actions = f['sequences'], f['persons'], f['actions']
    assert sequences.shape == (6, 12, 64, 64) and persons.shape == (6,)
    clips = kth_test_set.draw_clips(lambda c, *_: 20 + c, 6, 12, 42)
    for i, (c, person, trial, t_0) in enumerate(clips):
        name = CLASSES[c]
        video = np.load(kth / 'processed_64' / name / f'person{person}_{name}_d{trial}.npy')
        np.testing.assert_array_equal(sequences[i], video[t_0:t_0 + 12])
        assert (persons[i], actions[i]) == (person, name)
    with pytest.raises(UserError, match='svg_test_set_12.npz exists already; replace it with --o'):
        kth_test_set.main(argv)
    kth_test_set.main([*argv, '--overwrite'])
    with pytest.raises(UserError, match='has 20 frames, but a clip takes 21; use a smaller --seq'):
        kth_test_set.main([*argv[:-1], '21'])
    shutil.copytree(kth / 'processed_64', tmp_path / 'processed_64', copy_function=os.link)
    for path in (tmp_path / 'processed_64' / 'jogging').glob('person25*'):
        path.unlink()
    with pytest.raises(UserError, match='processed_64 has 116 of the 120 videos of persons 21 to '):
        kth_test_set.main(['--data_dir', str(tmp_path), '--size', '200', '--seq_len', '12'])


def test_human_test_set(human):
    argv = ['--data_dir', str(human), '--size', '4', '--seq_len', '3', '--subsampling', '2']
    human_test_set.main(argv)
    names = sorted(path.name for path in (human / 'test').iterdir())
    assert names[0] == 'S11-Directions 1.54138969.npy' and not list(human.glob('.*'))
    for i, (v, start) in enumerate(human_test_set.draw_clips([6] * 4, 4, 5, 42)):
        video = np.load(human / 'test' / names[v])
        with np.load(human / 'test_set_3_2' / f'test_{i}.npz', allow_pickle=False) as f:
            np.testing.assert_array_equal(f['image'], video[start:start + 5])
            assert f'S{f["subject"]}-{f["filename"]}' == names[v].replace('.npy', '.mp4')
            assert f['frame'] == start
    with pytest.raises(UserError, match='test_set_3_2 exists already; replace it with --overwrite'):
        human_test_set.main(argv)
    argv[argv.index('--size') + 1] = '2'
    human_test_set.main([*argv, '--overwrite'])
    assert len(list((human / 'test_set_3_2').iterdir())) == 2


def test_mmnist_test_set(tmp_path):
    argv = ['--data_dir', str(tmp_path / 'new'), '--seq_len', '3', '--digit_source', 'mnist5k']
    mmnist_test_set.main(argv)
    path, = (tmp_path / 'new').iterdir()
    with np.load(path, allow_pickle=False) as f:
        assert f['sequences'].shape == (3, 500, 64, 64) and f['sequences'].dtype == np.uint8
    with pytest.raises(UserError, match='exists already; replace it with --overwrite'):
        mmnist_test_set.main(argv)
    with pytest.raises(UserError, match='--frame_size: expected a whole number of at least 29'):
        mmnist_test_set.main([*argv, '--frame_size', '28', '--overwrite'])


# Downloads

class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`, honours ranges, and breaks the first connections after `cuts` bytes."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers['Range']
        server.requests.append((self.path[1:], wanted))
        if self.path[1:] not in server.files:
            return self.send_error(404)
        body = server.files[self.path[1:]]
        start = int(wanted.removeprefix('bytes=').removesuffix('-')) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:server.cuts.pop(0) if server.cuts else None])


@pytest.fixture
def site():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.files, server.requests, server.cuts = {}, [], []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def download(name, folder, site, path, **env):
    env = {**os.environ, 'no_proxy': '*', **env,
           f'{name.upper()}_URL': f'http://127.0.0.1:{site.server_port}/{path}'}
    return subprocess.run(['bash', ROOT / 'preprocessing' / name / 'download.sh', folder],
                          cwd=folder.parent, text=True, capture_output=True, env=env, timeout=60)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_download_of_kth(site, tmp_path):
    for name in CLASSES:
        data = io.BytesIO()
        with zipfile.ZipFile(data, 'w') as f:
            f.writestr(f'person01_{name}_d1_uncomp.avi', name * 30)
        site.files[f'actions/{name}.zip'] = data.getvalue()
    site.cuts, folder = [60], tmp_path / 'my data'
    done = download('kth', folder, site, 'actions')
    assert done.returncode == 18 and list(contents(folder)) == ['raw/boxing.zip.part']
    done = download('kth', folder, site, 'actions')
    assert done.returncode == 0, done.stderr
    expected = {f'raw/{name}/person01_{name}_d1_uncomp.avi': (name * 30).encode()
                for name in CLASSES}
    assert contents(folder) == expected
    assert done.stdout.splitlines()[-1] == f'{folder}/raw/walking: 1 videos'
    assert site.requests == [('actions/boxing.zip', None), ('actions/boxing.zip', 'bytes=60-'),
                             *((f'actions/{name}.zip', None) for name in CLASSES[1:])]
    shutil.rmtree(folder / 'raw' / 'jogging')
    (folder / 'raw' / '.jogging').mkdir()  # left by an interrupted unzip
    (folder / 'raw' / '.jogging' / 'half.avi').touch()
    site.requests.clear()
    assert download('kth', folder, site, 'actions').returncode == 0
    assert contents(folder) == expected and site.requests == [('actions/jogging.zip', None)]
    shutil.rmtree(folder / 'raw' / 'jogging')
    site.files['actions/jogging.zip'] = b'<html>gone</html>'
    done = download('kth', folder, site, 'actions')
    assert done.returncode == 2 and 'raw/jogging.zip is damaged; delete it and run' in done.stderr
    done = download('kth', tmp_path / 'b', site, 'nowhere')
    assert done.returncode == 22 and '404' in done.stderr


def test_download_of_bair(site, tmp_path):
    data, files = io.BytesIO(), {'softmotion30_44k/train/a.tfrecords': b'train' * 99,
                                 'softmotion30_44k/test/b.tfrecords': b'test'}
    with tarfile.open(fileobj=data, mode='w') as f:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            f.addfile(info, io.BytesIO(content))
    site.files['bair.tar'] = data.getvalue()
    run = functools.partial(download, 'bair', tmp_path / 'new', site, 'bair.tar',
                            BAIR_SHA256=hashlib.sha256(data.getvalue()).hexdigest())
    site.cuts = [1000, 500]
    assert [run().returncode for _ in range(2)] == [18, 18]
    done = run()
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / 'new') == files
    assert done.stdout.splitlines()[-1] == f'{tmp_path}/new/softmotion30_44k: 2 files'
    assert [wanted for _, wanted in site.requests] == [None, 'bytes=1000-', 'bytes=1500-']
    assert run().returncode == 0 and len(site.requests) == 3
    done = download('bair', tmp_path / 'other', site, 'bair.tar')  # not the published archive
    assert done.returncode == 2 and 'bair_robot_pushing_dataset_v0.tar is damaged' in done.stderr
    assert not (tmp_path / 'other' / 'softmotion30_44k').exists()
