"""Pages of results: what they hold, how they compare runs, and how they work in a browser."""

import io
import json
import re
import shutil
from types import SimpleNamespace

from files import write_json

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import report
from data import load_test
from metrics import LABELS, METRICS
from pictures import page as pages
from pictures.frames import GIVEN, PREDICTED
from pictures.network import FOOT, RED

NT_COND, NT, N = 3, 8, 45
PROTOCOL = {'size': 64, 'clips': N, 'conditioning_frames': NT_COND,
            'predicted_frames': NT - NT_COND, 'samples': 4, 'lpips_version': '0.1',
            'n_euler_steps': 1, 'seed': 1, 'baseline': None, 'checkpoint_sha256': 'a',
            'precision': 'float32'}
MNIST = {'dataset': 'smmnist', 'digit_source': 'mnist5k', 'ndigits': 2, 'max_speed': 4,
         'deterministic': False, 'test_set': 'smmnist5k_test_2digits_64.npz'}
KTH = {'dataset': 'kth', 'test_set': 'svg_test_set_40.npz', 'clips': 20, 'samples': 100,
       'conditioning_frames': 10, 'predicted_frames': 30}
FVD = {'fvd_samples': 5, 'fvd_weights_sha256': 'w', 'fvd_note': None}
ALL = ['psnr', 'ssim', 'lpips']
CONFIG = SimpleNamespace(**MNIST, nx=64)  # of the test set


def make_results(folder, data_dir=None, seed=0, metrics=ALL, fvd=None, **protocol):
    """Write made-up results of an evaluation, with videos if there is a test set."""
    folder.mkdir(parents=True)
    dataset = {} if 'dataset' in protocol else MNIST
    rng, protocol = np.random.RandomState(seed), {**dataset, **PROTOCOL, **protocol}
    n, nt = protocol['clips'], protocol['predicted_frames']
    scores = {}
    for metric in metrics:
        scores[f'{metric}_t'] = rng.rand(n, nt).astype(np.float32) + 1
        scores[metric] = scores[f'{metric}_t'].mean(1)
    np.savez(folder / 'results.npz', **scores)
    table = {m: {'mean': 25.123456, 'ci95': 0.123456} for m in metrics}
    if fvd is not None:
        protocol |= FVD | fvd
        table['fvd'] = {'mean': 300.5, 'ci95': None}
    if data_dir is not None:
        roles = ['random_1']
        if protocol['samples'] > 1:
            roles += ['random_2', 'random_3', 'random_4', 'cond_rec',
                      *(f'{m}_{end}' for m in metrics for end in ('best', 'worst'))]
        for role in roles:  # smooth videos, as noise would take long to compress
            T = protocol['conditioning_frames'] if role == 'cond_rec' else nt
            small = rng.randint(0, 256, (n, T, 8, 8, 1), np.uint8)
            np.savez_compressed(folder / f'{role}.npz', samples=small.repeat(8, 2).repeat(8, 3))
    write_json(folder / 'results.json', {'scores': table, 'protocol': protocol, 'channels': 1,
                                         'data_dir': data_dir and str(data_dir)})
    return folder


def make_damage(folder):
    """Write made-up results of damage.py: 6 iterations in 2 runs."""
    rng = np.random.RandomState(0)
    (folder / 'network').mkdir(parents=True)
    truth = rng.randint(0, 256, (NT, 64, 64, 1)).astype(np.uint8)
    samples = rng.randint(0, 256, (6, NT - NT_COND, 64, 64, 1)).astype(np.uint8)
    np.savez(folder / 'predictions.npz', truth=truth, samples=samples)
    rows = [f'{run},{10 * i},{i / 1000},{20 - i}\n' for run in (1, 2) for i in range(6)]
    (folder / 'damage.csv').write_text(''.join(['run,damaged,share,psnr\n', *rows]))
    canvas = rng.randint(0, 254, (400, 900)).astype(np.uint8)
    for i in range(6):
        canvas[40 * i + 10, 17:17 + i] = RED
        picture = Image.fromarray(canvas)
        picture.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
        picture.save(folder / 'network' / f'{i:05d}.png')
    picture.save(folder / 'damage.png')
    write_json(folder / 'damage.json', {'xp_dir': 'runs/mine', 'video': None, 'index': 7,
                                        'n_runs': 2, 'fresh_noise': False})
    return folder


def samples(folder, role):
    with np.load(folder / f'{role}.npz') as file:
        return file[file.files[0]]


def read_page(folder):
    """Data of the scripts of a page."""
    html = (folder / 'index.html').read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])


def read_frames(path, data):
    """Frames uint8 (K, H, W, C) of a sprite picture, some black ones at the end included."""
    picture, H, W = np.asarray(Image.open(path)), data['height'], data['width']
    rows = picture.reshape(picture.shape[0] // H, H, data['across'], W, -1)
    return rows.swapaxes(1, 2).reshape(-1, H, W, rows.shape[-1])


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """Folder of a test set."""
    folder = tmp_path_factory.mktemp('data')
    videos = np.random.RandomState(0).randint(0, 256, (NT, N, 64, 64)).astype(np.uint8)
    np.savez(folder / MNIST['test_set'], sequences=videos)
    return folder


@pytest.fixture(scope='module')
def results(data_dir, tmp_path_factory):
    return make_results(tmp_path_factory.mktemp('results') / 'first', data_dir)


@pytest.fixture(scope='module')
def page(results):
    """Folder of a page of one run."""
    report.main([str(results)])
    return results / 'report'


# What a page holds

def test_page_has_the_frames_and_scores_of_the_results(page, results, data_dir):
    data = read_page(page)
    truth = load_test(CONFIG, data_dir, NT).videos(range(N))
    tiles = data['runs'][0]['tiles']
    assert tiles.keys() == {'random_1', 'random_2', 'random_3', 'cond_rec', *(
        f'{m}_{end}' for m in ALL for end in ('best', 'worst'))}
    predicted = {role: samples(results, role) for role in tiles}
    for i in range(N):
        frames = read_frames(page / f'sprites/{i:05d}.png', data)
        assert (frames[:NT] == truth[:, i]).all()
        for role, starts in tiles.items():
            video = predicted[role][i]
            assert (frames[starts[i]:starts[i] + len(video)] == video).all()
    with np.load(results / 'results.npz') as scores:
        for metric in ALL:
            assert (np.float32(data['runs'][0]['scores'][metric]) == scores[metric]).all()
    html = (page / 'index.html').read_text()
    assert '<b>25.12</b> <span class="half">± 0.12</span>' in html
    assert '<b>25.1235</b> <span class="half">± 0.1235</span>' in html
    assert '<th>max speed</th><td>4</td>' in html and '<th>baseline</th>' not in html


def test_made_up_dataset_in_colour_and_made_up_metric(tmp_path, monkeypatch):
    """Equal futures are kept once; infinite scores are no numbers of JSON."""
    for registry in METRICS, LABELS:
        monkeypatch.setitem(registry, 'error', type('Error', (), {
            'label': 'Error', 'unit': 'px', 'digits': 1, 'higher_is_better': False}))
    folder = make_results(tmp_path / 'run', metrics=['psnr', 'error'], dataset='made_up', clips=2,
                          conditioning_frames=1, predicted_frames=2, test_set='t')
    with np.load(folder / 'results.npz') as file:
        scores = {**file, 'psnr': np.float32([np.inf, 0.1])}
    np.savez(folder / 'results.npz', **scores)
    rng = np.random.RandomState(0)
    video = rng.randint(0, 256, (2, 2, 5, 2000, 3)).astype(np.uint8)  # two frames in a row
    for role in ('random_1', 'error_best', 'psnr_best'):
        np.savez(folder / f'{role}.npz', samples=255 - video if role == 'psnr_best' else video)
    truth = rng.randint(0, 256, (3, 2, 5, 2000, 3)).astype(np.uint8)
    testset = SimpleNamespace(videos=lambda indices: truth[:, list(indices)],
                              name=lambda i: f'clip <{i}>')
    pages.write_evaluation([pages.read_run(folder, 'a')], tmp_path / 'page', testset=testset)
    data = read_page(tmp_path / 'page')
    frames = read_frames(tmp_path / 'page/sprites/00001.png', data)
    tiles = data['runs'][0]['tiles']
    assert tiles['random_1'] == tiles['error_best'] and len(frames) == 8 and data['across'] == 2
    assert (frames[:3] == truth[:, 1]).all() and (frames[tiles['psnr_best'][1]:][:2]
                                                  == 255 - video[1]).all()
    assert data['names'] == ['clip <0>', 'clip <1>']
    assert data['runs'][0]['scores']['psnr'] == [None, 0.1]
    assert data['metrics'][-1] == {'key': 'error', 'label': 'Error', 'digits': 1, 'higher': False}
    assert '<b>25.1</b>' in (tmp_path / 'page/index.html').read_text()


def test_predictions_of_another_method(data_dir, tmp_path, call):
    """Results of `python -m metrics` name the files of predictions."""
    rng = np.random.RandomState(0)
    folder = make_results(tmp_path / 'method', metrics=['psnr'], clips=5, samples=2)
    videos = rng.randint(0, 9, (2, 5, NT - NT_COND, 64, 64), np.uint8)
    np.save(tmp_path / 'a.npy', videos[0])
    np.savez(tmp_path / 'b.npz', x=videos[1, ..., None])
    record = json.loads((folder / 'results.json').read_text())
    write_json(folder / 'results.json', {**record, 'data_dir': str(data_dir), 'predictions': [
        str(tmp_path / 'a.npy'), str(tmp_path / 'b.npz'), 'missing.npz']})
    done = call(report.main, folder, '--n_videos', 3)
    assert done.out == f'page: {folder}/report/index.html\n'
    data = read_page(folder / 'report')
    assert data['videos'] == 3 == len(list(folder.glob('report/sprites/*')))
    assert data['runs'][0]['tiles'].keys() == {'random_1', 'random_2'}
    frames = read_frames(folder / 'report/sprites/00002.png', data)
    for k in (0, 1):
        start = data['runs'][0]['tiles'][f'random_{k + 1}'][2]
        assert (frames[start:][:5, ..., 0] == videos[k, 2]).all()


def test_page_of_damage(tmp_path, call):
    folder = make_damage(tmp_path / 'damage')
    assert call(report.main, folder).out == f'page: {folder}/report/index.html\n'
    out, html = folder / 'report', (folder / 'report/index.html').read_text()
    data = read_page(out)
    with np.load(folder / 'predictions.npz') as file:
        truth, predicted = file['truth'], file['samples']
    assert (read_frames(out / 'sprites/truth.png', data)[:NT] == truth).all()
    intact = np.asarray(Image.open(folder / 'network/00000.png').convert('RGB'))[:-FOOT]
    assert (np.asarray(Image.open(out / 'sprites/network.png').convert('RGB')) == intact).all()
    for i in range(6):
        frames = read_frames(out / f'sprites/{i:05d}.png', data)
        assert (frames[:NT_COND] == truth[:NT_COND]).all()
        assert (frames[NT_COND:NT] == predicted[i]).all()
        red = np.asarray(Image.open(folder / f'network/{i:05d}.png'))[:-FOOT] == RED
        layer = np.asarray(Image.open(out / f'sprites/network_{i:05d}.png').convert('RGBA'))
        assert (layer[red] == (255, 0, 0, 255)).all() and not layer[~red][:, 3].any()
    assert data['captions'][2] == '20 values damaged (0.2%), PSNR 18.00 dB'
    assert '<h1>Damage to mine</h1>' in html and 'Mean over 2 runs' in html
    assert '<th>index</th><td>7</td>' in html and '<th>video</th>' not in html


def test_page_needs_neither_server_nor_network(page):
    html = (page / 'index.html').read_text()
    assert {p.name for p in page.iterdir()} == {'index.html', 'curves.png', 'sprites'}
    assert '://' not in html
    assert not re.search(r'fetch\(|XMLHttpRequest|import |type="module"|@font-face', html)
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', html)) == {'data:,', 'curves.png'}


# Folders

def test_page_replaces_a_page_but_nothing_else(page, results, tmp_path, call):
    out, broken = tmp_path / 'out', tmp_path / 'broken'
    shutil.copytree(page, out)
    assert call(report.main, results, '--out_dir', out, '--n_videos', 5).code == 0
    assert {p.name for p in out.glob('sprites/*')} == {f'0000{i}.png' for i in range(5)}
    shutil.copytree(results, broken, ignore=shutil.ignore_patterns('report'))
    data = (broken / 'psnr_best.npz').read_bytes()
    (broken / 'psnr_best.npz').write_bytes(data[:9000] + bytes(4000) + data[13000:])
    done = call(report.main, broken, '--out_dir', out)  # fails half-way
    assert done.code == 2 and 'psnr_best.npz is not a .npy or .npz file of videos' in done.err
    assert len(list(out.glob('sprites/*'))) == 5 and not list(tmp_path.glob('.page*'))
    (out / 'notes.txt').write_text('mine')
    done = call(report.main, results, '--out_dir', out)
    assert done.code == 2 and f'{out} holds notes.txt, which is not of a page' in done.err
    done = call(report.main, results, '--out_dir', broken)
    assert done.code == 2 and 'holds cond_rec.npz, which is not of a page' in done.err
    assert call(report.main, results, '--out_dir', out, '--overwrite', '--n_videos', 2).code == 0
    assert len(list(out.glob('sprites/*'))) == 2 and (out / 'notes.txt').read_text() == 'mine'


def test_folder_of_the_test_set(results, data_dir, tmp_path, call):
    gone = tmp_path / 'gone'
    shutil.copytree(results, gone, ignore=shutil.ignore_patterns('report'))
    record = json.loads((gone / 'results.json').read_text())
    write_json(gone / 'results.json', {**record, 'data_dir': str(tmp_path / 'old')})
    done = call(report.main, gone)
    assert done.code == 2 and f'is not in {tmp_path}/old; give its folder as --data' in done.err
    assert call(report.main, gone, '--n_videos', 0).code == 0  # scores and curves alone
    assert not list(gone.glob('report/sprites/*')) and 'script' not in (
        gone / 'report/index.html').read_text()
    assert call(report.main, gone, '--n_videos', 1, '--data_dir', data_dir).code == 0
    record['protocol']['test_set'] = 'another.npz'
    write_json(gone / 'results.json', record)
    done = call(report.main, gone)
    assert done.code == 2 and 'test set, 45 videos of another.npz, is not in' in done.err


# Comparisons

@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function that writes results on KTH of a name, without videos; relative paths."""
    monkeypatch.chdir(tmp_path)
    return lambda name, **changes: make_results(tmp_path / name, **{**KTH, **changes})


def compare(call, *names, more=()):
    return call(report.main, *names, '--out_dir', 'page', '--n_videos', 0, *more)


def test_table_next_to_the_published_scores(make, tmp_path, call):
    make('ours', fvd={}), make('other|5%', metrics=ALL[:2], samples=1, lpips_version=None)
    done = compare(call, 'ours', 'other|5%')
    rows = ['| method | samples | PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓ |',
            '| --- | ---: | ---: | ---: | ---: | ---: |',
            '| ours | 100 | 25.12 ± 0.12 | 25.1235 ± 0.1235 | 25.1235 ± 0.1235 | 300.50 |',
            r'| other\|5% | 1 | 25.12 ± 0.12 | 25.1235 ± 0.1235 | – | – |',
            f'| {pages.PAPER} | 100 | 29.69 ± 0.32 | 0.8697 ± 0.0046 | 0.0736 ± 0.0029 | 222 ± 3 |']
    text = (tmp_path / 'page/table.md').read_text()
    assert '\n'.join(rows) in text and done.code == 0 and text in done.out
    assert 'kth: 20 videos of 64 x 64, 10 conditioning and 30 predicted frames' in text
    assert f'{pages.PAPER}: 1,000 videos.' in text
    html = (tmp_path / 'page/index.html').read_text()
    assert '<h1>KTH</h1>' in html and 'are not comparable' in html and 'over samples' in html
    assert '<b>222</b> <span class="half">± 3</span>' in html
    with Image.open(tmp_path / 'page/curves.png') as picture:
        assert picture.width > 1500
    assert compare(call, 'ours').code == 0  # of one run, without the table of two
    assert not (tmp_path / 'page/table.md').exists()


def test_published_scores_are_of_the_same_lengths_and_weights(make, call):
    make('a', predicted_frames=20), make('b', predicted_frames=20)
    assert pages.PAPER not in compare(call, 'a', 'b').out
    fvd = {'fvd_note': 'not comparable'}
    make('c', fvd=fvd), make('d', fvd=fvd)
    out = compare(call, 'c', 'd').out
    assert '0.0736 ± 0.0029 | – |' in out and '(not comparable)' in out


@pytest.mark.parametrize('changes, message', [
    ({'clips': 21}, 'b was evaluated with clips 21, a with 20: they cannot be compared'),
    ({'test_set': 'x'}, 'b was evaluated with test set x, a with svg_test_set_40.npz'),
    ({'predicted_frames': 20}, 'b was evaluated with predicted frames 20, a with 30'),
    ({'precision': 'bfloat16'}, 'precision bfloat16'),
    ({'lpips_version': '0.0'}, 'lpips version 0.0'),
    ({'fvd': {'fvd_weights_sha256': 'v'}}, 'c was evaluated with fvd weights sha256 w, b with v'),
    ({'samples': 10}, 'b was evaluated with samples 10, a with 100')])
def test_protocols_that_differ_are_refused(changes, message, make, tmp_path, call):
    make('a'), make('b', **changes), make('c', fvd={})
    done = compare(call, 'a', 'b', 'c')
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / 'page').exists()


def test_names_and_what_is_missing(make, tmp_path, call):
    make('a'), make('x/a')
    for names in (['one'], ['one', 'one']):
        done = compare(call, 'a', 'x/a', more=['--names', *names])
        assert done.code == 2 and '2 different names are needed' in done.err
    assert '| x/a | 100 |' in compare(call, 'a', 'x/a').out  # equal names of folders: paths
    assert '| A & B | 100 |' in compare(
        call, 'a', 'x/a', more=['--names', 'A & B', '</script><b>']).out
    html = (tmp_path / 'page/index.html').read_text()
    assert 'A &amp; B' in html and '</script><b>' not in html
    assert 'nowhere/results.json: No such file' in compare(call, 'a', 'nowhere').err
    (tmp_path / 'a/results.npz').write_bytes(b'PK')
    assert 'a/results.npz is not a file of scores' in compare(call, 'a').err


# In a browser

@pytest.fixture(scope='module')
def chromium():
    """Headless Chromium, driven by selenium."""
    names = 'chromium', 'chromium-browser', 'google-chrome'
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which('chromedriver')
    if binary is None or driver is None:
        pytest.skip('no Chromium with chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage',
                 'window-size=1300,1000'):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """A page in a browser, opened from disk and paused."""

    def __init__(self, browser, folder, link=''):
        self.browser = browser
        browser.get('about:blank')  # an address that differs in its hash only would not be loaded
        browser.get((folder / 'index.html').as_uri() + link)
        self.wait('typeof player !== "undefined" && document.readyState === "complete"')
        self.started = self('player.timer !== null')
        self('player.pause()')

    def __call__(self, script):
        return self.browser.execute_script(f'return {script}')

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return [e.text for e in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def choose(self, name, value):
        Select(self.find(f'#{name}')).select_by_value(str(value))

    def slide(self, name, value):
        self(f'({name} => ({name}.value = {value}, {name}.oninput()))($("{name}"))')

    def click(self, selector):
        self(f'document.querySelector("{selector}").click()')  # the bar may cover it

    def videos(self):
        """Numbers of the videos shown."""
        return [int(text.split()[1]) for text in self.texts('article h3')]

    def views(self):
        """What is shown of the first video, each frame (64, 64)."""
        found = []
        self('document.querySelector("article").scrollIntoView()')  # not behind the bar
        for view in self.browser.find_elements(By.CSS_SELECTOR, 'article:first-child .view'):
            with Image.open(io.BytesIO(view.screenshot_as_png)) as picture:
                found.append(np.asarray(picture)[3:-3:2, 3:-3:2, 0])
        return found

    def wait(self, script):
        WebDriverWait(self.browser, 20).until(lambda _: self(script))


@pytest.fixture
def open_page(chromium):
    """Function that opens a page, which must not complain."""
    yield lambda folder, link='': Page(chromium, folder, link)
    assert [e for e in chromium.get_log('browser') if e['level'] != 'INFO'] == []


def test_browser_steps_and_plays(open_page, page):
    opened = open_page(page)
    opened.slide('time', NT_COND)
    frame, border = opened.find('#frame'), 'getComputedStyle(document.querySelector(".view"))'
    assert opened.started and frame.text == f't = {NT_COND} predicted'
    assert opened(f'{border}.borderColor') == f'rgb{PREDICTED}'
    opened.find('#back').click()
    assert frame.text == f't = {NT_COND - 1} given'
    assert opened(f'{border}.borderColor') == f'rgb{GIVEN}'
    opened.slide('time', NT - 1)
    opened.find('#forward').click()
    assert frame.text == 't = 0 given'  # from the start
    opened.choose('speed', 25)
    opened.find('#play').click()
    opened.wait('player.t > 2')
    opened.find('#play').click()
    assert opened('player.timer') is None and opened('player.fps') == 25


def test_browser_turns_pages_and_follows_links(open_page, page):
    opened = open_page(page, '#video-33')
    assert opened.videos() == list(range(20, 40))
    top, bottom = opened('(({ top, bottom }) => [top, bottom])('
                         '$("video-33").getBoundingClientRect())')
    assert 0 <= top and bottom <= opened('innerHeight')
    assert opened('document.querySelector(".linked").id') == 'video-33'
    opened.click('#next')
    assert opened.videos() == list(range(40, 45)) and not opened.find('#next').is_enabled()
    opened.choose('page', 0)
    assert opened.videos() == list(range(20)) and not opened.find('#previous').is_enabled()
    opened('location.hash = "#video-44"')
    opened.wait('document.querySelector(".linked")?.id === "video-44"')


def test_browser_shows_exact_frames_of_chosen_futures(open_page, page, results, data_dir):
    opened = open_page(page)
    truth = load_test(CONFIG, data_dir, NT).videos([0])[:, 0, ..., 0]
    captions = ['truth', 'best', 'worst', 'random 1', 'random 2', 'random 3']
    assert opened.texts('article:first-child figcaption') == captions

    def check(t, *roles):
        opened.slide('time', t)
        shown = [truth[t], *(samples(results, role)[0, t - start, ..., 0]
                             for role, start in roles)]
        found = opened.views()
        assert len(found) == len(shown)
        assert all((a == b).all() for a, b in zip(found, shown))
    random = [(f'random_{k}', NT_COND) for k in (1, 2, 3)]
    check(NT - 1, ('psnr_best', NT_COND), ('psnr_worst', NT_COND), *random)
    opened.click('#by input[value=lpips]')
    check(NT_COND, ('lpips_best', NT_COND), ('lpips_worst', NT_COND), *random)
    opened.click('#shown input[value=random]')
    opened.click('#shown input[value=cond_rec]')
    check(1, ('cond_rec', 0), ('cond_rec', 0))
    opened.choose('zoom', 3)
    assert opened('document.querySelector("article .view").clientWidth') == 192


def test_browser_shows_and_sorts_several_runs(open_page, results, data_dir, tmp_path):
    """The second one has one future of each video, and fewer scores."""
    other = make_results(tmp_path / 'other', data_dir, 1, ALL[:2], samples=1, lpips_version=None)
    report.main([str(results), str(other), '--names', 'A', 'B', '--out_dir', str(tmp_path / 'x')])
    opened = open_page(tmp_path / 'x')
    assert opened.texts('article:first-child .run') == ['A', 'B']
    with np.load(results / 'results.npz') as first, np.load(other / 'results.npz') as second:
        a, b, lpips = (x.astype(float) for x in (first['psnr'], second['psnr'], first['lpips']))
    assert opened.texts('#score option') == [
        'PSNR of A', 'PSNR of B', 'PSNR: A − B', 'SSIM of A', 'SSIM of B', 'SSIM: A − B',
        'LPIPS of A']
    assert opened.videos() == list(range(20))
    for choice, order, key in ((1, 'best', -b), (1, 'worst', b), (2, 'best', b - a),
                               (6, 'best', lpips), (6, 'worst', -lpips)):
        opened.choose('score', choice)
        opened.choose('order', order)
        assert opened.videos() == key.argsort(kind='stable')[:20].tolist()
    groups = opened('[...document.querySelectorAll("article:first-child .cells")].map('
                    '(g) => [...g.querySelectorAll("figcaption")].map((c) => c.textContent))')
    assert groups == [['truth'], ['best', 'worst', 'random 1', 'random 2', 'random 3'],
                      ['prediction']]


def test_browser_moves_through_damage(open_page, tmp_path):
    folder = make_damage(tmp_path / 'damage')
    report.main([str(folder)])
    opened = open_page(folder / 'report', '#iteration-3')
    assert opened.find('#iteration').text == 'iteration 3 of 6'
    assert opened.find('#damaged').text.startswith('20 values damaged')
    assert opened.texts('figcaption') == ['damaged', 'truth', 'intact']
    opened.slide('damage', 6)
    opened.wait('cells[0].view.style.getPropertyValue("--sheet").includes("00005.png")')
    opened.wait('$("network").complete')
    assert opened('$("network").src').endswith('sprites/network_00005.png')
    opened.find('#damage-back').click()
    assert opened.find('#iteration').text == 'iteration 5 of 6'
    opened.find('#damage-play').click()
    opened.wait('damage.t < 4')  # from the start again


def test_browser_of_a_telephone_and_of_a_reader_without_motion(open_page, chromium, page):
    emulate = chromium.execute_cdp_cmd
    emulate('Emulation.setDeviceMetricsOverride', {
        'width': 360, 'height': 800, 'deviceScaleFactor': 1, 'mobile': True})
    emulate('Emulation.setEmulatedMedia', {'features': [
        {'name': 'prefers-reduced-motion', 'value': 'reduce'}]})
    try:
        opened = open_page(page)
        assert opened('document.documentElement.scrollWidth') <= 360 and not opened.started
        unnamed = '''[...document.querySelectorAll('button, input, select, img, [role]')].filter(
            (e) => !e.ariaLabel && !e.title && !e.alt && !e.labels?.length)'''
        assert opened(f'{unnamed}.map((e) => e.outerHTML)') == []
    finally:
        emulate('Emulation.clearDeviceMetricsOverride', {})
        emulate('Emulation.setEmulatedMedia', {'features': []})
