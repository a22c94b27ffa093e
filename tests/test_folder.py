"""Your own videos: what is taken, frames, order, rate, folds, test sets."""

import functools
import json
import os
import re
import subprocess
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

from files import UserError

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from data import load_test
from preprocessing.common import Unreadable
from preprocessing.folder import convert, make_test_set
from preprocessing.folder.frames import CROPS, FrameFormat, count_pictures, read_frames
from preprocessing.video import read_video

LANCZOS = 'flags=lanczos+accurate_rnd'
COLOUR = 'format=yuv444p,scale=flags=accurate_rnd+full_chroma_int,format=rgb24'


def pattern(n=12, H=48, W=64):
    """Frames uint8 (n, H, W, 3) of large shapes that move; the first row tells their number."""
    y, x = np.mgrid[:H, :W]
    frames = np.stack([np.stack([2 * x + 5 * t, 3 * y, 90 + 60 * np.sin((x + y + 9 * t) / 9)], -1)
                       for t in range(n)])
    return (frames % 256).astype(np.uint8)


def encode(path, frames=None, rate=25, codec='ffv1', pix_fmt='yuv444p', times=None,
           sound=False, **options):
    """Write a video; `times` are those of the frames, in hundredths of a second."""
    frames = pattern() if frames is None else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(os.fspath(path), 'w', options={k: str(v) for k, v in options.items()}) as out:
        stream = out.add_stream(codec, rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        audio = out.add_stream('aac', 8000, layout='mono') if sound else None
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = (k, Fraction(1, rate)) if times is None \
                else (times[k], Fraction(1, 100))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        for k in range(30 if audio else 0):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate, frame.pts = 8000, 1024 * k
            out.mux(audio.encode(frame))
        if audio:
            out.mux(audio.encode(None))


def ffmpeg(*options):
    """What ffmpeg writes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-y', *map(str, options)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def frames(source, *args, notes=(), **kwargs):
    """Converted frames. The decoder must have survived what `notes` says."""
    found = []
    result = np.stack(list(read_frames(source, FrameFormat(*args, **kwargs), found)))
    assert len(found) == len(notes), found
    return result


def error(found, expected):
    """Mean absolute difference of frames."""
    return abs(np.asarray(found).astype(int) - np.asarray(expected)).mean()


def write_picture(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def write_videos(folder, *names, n_frames=2):
    """Folders of small pictures."""
    for name in names:
        for t in range(n_frames):
            write_picture(folder / name / f'{t}.png', np.full((8, 8, 3), 10 * t))


def folds(out):
    """Fold of each converted video."""
    return {path.stem: path.parent.name for path in sorted(out.glob('*/*.npy'))}


@pytest.fixture
def run(tmp_path, capsys):
    """Function that converts the folder `in` to `out`, and returns what is printed."""
    def run(*argv, code=0):
        capsys.readouterr()
        assert convert.main(['--data_dir', f'{tmp_path}/in', '--out_dir', f'{tmp_path}/out',
                             '--image_size', '8', *argv]) == code
        return capsys.readouterr().out
    return run


# Frames of video files

@pytest.mark.parametrize('name, codec, pix_fmt', [
    ('a.mp4', 'libx264', 'yuv420p'), ('a.mp4', 'libx265', 'yuv420p10le'),
    ('a.mkv', 'libsvtav1', 'yuv420p'), ('a.webm', 'libvpx-vp9', 'yuv420p'),
    ('a.avi', 'mpeg4', 'yuv420p'), ('a.mov', 'mjpeg', 'yuvj420p'), ('a.wmv', 'wmv2', 'yuv420p'),
    ('a.h264', 'libx264', 'yuv420p'), ('a.m2v', 'mpeg2video', 'yuv420p'),
    ('a.ts', 'mpeg2video', 'yuv420p'), ('a.y4m', 'rawvideo', 'yuv420p'),
    *(('a.mkv', 'ffv1', form) for form in ('yuv422p10le', 'gbrp', 'gray', 'bgra', 'yuva420p')),
    *(('a.nut', 'rawvideo', form) for form in ('gray16le', 'rgb48le', 'pal8', 'monow'))])
def test_frames_are_those_of_ffmpeg_itself(name, codec, pix_fmt, tmp_path):
    """Of the program, which converts all kinds in the same way."""
    source = tmp_path / name
    ffmpeg('-f', 'lavfi', '-i', 'testsrc2=size=96x64:rate=25:duration=0.4', '-c:v', codec,
           '-pix_fmt', pix_fmt, *(['-g', '5'] if codec == 'libx264' else []),
           *(['-x265-params', 'log-level=none'] if codec == 'libx265' else []), source)
    expected = np.frombuffer(ffmpeg(
        '-i', source, '-vf', f"crop='min(iw,ih)':'min(iw,ih)',scale=32:32:{LANCZOS},{COLOUR}",
        '-f', 'rawvideo', '-'), np.uint8).reshape(-1, 32, 32, 3)
    assert len(expected) == 10 and np.ptp(expected) > 100
    np.testing.assert_array_equal(frames(source, 32), expected)


@pytest.mark.parametrize('crop', CROPS)
@pytest.mark.parametrize('gray', [False, True])
def test_frames_of_files_and_pictures_are_those_of_pillow(crop, gray, tmp_path):
    """Up to rounding in YUV, for files."""
    images = pattern(5, 48, 96)
    encode(tmp_path / 'a.mkv', images)
    expected = []
    for t, image in enumerate(map(Image.fromarray, images)):
        write_picture(tmp_path / 'a' / f'{t}.png', image)
        image = image.convert('L') if gray else image
        if crop == 'centre':
            whole = image.crop((24, 0, 72, 48)).resize((32, 32), Image.Resampling.LANCZOS)
        else:
            whole = Image.new(image.mode, (32, 32))
            whole.paste(image.resize((32, 16), Image.Resampling.LANCZOS), (0, 8))
        expected.append(np.asarray(whole))
    for source, tolerance in (('a.mkv', 4), ('a', 1)):
        found = frames(tmp_path / source, 32, gray, crop)
        assert found.shape == ((5, 32, 32) if gray else (5, 32, 32, 3))
        assert error(found, expected) < tolerance


@pytest.mark.parametrize('colour', [(255, 0, 0), (0, 200, 0), (30, 60, 250), (255, 255, 255)])
def test_colours_of_rgb_videos_are_kept(colour, tmp_path):
    source = f'color=0x{bytes(colour).hex()}:s=48x32:r=5:d=1,format=gbrp'
    ffmpeg('-f', 'lavfi', '-i', source, '-c:v', 'ffv1', tmp_path / 'a.mkv')
    assert abs(frames(tmp_path / 'a.mkv', 16).astype(int) - colour).max() <= 3


@pytest.mark.parametrize('options, turn', [
    (['-display_rotation', '90'], lambda x: np.rot90(x, 1, (1, 2))),
    (['-display_rotation', '-90'], lambda x: np.rot90(x, -1, (1, 2))),
    (['-display_rotation', '180'], lambda x: x[:, ::-1, ::-1]),
    (['-display_hflip'], lambda x: x[:, :, ::-1]), (['-display_vflip'], lambda x: x[:, ::-1])])
def test_rotation_of_phones_is_honoured(options, turn, tmp_path):
    encode(tmp_path / 'a.mp4', pattern(4, 32, 64), codec='libx264')
    ffmpeg(*options, '-i', tmp_path / 'a.mp4', '-c', 'copy', tmp_path / 'b.mp4')
    for crop in CROPS:
        before, found = (frames(tmp_path / f'{name}.mp4', 32, crop=crop) for name in 'ab')
        np.testing.assert_array_equal(found, turn(before))
        assert error(found, before) > 10
    gray = frames(tmp_path / 'b.mp4', 32, True)
    np.testing.assert_array_equal(gray, turn(frames(tmp_path / 'a.mp4', 32, True)))


def test_pixels_that_are_not_square(tmp_path):
    """Twice as wide as high: a player shows 64 x 32."""
    square = np.zeros((2, 32, 32, 3), np.uint8)
    square[:, :, 8:24] = 255
    encode(tmp_path / 'square.mkv', square)
    ffmpeg('-i', tmp_path / 'square.mkv', '-c:v', 'ffv1', '-vf', 'setsar=2', tmp_path / 'a.mkv')
    whole = frames(tmp_path / 'a.mkv', 32, True, 'none')
    assert (whole[:, [0, 7, 24, 31]] == 0).all() and whole[:, 9:23, 10:22].min() > 250
    assert whole[:, 9:23, :6].max() < 5
    centre = frames(tmp_path / 'a.mkv', 32, True)
    assert centre.min() > 240  # the square of 32 x 32 in the middle is white


def test_cover_art_and_edit_lists(tmp_path):
    encode(tmp_path / 'a.mp4', pattern(50), codec='libx264')
    write_picture(tmp_path / 'cover.png', np.full((500, 500, 3), 255))
    ffmpeg('-i', tmp_path / 'cover.png', '-i', tmp_path / 'a.mp4', '-map', '0', '-map', '1',
           '-c', 'copy', '-disposition:v:0', 'attached_pic', tmp_path / 'cover.mp4')
    whole = frames(tmp_path / 'a.mp4', 16)
    np.testing.assert_array_equal(frames(tmp_path / 'cover.mp4', 16), whole)
    ffmpeg('-ss', '0.8', '-i', tmp_path / 'a.mp4', '-c', 'copy', tmp_path / 'cut.mp4')
    np.testing.assert_array_equal(frames(tmp_path / 'cut.mp4', 16), whole[20:])


def test_frames_of_another_size_in_the_same_file(tmp_path):
    for name, size in (('a', 32), ('b', 64)):
        encode(tmp_path / f'{name}.ts', pattern(4, size, size), codec='mpeg2video',
               pix_fmt='yuv420p')
    parts = [(tmp_path / f'{name}.ts').read_bytes() for name in 'ab']
    (tmp_path / 'c.ts').write_bytes(b''.join(parts))
    found = frames(tmp_path / 'c.ts', 16)
    assert len(found) in (7, 8)  # at the change, the parser may lose one
    np.testing.assert_array_equal(found[-4:], frames(tmp_path / 'b.ts', 16))


def test_damaged_files_are_converted_with_a_note(tmp_path):
    encode(tmp_path / 'a.mkv', pattern(40), codec='libx264')
    data = (tmp_path / 'a.mkv').read_bytes()
    (tmp_path / 'b.mkv').write_bytes(data[:len(data) // 2])
    assert 5 < len(frames(tmp_path / 'b.mkv', 8, notes=['it ends early'])) < 40
    (tmp_path / 'c.mkv').write_bytes(data[:200])
    for path in (tmp_path / 'c.mkv', tmp_path / 'none.mkv'):
        with pytest.raises(Unreadable):
            list(read_frames(path, FrameFormat(8), []))


# Rate

def numbered(n):
    """Frames of which each has one value, 3 more than the one before."""
    return np.full((n, 16, 16, 3), 3 * np.arange(n)[:, None, None, None], np.uint8)


def numbers(source, fps=None):
    return [round(frame.mean() / 3) for frame in frames(source, 8, fps=fps)]


@pytest.mark.parametrize('rate, fps', [(20, 10), (10, 20), (20, 20), (20, 1), (30, 25), (7, 9.5)])
def test_rate_is_that_of_ffmpeg(rate, fps, tmp_path):
    encode(tmp_path / 'a.mkv', numbered(20), rate)
    expected = np.frombuffer(ffmpeg('-i', tmp_path / 'a.mkv', '-vf', f'fps={fps},scale=8:8',
                                    '-pix_fmt', 'rgb24', '-f', 'rawvideo', '-'), np.uint8)
    expected = [round(frame.mean() / 3) for frame in expected.reshape(-1, 8, 8, 3)]
    assert numbers(tmp_path / 'a.mkv', fps) == expected
    assert abs(len(expected) - 20 * fps / rate) <= 0.5


def test_variable_rates_and_one_frame(tmp_path):
    """Frames with uneven times are no damage."""
    times = np.cumsum([0, 1, 7, 1, 7, 2, 3, 9, 1, 1])  # up to 0.32 s
    encode(tmp_path / 'a.mkv', numbered(10), times=times)
    assert numbers(tmp_path / 'a.mkv') == list(range(10))
    assert numbers(tmp_path / 'a.mkv', 10) == [1, 3, 6, 9]
    encode(tmp_path / 'one.mp4', numbered(1), codec='libx264')
    assert numbers(tmp_path / 'one.mp4', 10) == [0]


def test_clock_that_jumps(tmp_path):
    """Frames are not repeated for an hour; where the clock starts again, it goes on."""
    times = np.arange(30) * 4
    encode(tmp_path / 'a.mkv', numbered(30), times=times + 360_000 * (times > 40))
    assert numbers(tmp_path / 'a.mkv') == list(range(30))
    with pytest.raises(Unreadable, match='at 25 frames per second, 11 of its frames would be '
                                         '90011: its clock jumps; leave out --fps'):
        numbers(tmp_path / 'a.mkv', 25)
    encode(tmp_path / 'b.ts', numbered(15), codec='mpeg2video', pix_fmt='yuv420p')
    ffmpeg('-i', tmp_path / 'b.ts', '-c', 'copy', '-output_ts_offset', '5000', tmp_path / 'c.ts')
    for first, second in ('bc', 'cb', 'bb'):
        parts = [(tmp_path / f'{name}.ts').read_bytes() for name in (first, second)]
        (tmp_path / 'd.ts').write_bytes(b''.join(parts))
        assert len(numbers(tmp_path / 'd.ts', 25)) in (29, 30)


@pytest.mark.parametrize('suffix', ['mp4', 'mkv'])
def test_video_that_starts_after_its_sound(suffix, tmp_path):
    encode(tmp_path / 'a.mkv', pattern(20), codec='libx264')
    encode(tmp_path / 'sound.mkv', pattern(1), codec='libx264', sound=True)
    source = tmp_path / f'late.{suffix}'
    ffmpeg('-i', tmp_path / 'sound.mkv', '-itsoffset', '2', '-i', tmp_path / 'a.mkv', '-map', '1:v',
           '-map', '0:a', '-c', 'copy', source)
    with av.open(os.fspath(source)) as container:
        assert container.streams.video[0].start_time * container.streams.video[0].time_base >= 1.9
    expected = frames(tmp_path / 'a.mkv', 32)
    np.testing.assert_array_equal(frames(source, 32), expected)
    np.testing.assert_array_equal(frames(source, 32, fps=25), expected)
    config = SimpleNamespace(dataset='kth', nx=32, nc=1)
    found, _ = read_video(source, config, 0, 10)
    np.testing.assert_array_equal(found, read_video(tmp_path / 'a.mkv', config, 0, 10)[0])
    assert len({frame.tobytes() for frame in found}) == 10


# Pictures

@pytest.mark.parametrize('name', [
    'cam_10-{0:02d}-{1:02d}', 'img{2} (1)', '2021-03-{0:02d}T10-00-{1:02d}', 't={0}.{1}',
    'frame_{2}_640x480', '{2}_v2', '1305031102.{3}', '{2}', 'f{4}'])
def test_pictures_are_in_natural_order(name, tmp_path):
    for t in range(24):
        title = name.format(t // 6, t % 6, t, 175304 + 33333 * t, f' ({t})' if t else '')
        write_picture(tmp_path / f'{title}.png', np.full((8, 8), 10 * t))
    assert [round(frame.mean()) for frame in frames(tmp_path, 8)] == list(range(0, 240, 10))


@pytest.mark.parametrize('names, message', [
    (['t=0.5', 't=0.25', 't=1.0'], 'numbers such as 1.10 may be decimals or not'),
    (['left_1', 'left_2', 'right_1', 'right_2'], 'left_# and right_#, .* give each a folder'),
    (['0', '1', '2', 'sheet'], '# and sheet, # for numbers, may not be of one video'),
    (['t=-1', 't=-2', 't=0', 't=1'], '# for numbers, may not be of one video'),
    (['1', '2', '02'], '2 of its pictures have the same number, 2; keep one')])
def test_order_that_is_ambiguous(names, message, tmp_path):
    for name in names:
        write_picture(tmp_path / f'{name}.png', np.zeros((8, 8)))
    with pytest.raises(Unreadable, match=message):
        frames(tmp_path, 8)


@pytest.mark.parametrize('suffix, options', [
    ('gif', {'duration': 100}), ('png', {'duration': 100}), ('tif', {}),
    ('webp', {'duration': 100, 'lossless': True})])
def test_several_pictures_in_a_file_are_a_video(suffix, options, tmp_path, run):
    for name in 'abcd':
        first, *others = [Image.new('RGB', (16, 8), (9 * t, 100, 0)) for t in range(15)]
        (tmp_path / 'in').mkdir(exist_ok=True)
        first.save(tmp_path / 'in' / f'{name}.{suffix}', save_all=True, append_images=others,
                   **options)
    assert '4 videos converted (60 frames)' in run()
    path = tmp_path / 'in' / f'a.{suffix}'
    found = frames(path, 8)
    assert abs(found[:, 4, 4, 0].astype(int) - 9 * np.arange(15)).max() < 5
    n = len(frames(path, 8, fps=5))
    assert n == (15 if suffix == 'tif' else 8)  # a stack has no rate


def test_photos_with_a_preview_are_one_picture(tmp_path):
    for name in ('a.mpo', 'a.tif', 'a.jpg'):
        first, second = (Image.new('RGB', (size, size)) for size in (16, 8))
        first.save(tmp_path / name, format='MPO' if name == 'a.jpg' else None, save_all=True,
                   append_images=[second])
        assert count_pictures(tmp_path / name) == 1


@pytest.mark.parametrize('suffix', ['ppm', 'pgm', 'jfif', 'jp2', 'bmp', 'JPG', 'none'])
def test_kinds_of_pictures(suffix, tmp_path, run):
    form = {'ppm': 'PPM', 'pgm': 'PPM', 'jp2': 'JPEG2000', 'bmp': 'BMP', 'none': 'PNG'}
    for name in 'abc':
        for t in range(3):
            picture = Image.new('L' if suffix == 'pgm' else 'RGB', (8, 8), 'white')
            (tmp_path / 'in' / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / 'in' / name / f'{t:03d}.{suffix}', form.get(suffix, 'JPEG'))
    assert '3 videos converted (9 frames)' in run()
    assert folds(tmp_path / 'out').keys() == {*'abc'}


def test_modes_of_pictures(tmp_path):
    """16 bits, CMYK, palettes, transparency, one bit; and turned by EXIF."""
    colour = Image.fromarray(pattern(1, 32, 32)[0])
    ramp = np.tile(np.arange(32, dtype=np.uint16) * 2048, (32, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    for name, image, expected, options in (
            ('a.png', Image.fromarray(ramp), np.stack([ramp >> 8] * 3, -1), {}),
            ('b.tif', Image.fromarray(ramp), np.stack([ramp >> 8] * 3, -1), {}),
            ('c.tif', colour.convert('CMYK'), colour, {}),
            ('d.png', colour.quantize(200), colour, {}),
            ('e.png', colour.convert('RGBA'), colour, {}),
            ('f.png', Image.new('1', (32, 32), 1), np.full((32, 32, 3), 255), {}),
            ('g.jpg', colour, np.rot90(np.asarray(colour), -1),
             {'exif': exif, 'quality': 95, 'subsampling': 0}),
            ('h.webp', colour.convert('RGBA'), colour, {'lossless': True})):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / name, **options)
        assert error(frames(tmp_path / name, 32)[0], expected) < 6, name


def test_pictures_that_cannot_be_read(tmp_path):
    photo, folder = tmp_path / 'a' / '1.jpg', tmp_path / 'a'
    write_picture(folder / '0.png', np.zeros((8, 8)))
    write_picture(photo, pattern(1)[0], quality=95)
    data = photo.read_bytes()
    before = frames(folder, 8)
    photo.write_bytes(data + bytes(range(250)) * 20)  # as motion photos have
    np.testing.assert_array_equal(frames(folder, 8), before)
    for content in (data[:-600], b'no picture', b''):
        photo.write_bytes(content)
        with pytest.raises(Unreadable, match='1.jpg: '):
            frames(folder, 8)
    photo.unlink()
    for kind in (np.float32, np.int32):
        Image.fromarray(np.full((8, 8), 70_000, kind)).save(folder / '1.tif')
        with pytest.raises(Unreadable, match='1.tif: images of 32 bits have no defined range'):
            frames(folder, 8)


# Sources

def test_every_file_that_holds_a_video_is_taken(tmp_path, run, monkeypatch):
    source = tmp_path / 'in'
    for suffix, options in (('ts', {'codec': 'mpeg2video', 'pix_fmt': 'yuv420p'}), ('mkv', {}),
                            ('flv', {'codec': 'flv', 'pix_fmt': 'yuv420p'})):
        encode(source / f'a.{suffix}', **options)
    (source / 'a.mkv').rename(source / 'unusual')
    for t in range(3):  # a sequence of JPEGs, which begins like a picture
        write_picture(tmp_path / f'{t}.jpg', pattern(1)[0])
    (source / 'a.mjpeg').write_bytes(b''.join((tmp_path / f'{t}.jpg').read_bytes()
                                              for t in range(3)))
    ffmpeg('-f', 'lavfi', '-i', 'sine=d=1', source / 'sound.mp4')
    (source / 'notes.txt').write_text('nothing to see')
    (source / 'list.ffconcat').write_text("ffconcat version 1.0\nfile 'a.ts'\n")
    (source / 'live.m3u8').write_text('#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n0.ts\n')
    (source / 'broken.mp4').write_bytes(b'no video')
    os.mkfifo(source / 'pipe')
    (source / 'nowhere.mp4').symlink_to(tmp_path / 'nowhere.mp4')
    for i in range(2):  # such as scans of a lidar
        (source / f'{i}.bin').write_bytes(np.random.RandomState(i).bytes(4800))
    (source / 'drawing.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    Image.new('RGB', (16, 16)).save(source / 'icon.ico')
    (source / '._a.ts').write_bytes(b'\0\5\x16\7')
    out = run(code=1)
    assert '4 videos converted (39 frames), 0 already there, 1 unreadable' in out
    assert f'unreadable: {source}/broken.mp4 (' in out
    for names, reason in (('sound.mp4', 'there is no video in it, but mov'),
                          ('list.ffconcat', 'it holds no video itself, but concat'),
                          ('live.m3u8', 'it holds no video itself, but hls'),
                          ('notes.txt', 'Invalid data found'),
                          ('nowhere.mp4', ''), ('pipe', 'it is no regular file'),
                          ('0.bin', ''), ('1.bin', ''), ('drawing.svg', ''), ('icon.ico', '')):
        assert re.search(f'left out: .*{source}/{names}.*[(]{reason}', out), names
    assert not re.search('Format not on whitelist|[.]_a', out)
    assert folds(tmp_path / 'out').keys() == {'a.ts', 'unusual', 'a.flv', 'a.mjpeg'}
    monkeypatch.chdir(source)
    os.link('a.ts', '12:30.ts')  # no address of a protocol
    for dataset in ('kth', 'folder'):
        config = SimpleNamespace(dataset=dataset, nx=8, nc=1)
        assert read_video('12:30.ts', config, 2, 3)[0].shape == (3, 8, 8, 1)
    for name in ('pipe', 'live.m3u8', 'nowhere.mp4'):
        for dataset in ('kth', 'folder', 'human'):
            with pytest.raises(UserError, match=f'{name} cannot be read as a video of'):
                read_video(source / name, SimpleNamespace(dataset=dataset, nx=8, nc=3,
                                                          subsampling=2), 0, 2)


def test_which_files_are_looked_at(tmp_path, run):
    """Links are followed once; pictures beside videos are none."""
    folder, elsewhere = tmp_path / 'in', tmp_path / 'elsewhere'
    encode(folder / 'a.avi', codec='mpeg4', pix_fmt='yuv420p')
    for name in ('.hidden/b.avi', '.c.avi', 'cover/d.avi', '../elsewhere/e.avi'):
        (folder / name).parent.mkdir(exist_ok=True)
        os.link(folder / 'a.avi', folder / name)
    write_videos(folder, 'frames', 'cover', '.')
    write_videos(folder, 'one', n_frames=1)
    (folder / 'link').symlink_to(elsewhere)
    (elsewhere / 'cycle').symlink_to(folder)
    out = run()
    assert folds(tmp_path / 'out').keys() == {'a.avi', 'frames', 'link-e.avi', 'cover-d.avi'}
    left, = [line for line in out.splitlines() if line.startswith('left out: ')]
    assert left == (f'left out: {folder}/0.png, {folder}/1.png, {folder}/cover/0.png, '
                    f'{folder}/cover/1.png, {folder}/one/0.png ({convert.PICTURE})')
    os.link(folder / 'a.avi', folder / 'cover-d.avi')
    with pytest.raises(UserError, match='would both be called cover-d.avi; rename one'):
        run()


def test_names(tmp_path, run):
    write_videos(tmp_path / 'in', os.fsdecode(b'caf\xe9'), 'a\nb', '日本', 'plain')
    assert '4 videos converted' in run()
    assert folds(tmp_path / 'out').keys() == {'caf%E9', 'a%0Ab', '日本', 'plain'}
    assert '0 videos converted (0 frames), 4 already there' in run()
    for path in (tmp_path / 'in').glob('caf*/1.png'):
        path.write_bytes(b'')
    assert f'unreadable: {tmp_path}/in/caf%E9 (1.png: ' in run('--overwrite', code=1)


def test_output_folder(tmp_path, run):
    write_videos(tmp_path / 'in', 'a', 'b', 'c')
    argv = ['--out_dir', f'{tmp_path}/in/out']
    assert '3 videos converted' in run(*argv)
    assert '0 videos converted (0 frames), 3 already there, 0 unreadable' in run(*argv)
    with pytest.raises(UserError, match='--out_dir .*/in/../in is --data_dir too; use another'):
        run('--out_dir', f'{tmp_path}/in/../in')


def test_growing_folder(tmp_path, run):
    write_videos(tmp_path / 'in', *'abcdefghij')
    (tmp_path / 'in' / 'broken.mp4').write_bytes(b'no video')
    assert '10 videos converted (20 frames), 0 already there, 1 unreadable' in run(code=1)
    before = folds(tmp_path / 'out')
    assert Counter(before.values()) >= Counter(train=8)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.npy')}
    write_videos(tmp_path / 'in', *(f'new{i}' for i in range(30)))
    (tmp_path / 'in' / 'a').rename(tmp_path / 'a')
    encode(tmp_path / 'in' / 'broken.mp4', codec='libx264')
    out = run()
    assert '31 videos converted (72 frames), 9 already there, 0 unreadable' in out
    path, = (tmp_path / 'out').glob('*/a.npy')
    after = folds(tmp_path / 'out')
    assert before.items() <= after.items() and len(after) == 41
    found = Counter(after.values())
    assert ', '.join(f'{found[fold]} in {fold}' for fold in ('train', 'val', 'test')) in out
    assert abs(found['test'] - 4) <= 1 and abs(found['val'] - 2) <= 1
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert np.load(path).shape == (2, 8, 8, 3)
    assert '40 videos converted' in run('--overwrite', '--gray')
    assert np.load(next((tmp_path / 'out').glob('*/b.npy'))).shape == (2, 8, 8)


# Folds

@pytest.mark.parametrize('names', [
    ('Train', 'Test', 'Val'), ('training', 'testing', 'validation'), ('TRAIN', 'test_set', 'dev'),
    ('walk/train', 'run/test', 'run/valid'), ('all/Train videos', 'all/Test videos', 'all/val')])
def test_folders_of_a_split_are_taken_as_they_are(names, tmp_path, run):
    train, test, val = names
    write_videos(tmp_path / 'in', *(f'{train}/{k}' for k in 'abc'), f'{test}/a', f'{test}/d',
                 f'{val}/e', 'other/f')
    assert f'left out: {tmp_path}/in/other/f (outside of the folders of the split)' in run()
    where = {f'{train}-{k}': 'train' for k in 'abc'} | {
        f'{test}-a': 'test', f'{test}-d': 'test', f'{val}-e': 'val'}
    assert folds(tmp_path / 'out') == {k.replace('/', '-'): fold for k, fold in where.items()}


def test_split_without_a_fold(tmp_path, run):
    write_videos(tmp_path / 'in', *(f'Train/{i}' for i in range(10)), 'Test/a')
    run('--val', '0.3')
    found = folds(tmp_path / 'out')
    assert Counter(found.values()) == {'train': 7, 'val': 3, 'test': 1}
    assert found['Test-a'] == 'test'
    assert '0 videos converted' in run('--val', '0.3') and folds(tmp_path / 'out') == found
    (tmp_path / 'in' / 'Test').rename(tmp_path / 'in' / 'Val')
    with pytest.raises(UserError, match='11 videos in 11 groups, of which none is left for test'):
        run('--out_dir', f'{tmp_path}/new')
    (tmp_path / 'in' / 'Val').rename(tmp_path / 'in' / 'Test')
    name = next(name for name, fold in found.items() if fold == 'val')
    write_videos(tmp_path / 'in', 'Val/new')
    with pytest.raises(UserError, match=f'{name} belongs to train, but .* to val; remove what was'):
        run()


def test_split_is_seeded():
    assign = functools.partial(convert.split, shares={'test': 0.1, 'val': 0.05})
    names = [f'v{i}' for i in range(40)]
    found = assign(names, seed=42, before={})
    assert Counter(found.values()) == {'train': 34, 'val': 2, 'test': 4}
    assert found == assign(names, seed=42, before={}) != assign(names, seed=43, before={})
    more = assign(names[5:] + [f'w{i}' for i in range(45)], seed=42, before=found)
    assert all(more[name] == found[name] for name in names[5:])
    assert Counter(more.values()) >= Counter(train=66, val=3, test=7)
    assert sorted(assign(names[:3], seed=1, before={}).values()) == ['test', 'train', 'val']


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
    with pytest.raises(UserError, match='belongs to .*, but .* of the same --group, or itself, to'):
        run('--group', 'take.')
    with pytest.raises(UserError, match='--group person finds nothing in the names of videos,'
                                        ' a-take0, .* and 9 more; use another'):
        run('--group', 'person')


@pytest.mark.parametrize('names, argv, message', [
    ([], [], 'has 0 videos in 0 groups, of which none is left for train'),
    (['a', 'b'], [], 'has 2 videos in 2 groups, of which none is left for train'),
    ([*'abcd'], ['--group', '.'], None), ([*'abcd'], ['--val', '0.9'], 'none is left for train'),
    (['x1', 'x2', 'x3'], ['--group', 'x'], 'has 3 videos in 1 group, of which')])
def test_too_few_videos(names, argv, message, tmp_path, run):
    (tmp_path / 'in').mkdir()
    write_videos(tmp_path / 'in', *names)
    if message is None:
        run(*argv)
    else:
        with pytest.raises(UserError, match=message):
            run(*argv)
        assert not (tmp_path / 'out').exists()


def test_folds_without_a_readable_video(tmp_path, run):
    (tmp_path / 'in').mkdir()
    for i in range(3):
        (tmp_path / 'in' / f'{i}.mp4').write_bytes(b'no video')
    assert f'{tmp_path}/out: 0 in train, 0 in val, 0 in test' in run(code=1)


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
    assert ('test_set_10.json: 9 clips of 10 frames, from the 3 of 4 videos that are long enough'
            in capsys.readouterr().out)
    path = tmp_path / 'test_set_10.json'
    clips = json.loads(path.read_text())['clips']
    assert Counter(name for name, _ in clips) == {'long': 4, 'longer': 4, 'exact': 1}
    assert len(set(map(tuple, clips))) == 9
    assert clips == make_test_set.draw_clips({'exact': 10, 'long': 30, 'longer': 50}, 4, 10, 42)
    assert clips != make_test_set.draw_clips({'exact': 10, 'long': 30, 'longer': 50}, 4, 10, 43)
    config = SimpleNamespace(dataset='folder', data_dir=tmp_path, nx=8, nc=3)
    testset = load_test(config, tmp_path, 8)
    assert testset.path == path and len(testset) == 9
    for i, (name, start) in enumerate(clips):
        np.testing.assert_array_equal(testset.videos([i])[:, 0], videos[name][start:start + 8])
    with pytest.raises(UserError, match='exists already; replace it with --overwrite'):
        make_test_set.main(argv)
    make_test_set.main([*argv, '--overwrite'])
    with pytest.raises(UserError, match='none of 4 videos in .*/test has 51 frames'):
        make_test_set.main([*argv, '--seq_len', '51'])
