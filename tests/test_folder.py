"""Your own videos: what is taken, frames, split, test sets."""

import functools
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_datasets import config, encode, stored, write_image

from args import config_dict, parse_train
from data import load_test, load_train
from files import UserError, write_json
from metrics import __main__ as scoring
from preprocessing import video as any_video
from preprocessing.decoding import Unreadable, find_ffmpeg, probe
from preprocessing.folder import convert, make_test_set
from preprocessing.folder.frames import CROPS, FrameFormat, open_frames
from preprocessing.folder.split import cut, grouping, split

LOSSLESS = ['-c:v', 'ffv1', '-pix_fmt', 'yuv444p']


def frames(source, *args, **kwargs):
    return np.concatenate(list(open_frames(source, FrameFormat(*args, **kwargs))))


def draw(path, size, seconds):
    """A video with fine detail in many colours."""
    subprocess.run([find_ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i',
                    f'mandelbrot=size={size}:rate=5', '-t', str(seconds), *LOSSLESS, str(path)],
                   check=True)


def error(found, expected):
    """Mean absolute difference of frames."""
    return abs(np.asarray(found).astype(int) - np.asarray(expected)).mean()


@pytest.fixture
def run(tmp_path, capsys):
    """Function that converts the folder `in` to `out`, and returns what is printed."""
    def run(*argv, code=0):
        capsys.readouterr()
        assert convert.main(['--data_dir', f'{tmp_path}/in', '--out_dir', f'{tmp_path}/out',
                             '--image_size', '8', *argv]) == code
        return capsys.readouterr().out
    return run


def write_videos(folder, *names, n_frames=2):
    """Folders of small pictures."""
    for name in names:
        for t in range(n_frames):
            write_image(folder / name / f'{t}.png', np.full((8, 8, 3), t))


def folds(out):
    """Fold of each converted video."""
    return {path.stem: path.parent.name for path in sorted(out.glob('*/*.npy'))}


# Frames

@pytest.mark.parametrize('crop', CROPS)
@pytest.mark.parametrize('gray', [False, True])
def test_frames_of_files_and_pictures_are_those_of_pillow(crop, gray, tmp_path):
    """Up to rounding in YUV, for ffmpeg, and means instead of Lanczos, for OpenCV."""
    draw(tmp_path / 'a.mkv', '96x48', 1)
    (tmp_path / 'a').mkdir()
    subprocess.run([find_ffmpeg(), '-v', 'error', '-i', f'{tmp_path}/a.mkv',
                    f'{tmp_path}/a/%d.png'], check=True)
    expected = []
    for frame in map(Image.fromarray, stored(tmp_path / 'a.mkv')):
        frame = frame.convert('L') if gray else frame
        if crop == 'centre':
            whole = frame.crop((24, 0, 72, 48)).resize((32, 32), Image.Resampling.LANCZOS)
        else:
            whole = Image.new(frame.mode, (32, 32))
            whole.paste(frame.resize((32, 16), Image.Resampling.LANCZOS), (0, 8))
        expected.append(np.asarray(whole))
    for source, tolerance in (('a.mkv', 2), ('a', 5)):
        found = frames(tmp_path / source, 32, gray, crop)
        assert found.shape == (5, 32, 32) if gray else (5, 32, 32, 3)
        assert error(found, expected) < tolerance
    assert np.ptp(expected) > 100


@pytest.mark.parametrize('colour', [(255, 0, 0), (0, 200, 0), (30, 60, 250), (255, 255, 255)])
def test_colours_of_rgb_videos_are_kept(colour, tmp_path):
    source = f'color=0x{bytes(colour).hex()}:s=48x32:r=5:d=1,format=gbrp'
    subprocess.run([find_ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', source, '-c:v', 'ffv1',
                    f'{tmp_path}/a.mkv'], check=True)
    assert abs(frames(tmp_path / 'a.mkv', 16).astype(int) - colour).max() <= 3


def test_rate_is_brought_to_fps_whatever_it_was(tmp_path):
    for rate in (10, 30, 60):
        encode(tmp_path / f'{rate}.mkv', '32x32', rate, 2, *LOSSLESS)
    encode(tmp_path / 'variable.mkv', '32x32', 30, 2, '-vf', "select='lt(t,1)+not(mod(n,3))'",
           '-fps_mode', 'vfr', *LOSSLESS)
    assert len(stored(tmp_path / 'variable.mkv')) == 40
    reference = frames(tmp_path / '60.mkv', 32, fps=60.)[::6]  # the pattern depends on time only
    for name in ('10', '30', '60', 'variable'):
        found = frames(tmp_path / f'{name}.mkv', 32, fps=10.)
        assert len(found) in (19, 20) and error(found[10], reference[10]) < 10, name


def test_rotation_of_phones_is_honoured(tmp_path):
    encode(tmp_path / 'a.mp4', '64x32', 5, 1, '-c:v', 'mpeg4', '-q:v', '2')
    subprocess.run([find_ffmpeg(), '-v', 'error', '-display_rotation', '90', '-i',
                    f'{tmp_path}/a.mp4', '-c', 'copy', f'{tmp_path}/turned.mp4'], check=True)
    for crop in CROPS:
        upright, turned = (frames(tmp_path / name, 32, crop=crop)
                           for name in ('a.mp4', 'turned.mp4'))
        assert error(np.rot90(upright, 1, (1, 2)), turned) < 4 < error(upright, turned)
    picture, exif = Image.fromarray(upright[0]), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    (tmp_path / 'p').mkdir()
    picture.save(tmp_path / 'p' / '0.jpg', exif=exif, quality=95, subsampling=0)
    assert error(frames(tmp_path / 'p', 32)[0], np.rot90(upright[0], -1)) < 4


def test_large_jpegs_are_read_at_a_part_of_their_size(tmp_path):
    draw(tmp_path / 'a.mkv', '720x400', 0.2)
    image = Image.fromarray(stored(tmp_path / 'a.mkv')[0])
    for name in ('a/0.png', 'b/0.jpg'):
        (tmp_path / name).parent.mkdir()
        image.save(tmp_path / name, quality=95)
    whole, part = (frames(tmp_path / name, 32) for name in 'ab')
    assert error(whole, part) < 4
    path = tmp_path / 'b' / '0.jpg'
    path.write_bytes(path.read_bytes()[:-6000])
    with pytest.raises(Unreadable, match='0.jpg: it ends in the middle'):
        frames(tmp_path / 'b', 32)


def test_predict_follows_the_record_of_the_conversion(tmp_path):
    encode(tmp_path / 'a.mkv', '96x48', 30, 1, *LOSSLESS)
    write_json(tmp_path / 'conversion.json', {'crop': 'none', 'fps': 10.0})
    options = SimpleNamespace(dataset='folder', nx=16, nc=3, data_dir=tmp_path)
    found, _ = any_video.read_video(tmp_path / 'a.mkv', options, 2, 5)
    expected = frames(tmp_path / 'a.mkv', 16, crop='none', fps=10.)
    np.testing.assert_array_equal(found, expected[2:7])
    for record in ({'crop': 'all'}, {'fps': 'fast'}, {'fps': [3]}):
        write_json(tmp_path / 'conversion.json', record)
        with pytest.raises(UserError, match='conversion.json has wrong values of crop or fps'):
            any_video.read_video(tmp_path / 'a.mkv', options, 0, 5)


# Sources

def test_every_file_that_ffmpeg_reads_is_taken(tmp_path, run):
    source = tmp_path / 'in'
    for suffix, *codec in (('ts', '-c:v', 'mpeg2video'), ('mts', '-f', 'mpegts'),
                           ('3gp', '-s', '176x144', '-c:v', 'mpeg4'), ('y4m',), ('flv',),
                           ('unusual', '-f', 'matroska', '-c:v', 'mpeg4')):
        encode(source / f'a.{suffix}', '64x48', 25, 0.4, *codec)
    subprocess.run([find_ffmpeg(), '-v', 'error', '-f', 'lavfi', '-i', 'sine=d=1',
                    str(source / 'sound.wav')], check=True)
    (source / 'notes.txt').write_text('nothing to see')
    (source / 'list.ffconcat').write_text("ffconcat version 1.0\nfile 'a.y4m'\n")
    (source / 'broken.mp4').write_bytes(b'no video')
    out = run(code=1)
    assert '6 videos converted (60 frames), 0 already there, 1 unreadable' in out
    assert f'unreadable: {source}/broken.mp4 (' in out
    assert f'left out: {source}/sound.wav (there is no video in it, but wav)' in out
    assert f'left out: {source}/list.ffconcat (it is a list of other files)' in out
    assert f'left out: {source}/notes.txt (Invalid data found' in out
    assert {Path(name).suffix[1:] for name in folds(tmp_path / 'out')} == {
        'ts', 'mts', '3gp', 'y4m', 'flv', 'unusual'}


def test_output_folder_inside_the_source_is_not_searched(tmp_path, run):
    write_videos(tmp_path / 'in', 'a', 'b', 'c')
    argv = ['--out_dir', f'{tmp_path}/in/out']
    assert '3 videos converted' in run(*argv)
    assert run(*argv) == '0 videos converted (0 frames), 3 already there, 0 unreadable\n'


def test_probe(tmp_path):
    encode(tmp_path / 'a.mp4', '64x48', 10, 2)
    assert probe(tmp_path / 'a.mp4') == (64, 48, 2, 10)
    with pytest.raises(Unreadable, match='No such file'):
        probe(tmp_path / 'none.mp4')


def test_memory_is_that_of_a_block(tmp_path, monkeypatch):
    """Frames arrive in blocks, and the file is that of `np.save`."""
    encode(tmp_path / 'a.mkv', '64x48', 50, 10, *LOSSLESS)
    blocks = list(open_frames(tmp_path / 'a.mkv', FrameFormat(64)))
    assert [len(block) for block in blocks] == [85, 85, 85, 85, 85, 75]
    updates = []
    job = convert.FolderJob(tmp_path / 'a.mkv', [tmp_path / 'b.npy'], FrameFormat(64),
                            bar=SimpleNamespace(update=updates.append))
    assert job() == (500, '') and updates == [85, 85, 85, 85, 85, 75]
    np.save(tmp_path / 'c.npy', np.concatenate(blocks))
    assert (tmp_path / 'b.npy').read_bytes() == (tmp_path / 'c.npy').read_bytes()


# Split

def test_folders_of_folds_are_taken_as_they_are(tmp_path, run):
    for name in ('train/a', 'train/b', 'val/a', 'test/a', 'test/c', 'other/a'):
        write_videos(tmp_path / 'in', name)
    assert f'left out: {tmp_path}/in/other/a (outside of the folders' in run()
    expected = {'train-a': 'train', 'train-b': 'train', 'val-a': 'val', 'test-a': 'test',
                'test-c': 'test'}
    assert folds(tmp_path / 'out') == expected
    write_json(tmp_path / 'out' / 'split.json', expected | {'train-b': 'test'})
    with pytest.raises(UserError, match='assigns train-b to test, but it is in the folder train'):
        run()
    assert folds(tmp_path / 'out') == expected


def test_without_a_folder_val_some_of_train_are_taken(tmp_path, run):
    write_videos(tmp_path / 'in', *(f'train/{i}' for i in range(10)), 'test/a')
    run('--val', '0.3')
    found = folds(tmp_path / 'out')
    assert Counter(found.values()) == {'train': 7, 'val': 3, 'test': 1}
    assert found['test-a'] == 'test'
    assert '0 videos converted' in run('--val', '0.3') and folds(tmp_path / 'out') == found


def test_groups_stay_together(tmp_path, run):
    names = [f'{place}/take{i}' for place in 'abcdef' for i in range(3)]
    write_videos(tmp_path / 'in', *names[:-3])
    run('--group', '^(.)-', '--test', '0.3')
    found = folds(tmp_path / 'out')
    groups = {place: {fold for name, fold in found.items() if name[0] == place}
              for place in 'abcde'}
    assert all(len(found) == 1 for found in groups.values())
    assert Counter(found.values()) == {'train': 6, 'test': 6, 'val': 3}
    write_videos(tmp_path / 'in', *names[-3:], 'a/take3')
    run('--group', '^(.)-', '--test', '0.3')
    more = folds(tmp_path / 'out')
    assert found.items() <= more.items() and more['a-take3'] == more['a-take0']
    with pytest.raises(UserError, match='--group: .* of the same group in .* give them one fold'):
        run('--group', 'take.')
    with pytest.raises(UserError, match='has 1 groups of videos'):
        run('--group', 'take')
    with pytest.raises(UserError, match='--group: expected a regular expression, found'):
        run('--group', '(')


def test_groups_are_what_the_expression_finds():
    group = grouping(re.compile(r'person(\d+)_(\w)'))
    assert group('person1_a.mp4') == group('x-person1_az') != group('person2_a.mp4')
    assert group('other.mp4') == 'other.mp4'
    folds = split([f'person{i % 5}_a{i}' for i in range(40)], 0.1, 0.1, 42, {}, group)
    assert Counter(folds.values()) == {'train': 24, 'test': 8, 'val': 8}


def test_converted_files_follow_an_edited_split(tmp_path, run):
    write_videos(tmp_path / 'in', *'abcdef')
    run()
    out = tmp_path / 'out'
    record = json.loads((out / 'split.json').read_text())
    name = next(name for name, fold in record.items() if fold == 'train')
    # As earlier versions left it: converted again, to the new fold, beside the old file
    (out / 'test' / f'{name}.npy').write_bytes((out / 'train' / f'{name}.npy').read_bytes())
    options = config('folder', out, nx=8, seq_len=2, seq_len_test=2)
    for load in (load_train, lambda options: load_test(options, out, 2)):
        with pytest.raises(UserError, match=f'{name} is in both train and test; remove one'):
            load(options)
    write_json(out / 'split.json', record | {name: 'test'})
    assert f'moved to test, as split.json says: {name}\n' in run()
    assert folds(out) == record | {name: 'test'}
    assert load_train(options) and len(load_test(options, out, 2)) == 2
    assert convert.main(['--data_dir', 'x', '--out_dir', str(out), '--check']) == 0


def test_videos_without_a_source_are_named(tmp_path, run):
    write_videos(tmp_path / 'in', *'abcde')
    run()
    (tmp_path / 'in' / 'a').rename(tmp_path / 'a')
    path, = (tmp_path / 'out').glob('*/a.npy')
    assert f'kept, though not in --data_dir any more: {path}; delete them' in run()


def test_split_along_time_leaves_gaps(tmp_path, run):
    encode(tmp_path / 'in' / 'a.mkv', '32x32', 25, 8, *LOSSLESS)
    argv = ['--split', 'time', '--gap', '20', '--val', '0.1', '--test', '0.2']
    assert '1 videos converted (200 frames)' in run(*argv)
    out = tmp_path / 'out'
    whole = frames(tmp_path / 'in' / 'a.mkv', 8)
    for fold, start, stop in (('train', 0, 112), ('val', 132, 148), ('test', 168, 200)):
        np.testing.assert_array_equal(np.load(out / fold / f'a.mkv-{fold}.npy'), whole[start:stop])
    assert not list(out.glob('*/.*')) and not (out / 'split.json').exists()
    assert '0 videos converted (0 frames), 1 already there' in run(*argv)
    assert convert.main(['--data_dir', 'x', '--out_dir', str(out), '--check']) == 0
    with pytest.raises(UserError, match='with --gap 20, found 30'):
        run('--split', 'time', '--gap', '30', '--val', '0.1', '--test', '0.2')
    with pytest.raises(UserError, match='at least 3 are needed.* --split time cuts a few'):
        run()
    with pytest.raises(UserError, match='found --group; leave one of them out'):
        run(*argv, '--group', 'a')


def test_pieces_of_videos(tmp_path, run):
    assert cut(100, 0.1, 0.2, 10) == {'train': slice(0, 56), 'val': slice(66, 74),
                                      'test': slice(84, 100)}
    with pytest.raises(ValueError, match='100 frames are too few'):
        cut(100, 0.1, 0.2, 49)
    write_videos(tmp_path / 'in', 'long', n_frames=10)
    write_videos(tmp_path / 'in', 'short', n_frames=4)
    out = run('--split', 'time', '--gap', '1', code=1)
    assert f'unreadable: {tmp_path}/in/short (4 frames are too few for three folds; use a' in out
    assert [path.stem for path in sorted((tmp_path / 'out').glob('*/*'))] == [
        'long-test', 'long-train', 'long-val']


def test_folders_of_earlier_versions_stay_valid_and_unmixed(tmp_path, run):
    write_videos(tmp_path / 'in', *'abcd')
    run()
    out = tmp_path / 'out'
    write_json(out / 'conversion.json', {'image_size': 8, 'gray': False})
    assert '4 already there' in run()
    before = json.loads((out / 'split.json').read_text())
    write_videos(tmp_path / 'in', 'e')
    with pytest.raises(UserError, match='converted by an earlier version, whose frames differ'):
        run()
    assert json.loads((out / 'split.json').read_text()) == before
    for argv in (['--crop', 'none'], ['--fps', '10'], ['--split', 'time']):
        with pytest.raises(UserError, match=f'was converted with {argv[0]} '):
            run(*argv)


# Test sets

def test_clips_of_a_test_set(tmp_path, capsys):
    (tmp_path / 'test').mkdir()
    rng = np.random.RandomState(0)
    videos = {name: rng.randint(0, 256, (n, 8, 8, 3)).astype(np.uint8)
              for name, n in (('long', 30), ('longer', 50), ('short', 9), ('exact', 10))}
    for name, video in videos.items():
        np.save(tmp_path / 'test' / f'{name}.npy', video)
    argv = ['--data_dir', str(tmp_path), '--clips', '4', '--seq_len', '10']
    make_test_set.main(argv)
    out, err = capsys.readouterr()
    assert 'test_set_10.json: 9 clips of 10 frames, of 3 videos' in out
    assert 'note: 1 of 4 videos have fewer than the 10 frames of a clip' in err
    path = tmp_path / 'test_set_10.json'
    clips = json.loads(path.read_text())['clips']
    assert Counter(name for name, _ in clips) == {'long': 4, 'longer': 4, 'exact': 1}
    assert len(set(map(tuple, clips))) == 9
    assert clips == make_test_set.draw_clips({'exact': 10, 'long': 30, 'longer': 50}, 4, 10, 42)
    assert clips != make_test_set.draw_clips({'exact': 10, 'long': 30, 'longer': 50}, 4, 10, 43)

    load = functools.partial(load_test, config('folder', tmp_path, nx=8), tmp_path)
    testset = load(8)
    assert testset.path == path and len(testset) == 9
    for i, (name, start) in enumerate(clips):
        np.testing.assert_array_equal(testset.videos([i])[:, 0], videos[name][start:start + 8])
    with pytest.raises(UserError, match='no test_set_<frames>.json of at least 11 frames; make'):
        load(11)
    with pytest.raises(UserError, match='exists already'):
        make_test_set.main(argv)
    for wrong, message in (([['long', 21]], 'from 21 on of long is not among'),
                           ([['../train/a', 0]], 'of ../train/a is not among'),
                           ([['long', -1]], 'has no clips'), ([['long', True]], 'has no clips'),
                           (['long'], 'has no clips'), ([], 'has no clips')):
        write_json(path, {'clips': wrong})
        with pytest.raises(UserError, match=message):
            load(8)


def test_other_methods_are_scored_on_own_videos(tmp_path, call):
    """`python -m metrics --xp_dir`, against the formula of PSNR."""
    (tmp_path / 'test').mkdir()
    rng = np.random.RandomState(0)
    for i in range(3):
        np.save(tmp_path / 'test' / f'{i}.npy', rng.randint(0, 256, (9, 64, 64, 3), np.uint8))
    make_test_set.main(['--data_dir', str(tmp_path), '--clips', '2', '--seq_len', '8'])
    run_dir = tmp_path / 'run'
    run_dir.mkdir()
    write_json(run_dir / 'config.json', config_dict(parse_train([
        '--preset', 'folder', '--nt_cond', '4', '--seq_len_test', '7', '--data_dir', str(tmp_path),
        '--save_path', str(run_dir)])))
    truth = load_test(config('folder', tmp_path), tmp_path, 7).videos(range(6))[4:].swapaxes(0, 1)
    guess = rng.randint(0, 256, truth.shape, np.uint8)
    np.save(tmp_path / 'a.npy', guess)
    argv = [tmp_path / 'a.npy', '--data_dir', tmp_path, '--metrics', 'psnr', '--out',
            tmp_path / 'scores']
    assert call(scoring.main, *argv, '--xp_dir', run_dir).code == 0
    found = json.loads((tmp_path / 'scores' / 'results.json').read_text())
    mse = ((truth / 255 - guess / 255) ** 2).mean((2, 3))  # of each frame and channel
    assert found['scores']['psnr']['mean'] == pytest.approx(-10 * np.log10(mse).mean(), abs=1e-4)
    protocol = found['protocol']
    assert (protocol['dataset'], protocol['test_set'], protocol['clips'],
            protocol['conditioning_frames'], protocol['predicted_frames']) == (
                'folder', 'test_set_8.json', 6, 4, 3)
    for more in ([], ['--xp_dir', run_dir, '--preset', 'kth']):
        result = call(scoring.main, *argv, *more)
        assert result.code == 2 and '--preset' in result.err and '--xp_dir' in result.err
