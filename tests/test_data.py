"""Moving MNIST, byte for byte; converted videos and test sets; streams of training videos."""

import gzip
import hashlib
import json
import os
from pathlib import Path

from files import UserError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import MNIST

from args import load_config, parse_train
from conftest import GOLDEN
from data import DATASETS, find_size, load_clip, load_test, load_train, mmnist
from data.clips import SIZES, get_fold
from data.stream import BatchStream, chunks, make_loader
from data.video import VideoFile
from preprocessing.mmnist import make_test_set as script
from utils import stream_rng

SETTINGS = {
    'stochastic': dict(nt=25),
    'deterministic': dict(nt=100, deterministic=True),
    'three_fast': dict(nt=40, max_speed=9, n_digits=3, frame_size=48),
}


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_registry():
    assert {name: entry.channels for name, entry in DATASETS.items()} == {
        'smmnist': (1,), 'kth': (1,), 'human': (3,), 'bair': (3,), 'folder': (1, 3)}
    assert all(entry.sizes == ((64,) if name == 'bair' else SIZES)
               for name, entry in DATASETS.items())
    assert {option: name for name, entry in DATASETS.items() for option in entry.options} == {
        'digit_source': 'smmnist', 'ndigits': 'smmnist', 'max_speed': 'smmnist',
        'deterministic': 'smmnist', 'subsampling': 'human'}


@pytest.mark.parametrize('n', [100, 599, 43264])
def test_folds_are_the_published_ones(n):
    expected = np.load(GOLDEN / 'data.npz', allow_pickle=False)[f'val_ids_{n}']
    np.testing.assert_array_equal(get_fold(n, train=False), expected)
    np.testing.assert_array_equal(np.union1d(get_fold(n, train=True), expected), np.arange(n))
    assert len(get_fold(n, train=True)) == int(0.95 * n)


# Moving MNIST

@pytest.mark.parametrize('name', SETTINGS)
def test_generator_is_the_published_one(name, digits):
    g = np.load(GOLDEN / 'data.npz', allow_pickle=False)
    made = mmnist.make_test_set(digits, np.zeros(40, np.uint8), **SETTINGS[name])
    np.testing.assert_array_equal(made['latents'], g[f'{name}_latents'])
    assert sha256(made['sequences']) == str(g[f'{name}_sha256'])
    np.testing.assert_array_equal(made['sequences'][-1].sum((1, 2)), g[f'{name}_last_frame_sum'])


@pytest.mark.skipif('SRVP_MNIST' not in os.environ, reason='SRVP_MNIST is not a folder with MNIST')
@pytest.mark.parametrize('deterministic, nt', [(False, 25), (True, 100)])
def test_published_test_sets_from_the_real_mnist(deterministic, nt, tmp_path):
    """Byte for byte, if $SRVP_MNIST is a folder with MNIST/raw, which is not part of this code."""
    (tmp_path / 'MNIST').symlink_to(Path(os.environ['SRVP_MNIST']).resolve() / 'MNIST')
    options = ['--deterministic'] if deterministic else []
    script.main(['--data_dir', str(tmp_path), '--seq_len', str(nt), *options])
    name = mmnist.test_set_name(deterministic, 'mnist', 2, 64)
    digests = json.loads((GOLDEN / 'official_mmnist_digests.json').read_text())
    with np.load(tmp_path / name, allow_pickle=False) as arrays:
        for key, expected in digests[name.removesuffix('.npz')].items():
            array = arrays[key]
            found = {'shape': list(array.shape), 'dtype': str(array.dtype), 'sha256': sha256(array)}
            assert found == expected, key


def test_names_of_test_sets():
    assert mmnist.test_set_name(False, 'mnist', 2, 64) == 'smmnist_test_2digits_64.npz'
    assert mmnist.test_set_name(True, 'mnist', 3, 48) == 'mmnist_test_3digits_48.npz'
    assert mmnist.test_set_name(False, 'mnist5k', 2, 64) == 'smmnist5k_test_2digits_64.npz'


def test_render_is_the_plain_loop(digits):
    rng = np.random.RandomState(1)
    latents = rng.randint(0, 37, (5, 4, 3, 4))
    chosen = digits[rng.randint(40, size=(4, 3))]
    plain = np.zeros((5, 4, 64, 64), np.int64)
    for t, i, d in np.ndindex(5, 4, 3):
        x, y = latents[t, i, d, :2]
        plain[t, i, x:x + 28, y:y + 28] += chosen[i, d]
    np.testing.assert_array_equal(mmnist.render(chosen, latents, 64), plain.clip(0, 255))


@pytest.mark.parametrize('deterministic', [False, True])
def test_motions_of_a_batch_are_those_of_the_plain_loop(deterministic):
    limit, max_speed, n_digits, nt = 36, 4, 3, 40
    rngs = [stream_rng(0, 'train', i) for i in range(20)]
    found = mmnist.draw_motions(rngs, nt, n_digits, 64, max_speed, deterministic)
    bounces = 0
    for i in range(20):
        rng = stream_rng(0, 'train', i)
        digits = []
        for x, y, dx, dy in rng.random_sample((n_digits, 4)):
            digits.append((int(x * (limit + 1)), int(y * (limit + 1)),
                           int(dx * (2 * max_speed + 1)) - max_speed,
                           int(dy * (2 * max_speed + 1)) - max_speed))
        for t in range(nt):
            for d, (x, y, dx, dy) in enumerate(digits):
                if not (0 <= x <= limit and 0 <= y <= limit):
                    bounces += 1
                x, y, dx, dy = mmnist.bounce(x, y, dx, dy, limit, max_speed, deterministic, rng)
                assert found[t, i, d].tolist() == [round(x), round(y)]
                digits[d] = x + dx, y + dy, dx, dy
    assert bounces > 100


def idx_files():
    """Seven random digits in MNIST's file format: contents by name, and the digits."""
    images = np.random.RandomState(0).randint(0, 256, (7, 28, 28)).astype(np.uint8)
    files = {}
    for fold in ('train', 't10k'):
        header = np.array([2051, 7, 28, 28], '>i4').tobytes()
        files[f'{fold}-images-idx3-ubyte'] = header + images.tobytes()
        files[f'{fold}-labels-idx1-ubyte'] = np.array([2049, 7], '>i4').tobytes() + bytes(range(7))
    return files, images


@pytest.mark.parametrize('packed', [False, True])
def test_mnist_is_found_in_its_folder(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, 'mirrors', ['http://127.0.0.1:9/'])  # no server
    with pytest.raises(UserError, match='MNIST is not in .*/raw and cannot be downloaded .*; put '):
        mmnist.read_mnist(tmp_path, True)
    raw = tmp_path / 'MNIST' / 'raw'
    files, images = idx_files()
    for name, content in files.items():
        (raw / f'{name}.gz' if packed else raw / name).write_bytes(
            gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match='/raw/train-images-idx3-ubyte(.gz)? is not that of MNIST '):
        mmnist.read_mnist(tmp_path, True)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(mmnist, 'MNIST_MD5', md5)
    for train in (True, False):
        found, labels = mmnist.read_mnist(tmp_path, train)
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(labels, range(7))


def test_mnist5k_digits_are_disjoint_and_real():
    train, train_labels = mmnist.read_mnist5k(None, True)
    test, test_labels = mmnist.read_mnist5k(None, False)
    assert train.shape == (4000, 28, 28) and test.shape == (1000, 28, 28)
    assert len({d.tobytes() for d in train} | {d.tobytes() for d in test}) == 5000
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert train.max() == 255 and 20 < train.mean() < 50


def test_each_digit_is_in_one_video_of_a_test_set(data_dir):
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as arrays:
        assert arrays['sequences'].shape == (8, 500, 64, 64)
        assert arrays['latents'].dtype == np.int64 and arrays['latents'].shape == (8, 500, 2, 4)
        assert len({d.tobytes() for d in arrays['digits'].reshape(1000, 28, 28)}) == 1000


def test_test_set_of_moving_mnist(data_dir, run_dir, tmp_path, capsys):
    config = load_config(run_dir)
    testset = load_test(config, data_dir, 6)
    assert len(testset) == 500 and testset.name(3) == 'video 3'
    with np.load(data_dir / 'smmnist5k_test_2digits_64.npz', allow_pickle=False) as arrays:
        expected = arrays['sequences'][:6, [4, 2]]
    np.testing.assert_array_equal(testset.videos([4, 2])[..., 0], expected)
    with pytest.raises(UserError, match='must be uint8, 9 frames or more of 64 x 64'):
        load_test(config, data_dir, 9)
    with pytest.raises(UserError, match='does not exist; make it with: (.*)') as caught:
        load_test(config, tmp_path, 6)
    command = str(caught.value).partition('python -m preprocessing.mmnist.make_test_set ')[2]
    args = script.get_parser().parse_args(command.split())
    assert (args.digit_source, args.digits, args.seq_len, args.frame_size, args.deterministic) == (
        'mnist5k', 2, 25, 64, False)
    path = tmp_path / 'smmnist5k_test_2digits_64.npz'
    np.savez(path, sequences=np.zeros((12, 6, 64, 64), np.uint8))  # 12 videos of 6 frames
    with pytest.raises(UserError, match='seem to have videos on their first axis'):
        load_test(config, tmp_path, 6)
    for arrays in ({'sequences': np.array([{}], object)}, {'other': np.zeros(3)},
                   {'sequences': np.zeros((6, 2, 32, 32), np.uint8)}, b'PK\x03\x04 cut'):
        path.write_bytes(arrays) if isinstance(arrays, bytes) else np.savez(path, **arrays)
        with pytest.raises(UserError, match='is not the test set .* make it again .* --overwrite'):
            load_test(config, tmp_path, 6)


# Converted videos

def videos(*shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=array) if path.suffix == '.npz' else np.save(path, array)


def save_png(folder, array):
    folder.mkdir(parents=True)
    for t, frame in enumerate(array):
        Image.fromarray(frame).save(folder / f'{t + 1}.png')


def make_kth(root, layout):
    for person in range(1, 26):
        folder = root / 'processed_64' / 'boxing' / f'person{person:02d}_boxing_d1'
        array = videos(12, 64, 64, seed=person)
        save_png(folder, array) if layout else save(folder.with_suffix('.npy'), array)
    np.savez(root / 'svg_test_set_9.npz', sequences=videos(4, 9, 64, 64))


def make_human(root, layout):
    for fold in ('train', 'test'):
        for i in range(3):
            path = root / fold / f'S{i}-Walking.{i}{".npz" if layout else ".npy"}'
            save(path, videos(30, 64, 64, 3, seed=i))
    for i in range(4):
        save(root / 'test_set_9_3' / f'test_{i}.npz', videos(25, 64, 64, 3, seed=i))


def make_bair(root, layout):
    for fold in ('train', 'test'):
        array, folder = videos(4, 30, 64, 64, 3), root / 'processed_data' / fold
        if not layout:
            save(folder.with_suffix('.npy'), array)
        for i, video in enumerate(array if layout else ()):
            save_png(folder / f'record_{i // 2}' / f'{i % 2 + 1:03d}', video)


def make_folder(root, layout):
    for fold in ('train', 'val', 'test'):
        for i in range(4):
            save(root / fold / f'{i}.npy', videos(12, 64, 64, 3, seed=i))
    if layout:
        clips = [['2', 1], ['0', 3], ['1', 0], ['3', 2]]
        (root / 'test_set_9.json').write_text(json.dumps({'clips': clips}))


MAKE = {'kth': make_kth, 'human': make_human, 'bair': make_bair, 'folder': make_folder}
EXAMPLES = {'kth': 'boxing/person01_boxing_d1', 'human': 'test/S1-Walking.1', 'bair': None,
            'folder': 'val/2'}


def config_of(dataset, data_dir, **changes):
    config = parse_train(['--preset', dataset, '--data_dir', str(data_dir), '--save_path', 's'])
    vars(config).update({'seq_len': 7, 'seq_len_test': 8, 'subsampling': 3, **changes})
    return config


@pytest.mark.parametrize('layout', [0, 1], ids=['ours', 'published'])
@pytest.mark.parametrize('dataset', MAKE)
def test_loaders_of_converted_videos(dataset, layout, tmp_path):
    """Clips are stretches of the videos of their fold; of test sets, the first frames."""
    MAKE[dataset](tmp_path, layout)
    config, step = config_of(dataset, tmp_path), 3 if dataset == 'human' else 1
    sources, drawn = load_train(config), []
    for source, nt in zip(sources, (7, 8)):
        clips = source.draw([stream_rng(0, 'train', i) for i in range(12)], nt)
        assert clips.shape == (nt, 12, 64, 64, config.nc) and clips.dtype == np.uint8
        whole = [video.clip(0, len(video)) for video in source.videos]
        for b in range(12):
            assert any(np.array_equal(clips[:, b], video[t:t + (nt - 1) * step + 1:step])
                       for video in whole for t in range(len(video)))
        drawn.append({(v.path, getattr(v, 'offset', 0)) for v in source.videos})
    assert not drawn[0] & drawn[1]
    assert [len(d) for d in drawn] == {'kth': [19, 1], 'human': [2, 1], 'bair': [3, 1],
                                       'folder': [4, 4]}[dataset]
    testset = load_test(config, tmp_path, 8)
    assert len(testset) == 4 and len({testset.name(i) for i in range(4)}) == 4
    found = testset.videos([1, 3])
    if dataset in ('kth', 'bair'):
        expected = videos(4, *((9, 64, 64, 1) if dataset == 'kth' else (30, 64, 64, 3)))[[1, 3], :8]
    else:
        first = (3, 2) if dataset == 'folder' and layout else (0, 0)
        ids = (0, 3) if dataset == 'folder' and layout else (1, 3)
        n = 12 if dataset == 'folder' else 25
        expected = np.stack([videos(n, 64, 64, 3, seed=i)[t:t + 7 * step + 1:step]
                             for i, t in zip(ids, first)])
    np.testing.assert_array_equal(found, expected.swapaxes(0, 1))
    name = EXAMPLES[dataset] or ('test/record_0/002' if layout else 'test/1')
    clip = load_clip(config, tmp_path, name, 2, 3)
    assert clip.shape == (3, 64, 64, config.nc)
    hint = '; give the path of a converted video' if name == 'test/1' else '.*, such as '
    with pytest.raises(UserError, match=f'/{name}9 does not exist as .*{hint}'):
        load_clip(config, tmp_path, name + '9', 0, 3)
    with pytest.raises(UserError, match=r'from frame .* on; use a smaller --nt_gen or --t_0'):
        load_clip(config, tmp_path, name, 28, 3)


@pytest.mark.parametrize('dataset', MAKE)
def test_missing_and_foreign_videos_are_one_sentence(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    for load in (lambda: load_train(config), lambda: load_test(config, tmp_path, 8)):
        with pytest.raises(UserError, match=f'--data_dir {tmp_path}: .* preprocessing/{dataset}/'):
            load()
    MAKE[dataset](tmp_path, 0)
    config.nx = 32
    if dataset != 'kth':  # whose folder is named after the size
        with pytest.raises(UserError, match='has frames 64x64x3, but 32x32 with --nc 3 is needed'):
            load_train(config)
    config = config_of(dataset, tmp_path, seq_len=40)
    with pytest.raises(UserError, match='videos have fewer than the .* frames of a clip: .*; use'):
        load_train(config)


def test_size_of_converted_videos_is_found(tmp_path):
    assert find_size('kth', None) == find_size('kth', tmp_path) == find_size('folder', None) == 64
    (tmp_path / 'processed_128').mkdir()
    assert find_size('kth', tmp_path) == 128
    (tmp_path / 'processed_64').mkdir()
    with pytest.raises(UserError, match='has processed_64 and processed_128; choose .* --nx'):
        find_size('kth', tmp_path)
    save(tmp_path / 'train' / 'a.npy', videos(2, 96, 96, 3))
    assert find_size('folder', tmp_path) == 64  # the loader says what is wrong
    save(tmp_path / 'train' / 'a.npy', videos(2, 32, 32, 3))
    assert find_size('folder', tmp_path) == 32


def test_short_videos_are_left_out_and_named(tmp_path, capsys):
    make_folder(tmp_path, 0)
    save(tmp_path / 'train' / 'short.npy', videos(5, 64, 64, 3))
    assert len(load_train(config_of('folder', tmp_path))[0].videos) == 4
    assert 'note: 1 of 5 videos have fewer than the 7 frames of a clip: ' in capsys.readouterr().err


def test_damaged_videos_are_named(tmp_path):
    make_folder(tmp_path, 0)
    for content, message in ((b'\x93NUMPY cut', 'b.npy is not a whole array of uint8 frames'),
                             (np.zeros((5, 64, 64, 3)), 'b.npy is not a whole array of uint8'),
                             (np.zeros((5, 64, 64), np.uint8), 'was converted for --nc 1; use')):
        path = tmp_path / 'train' / 'b.npy'
        path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
        with pytest.raises(UserError, match=message):
            load_train(config_of('folder', tmp_path))


def test_files_of_videos(tmp_path):
    def saved(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name
    videos = np.random.RandomState(0).randint(0, 256, (3, 9, 8, 8, 1)).astype(np.uint8)
    np.save(tmp_path / 'good.npy', videos)
    for path in (tmp_path / 'good.npy', saved('one.npz', anything=videos[..., 0]),
                 saved('several.npz', samples=videos, scores=np.zeros(3))):
        file = VideoFile(path)
        assert file.shape == (3, 9, 8, 8, 1)
        np.testing.assert_array_equal(np.concatenate([file.read(2), file.read(1)]), videos)

    np.save(tmp_path / 'float.npy', videos / 255)
    (tmp_path / 'text.npz').write_text('no')
    np.save(tmp_path / 'fortran.npy', videos.T)
    (tmp_path / 'short.npy').write_bytes((tmp_path / 'good.npy').read_bytes()[:-1])
    cut = saved('cut.npz', samples=videos)
    cut.write_bytes(cut.read_bytes()[:500])
    for path, message in ((tmp_path / 'float.npy', 'float.npy is not .* float64 of shape'),
                          (saved('two.npz', a=videos, b=videos), "two.npz is not .* 'samples.npy'"),
                          (saved('pickle.npz', samples=np.array([{}], object)), 'is not a .npy or'),
                          (tmp_path / 'text.npz', 'is not a .npy or'), (cut, 'is not a .npy or'),
                          (tmp_path / 'short.npy', 'is not a .npy or'),
                          (tmp_path / 'fortran.npy', 'expected uint8 .* in C order')):
        with pytest.raises(UserError, match=message):
            VideoFile(path).read(3)


# Streams

@pytest.fixture
def source(digits):
    return mmnist.MovingDigits(digits, 64, 4, 2, False)


def test_batch_is_a_function_of_seed_and_step(source):
    def batches(n_workers, start, seed=5, stream='train'):
        torch.rand(start + 1)  # the global generators are not used
        np.random.seed(start)
        before = torch.get_rng_state()
        stream = BatchStream(source, seed, stream, 6)
        found = [b.numpy() for b in make_loader(stream, chunks(range(24), 3)[start:], n_workers)]
        assert torch.equal(torch.get_rng_state(), before)  # nor advanced
        return found
    reference = batches(0, 0)
    assert reference[0].shape == (6, 3, 64, 64, 1) and reference[0].dtype == np.uint8
    assert len({sha256(b) for b in reference}) == 8
    for other in (batches(1, 0), batches(2, 5)):
        for expected, found in zip(reference[-len(other):], other):
            np.testing.assert_array_equal(found, expected)
    assert sha256(batches(0, 0, seed=6)[0]) != sha256(reference[0])
    assert sha256(batches(0, 0, stream='val')[0]) != sha256(reference[0])


def test_videos_do_not_depend_on_how_they_are_batched(source):
    stream = BatchStream(source, 5, 'train', 4)
    whole, halves = stream[range(7)], [stream[range(3)], stream[range(3, 7)]]
    assert chunks(range(7), 3) == [range(3), range(3, 6), range(6, 7)]
    np.testing.assert_array_equal(whole, np.concatenate(halves, 1))


def test_streams_are_independent_for_any_seed():
    draws = {stream_rng(seed, stream, i).randint(2 ** 62) for seed in (0, 1, 2 ** 32 - 1)
             for stream in ('train', 'val', 'test', 'noise', 'damage') for i in (0, 1, 2, 10 ** 9)}
    assert len(draws) == 3 * 5 * 4
