"""Pages of results: what they hold, and how they work in a browser."""

import contextlib
import json
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import damage
import report
from args import load_config
from conftest import serve
from data import load_test
from files import read_npz, write_json, write_npz
from pictures.network import FOOT, RED
from pictures.report import build
from pictures.report.evaluation import find_paper, score_table
from pictures.report.sheet import Sheet, columns, numbers
from pictures.report.sources import Run, VideoFile

NT_COND, NT = 3, 8
PROTOCOL = {'dataset': 'smmnist', 'digits': 'mnist5k', 'ndigits': 2, 'max_speed': 4,
            'deterministic': False, 'test_set': 'smmnist5k_test_2digits_64.npz', 'clips': 45,
            'conditioning_frames': NT_COND, 'predicted_frames': NT - NT_COND, 'samples': 4,
            'lpips_version': '0.1', 'checkpoint': 'model.pt', 'seed': 1}


def make_results(folder, run_dir, data_dir, seed=0, roles=None, record=None, **protocol):
    """Write made-up results of an evaluation, and return the folder."""
    folder.mkdir(parents=True)
    shutil.copy(run_dir / 'config.json', folder)
    rng, protocol = np.random.RandomState(seed), {**PROTOCOL, **protocol}
    n, nt = protocol['clips'], protocol['predicted_frames']
    over_time = {f'{m}_t': rng.rand(n, nt).astype(np.float32) * scale
                 for m, scale in (('psnr', 30), ('ssim', 1), ('lpips', 0.5))}
    scores = {name[:-2]: value.mean(1) for name, value in over_time.items()}
    write_npz(folder / 'results.npz', **scores, **over_time)
    if roles is None:
        roles = ['random_1', 'random_2', 'random_3', 'random_4', 'cond_rec',
                 *(f'{m}_{end}' for m in scores for end in ('best', 'worst'))]
    # Smooth videos, as noise would take long to compress
    for role in roles:
        T = NT_COND if role == 'cond_rec' else nt
        small = rng.randint(0, 256, (n, T, 8, 8, 1), np.uint8)
        write_npz(folder / f'{role}.npz', samples=small.repeat(8, 2).repeat(8, 3))
    if 'random_2' in roles and 'ssim_best' in roles:  # one future in two roles
        shutil.copy(folder / 'random_2.npz', folder / 'ssim_best.npz')
    table = {m: {'mean': float(s.mean()), 'ci95': 0.1} for m, s in scores.items()}
    write_json(folder / 'results.json', {'scores': table, 'protocol': protocol,
                                         'data_dir': str(data_dir), **(record or {})})
    return folder


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
def results(run_dir, data_dir, tmp_path_factory):
    return make_results(tmp_path_factory.mktemp('results') / 'first', run_dir, data_dir)


@pytest.fixture(scope='module')
def other(run_dir, data_dir, tmp_path_factory):
    """Results with one future of each video, fewer scores, and nothing over time."""
    folder = make_results(tmp_path_factory.mktemp('results') / 'other', run_dir, data_dir, 1,
                          ['random_1'], samples=1, clips=50)
    scores = read_npz(folder / 'results.npz')
    write_npz(folder / 'results.npz', psnr=scores['psnr'], ssim=scores['ssim'])
    record = json.loads((folder / 'results.json').read_text())
    del record['scores']['lpips'], record['protocol']['lpips_version'], record['data_dir']
    write_json(folder / 'results.json', record)
    return folder


@pytest.fixture(scope='module')
def page(results):
    """Folder of a page of one run."""
    return build([results], results / 'report').parent


@pytest.fixture(scope='module')
def damaged(run_dir, data_dir, tmp_path_factory):
    """Folder with results of damage.py."""
    folder = tmp_path_factory.mktemp('damage')
    damage.main(['--xp_dir', str(run_dir), '--data_dir', str(data_dir), '--out_dir', str(folder),
                 '--nt_gen', str(NT), '--n_iterations', '6', '--n_damages', '40', '--n_runs', '2'])
    return folder


# What a page holds

def test_sprites_are_the_frames(page, results, run_dir, data_dir):
    data, n = read_page(page), PROTOCOL['clips']
    truth = load_test(load_config(run_dir), data_dir, NT).videos(range(n))
    tiles = data['runs'][0]['tiles']
    assert tiles.keys() == {'random_1', 'random_2', 'random_3', 'cond_rec', *(
        f'{m}_{end}' for m in ('psnr', 'ssim', 'lpips') for end in ('best', 'worst'))}
    predictions = {role: read_npz(results / f'{role}.npz')['samples'] for role in tiles}
    for i in range(n):
        frames = read_frames(page / f'sprites/{i:05d}.png', data)
        assert (frames[:NT] == truth[:, i]).all()
        for role, starts in tiles.items():
            video = predictions[role][i]
            assert (frames[starts[i]:starts[i] + len(video)] == video).all()
    assert tiles['ssim_best'] == tiles['random_2']  # kept once
    assert tiles['ssim_best'] != tiles['psnr_best']


def test_scores_and_curves_are_those_of_the_results(page, results):
    data, scores = read_page(page), read_npz(results / 'results.npz')
    run = data['runs'][0]
    assert data['videos'] == 45 and data['frames'] == NT and data['given'] == NT_COND
    for metric in ('psnr', 'ssim', 'lpips'):
        assert (np.float32(run['scores'][metric]) == scores[metric]).all()
        over_time = scores[f'{metric}_t'].astype(np.float64)
        half = 1.96 * over_time.std(0) / np.sqrt(45)
        np.testing.assert_allclose(run['curves'][metric]['mean'], over_time.mean(0), rtol=1e-5)
        np.testing.assert_allclose(run['curves'][metric]['half'], half, rtol=1e-4)
    html = (page / 'index.html').read_text()
    assert '<th scope="row">deterministic</th>\n<td>no</td>' in html
    for mean in json.loads((results / 'results.json').read_text())['scores'].values():
        assert f'{mean["mean"]:.2f}' in html


def test_numbers_keep_their_digits_and_have_no_infinity():
    values = np.random.RandomState(0).rand(1000).astype(np.float32)
    assert (np.float32(numbers(values)) == values).all()
    assert numbers(np.float32([np.inf, 0.1, np.nan])) == [None, 0.1, None]


@pytest.mark.parametrize('n, width, across', [(25, 64, 25), (100, 64, 64), (3, 5000, 1)])
def test_sheets_fit_the_memory_of_graphics(n, width, across):
    assert columns(n, width) == across


def test_sheet_wraps_and_has_colours(tmp_path):
    video = np.random.RandomState(0).randint(0, 256, (7, 6, 5, 3), np.uint8)
    sheet = Sheet(3)
    assert [sheet.add(video[:4]), sheet.add(video[4:]), sheet.add(video[:4])] == [0, 4, 0]
    sheet.write(tmp_path / 'a.png')
    frames = read_frames(tmp_path / 'a.png', {'width': 5, 'height': 6, 'across': 3})
    assert (frames[:7] == video).all() and not frames[7:].any()


def test_several_runs(results, other, tmp_path):
    build([results, other], tmp_path, ['A & B', '</script><b>'], n_videos=10)
    data, html = read_page(tmp_path), (tmp_path / 'index.html').read_text()
    assert [run['name'] for run in data['runs']] == ['A & B', '</script><b>']
    assert '<b>' not in html and 'A &amp; B' in html and '&lt;/script&gt;' in html
    assert data['videos'] == 10 == len(list(tmp_path.glob('sprites/*.png')))
    first, second = data['runs']
    assert not first['single'] and second['single'] and second['curves'] == {}
    assert second['scores'].keys() == {'psnr', 'ssim'} and second['tiles'].keys() == {'random_1'}
    video = read_npz(other / 'random_1.npz')['samples'][9]
    start = second['tiles']['random_1'][9]
    assert (read_frames(tmp_path / 'sprites/00009.png', data)[start:][:len(video)] == video).all()


def test_predictions_of_another_method(results, data_dir, tmp_path, call):
    """Results of `python -m metrics` name the files of predictions, and have no config.json."""
    rng = np.random.RandomState(0)
    np.save(tmp_path / 'a.npy', rng.randint(0, 9, (5, NT - NT_COND, 64, 64), np.uint8))
    write_npz(tmp_path / 'b.npz', x=rng.randint(0, 9, (5, NT - NT_COND, 64, 64, 1), np.uint8))
    folder = tmp_path / 'method'
    folder.mkdir()
    write_npz(folder / 'results.npz', psnr=np.float32([1, 2, 3, np.inf, 5]))
    write_json(folder / 'results.json', {
        'scores': {'psnr': {'mean': None, 'ci95': None}}, 'data_dir': str(data_dir),
        'protocol': {**PROTOCOL, 'clips': 5, 'samples': 2},
        'predictions': [str(tmp_path / 'a.npy'), str(tmp_path / 'b.npz'), 'missing.npz']})
    assert call(report.main, '--xp_dir', folder).out == f'page: {folder}/report/index.html\n'
    data = read_page(folder / 'report')
    assert data['runs'][0]['scores'] == {'psnr': [1, 2, 3, None, 5]}
    starts = data['runs'][0]['tiles']
    assert starts.keys() == {'random_1', 'random_2'}
    frames = read_frames(folder / 'report/sprites/00004.png', data)
    assert (frames[starts['random_1'][4]:][:5, ..., 0] == np.load(tmp_path / 'a.npy')[4]).all()
    assert (frames[starts['random_2'][4]:][:5] == read_npz(tmp_path / 'b.npz')['x'][4]).all()


def test_published_scores():
    protocol = {'dataset': 'kth', 'clips': 1000, 'samples': 100, 'conditioning_frames': 10,
                'predicted_frames': 30}
    scores = {'psnr': {'mean': 29.5, 'ci95': 0.3}, 'fvd': {'mean': 220., 'ci95': None}}
    run = Run('mine', None, {'scores': scores, 'protocol': protocol}, {}, {})
    table = score_table([run], find_paper([run]))
    assert [m['label'] for m in table['metrics']] == ['PSNR', 'FVD']
    assert [''.join(s) for s in table['rows'][0]['scores']] == ['29.50 ± 0.30', '220.00']
    assert [''.join(s) for s in table['rows'][1]['scores']] == ['29.69 ± 0.32', '222 ± 3']
    assert table['same']
    other_weights = {**protocol, 'samples': 1, 'fvd': {'weights': 'other'}}
    runs = [run, run._replace(record={'scores': scores, 'protocol': other_weights})]
    table = score_table(runs, find_paper(runs))
    assert table['rows'][2]['scores'][1][0] == '–' and not table['same']


def test_page_needs_neither_server_nor_network(page):
    for path in page.glob('*.*'):
        text = path.read_text()
        assert '://' not in text.replace('http://www.w3.org/2000/svg', '')
        assert not re.search(r'fetch\(|XMLHttpRequest|import |type="module"|@font-face', text)
    html = (page / 'index.html').read_text()
    for name in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert name == 'data:,' or (page / name).is_file()


def test_videos_are_read_one_after_the_other(tmp_path):
    n, shape = 200, (10, 64, 64, 1)  # 8 MB
    write_npz(tmp_path / 'a.npz', samples=np.arange(n, dtype=np.uint8)[:, None, None, None, None]
              * np.ones((n, *shape), np.uint8))
    tracemalloc.start()
    with contextlib.ExitStack() as stack:
        file = VideoFile(tmp_path / 'a.npz', stack)
        assert file.shape == (n, *shape)
        for i in range(n):
            assert (next(file) == i).all()
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


# Folders

def test_page_replaces_an_earlier_one_as_a_whole(page, results, tmp_path, call):
    out = tmp_path / 'out'
    shutil.copytree(page, out)
    (out / 'notes.txt').write_text('mine')
    before = (out / 'index.html').read_text()
    assert call(report.main, '--xp_dir', results, '--out', out, '--n_videos', 5).code == 0
    assert {p.name for p in out.glob('sprites/*')} == {f'0000{i}.png' for i in range(5)}
    assert (out / 'notes.txt').read_text() == 'mine'
    assert (out / 'index.html').read_text() != before
    names = json.loads((out / 'report.json').read_text())['files']
    assert {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()} == {*names, 'notes.txt'}
    (out / 'sprites/77777.png').write_text('mine')
    done = call(report.main, '--xp_dir', results, '--out', out)
    assert done.code == 2 and 'sprites/77777.png is not listed' in done.err
    assert (out / 'sprites/77777.png').read_text() == 'mine'
    assert call(report.main, '--xp_dir', results, '--out', out, '--overwrite').code == 0
    assert len(list(out.glob('sprites/*'))) == 45


def test_failed_call_leaves_the_earlier_page(page, results, run_dir, data_dir, tmp_path, call):
    broken = make_results(tmp_path / 'broken', run_dir, data_dir)
    data = (broken / 'psnr_best.npz').read_bytes()
    (broken / 'psnr_best.npz').write_bytes(data[:9000] + bytes(4000) + data[13000:])
    shutil.copytree(page, broken / 'report')
    done = call(report.main, '--xp_dir', broken)
    assert done.code == 2 and 'psnr_best.npz is not a file of videos' in done.err
    assert sorted(p.name for p in (broken / 'report').rglob('*')) == sorted(
        p.name for p in page.rglob('*'))


def edit(folder, **protocol):
    record = json.loads((folder / 'results.json').read_text())
    record['protocol'].update(protocol)
    write_json(folder / 'results.json', record)


def without_config(folder, **protocol):
    edit(folder, **protocol)
    (folder / 'config.json').unlink()


@pytest.mark.parametrize('change, message', [
    (lambda a, b: (a / 'results.json').unlink(), 'has no results.json; evaluate first'),
    (lambda a, b: (a / 'results.json').write_text('{}'), 'is not from an evaluation'),
    (lambda a, b: edit(a, clips='5'), 'is not from an evaluation'),
    (lambda a, b: edit(a, clips=44), 'psnr is (45,), expected (44,)'),
    (lambda a, b: (a / 'results.npz').write_bytes(b'PK'), 'is not a file of scores'),
    (lambda a, b: write_npz(a / 'results.npz', x=np.zeros(3)), 'has no scores'),
    (lambda a, b: edit(b, max_speed=5), 'with max_speed 5, '),
    (lambda a, b: edit(b, test_set='mine.npz'), 'show them on separate pages'),
    (lambda a, b: write_npz(a / 'random_1.npz', samples=np.zeros((45, 4, 64, 64, 1), np.uint8)),
     'expected 45 of (5, 64, 64, 1)'),
    (lambda a, b: write_npz(a / 'random_1.npz', samples=np.zeros((45, 5, 64, 64, 1))),
     'it holds float64'),
    (lambda a, b: [without_config(x, digits='mnist', test_set=None) for x in (a, b)],
     'smmnist_test_2digits_64.npz does not exist'),
    (lambda a, b: [without_config(x, dataset='folder') for x in (a, b)], 'has no config.json'),
])
def test_bad_results_are_told_in_a_sentence(run_dir, data_dir, tmp_path, call, change, message):
    a, b = (make_results(tmp_path / x / x, run_dir, data_dir, roles=['random_1']) for x in 'ab')
    change(a, b)
    done = call(report.main, '--xp_dir', a, b)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1
    assert not (a / 'report/index.html').exists()


def test_folder_of_the_test_set(other, results, tmp_path, data_dir, call):
    done = call(report.main, '--xp_dir', other, '--out', tmp_path)
    assert done.code == 2 and 'give it as --data_dir' in done.err
    args = ['--xp_dir', other, '--out', tmp_path, '--n_videos', 2, '--data_dir']
    assert 'does not exist' in call(report.main, *args, tmp_path / 'none').err
    assert call(report.main, *args, data_dir).code == 0
    testset = load_test(load_config(other), data_dir, NT)
    build([other], tmp_path, n_videos=1, testset=testset)  # loaded already
    assert len(list(tmp_path.glob('sprites/*'))) == 1
    gone = tmp_path / 'gone'
    shutil.copytree(results, gone, ignore=shutil.ignore_patterns('report'))
    record = json.loads((gone / 'results.json').read_text())
    write_json(gone / 'results.json', {**record, 'data_dir': str(tmp_path / 'old')})
    assert f'{tmp_path}/old, is not here; give it' in call(report.main, '--xp_dir', gone).err


def test_options(results, other, tmp_path, call):
    names = 'names for 2 results; give one each'
    assert names in call(report.main, '--xp_dir', results, other, '--names', 'a').err
    assert 'names must differ' in call(report.main, '--xp_dir', results, other, '--names', 'a',
                                       'a').err
    (tmp_path / 'damage').mkdir()
    (tmp_path / 'damage/damage.json').write_text('{}')
    assert f'--xp_dir {tmp_path}/damage' in call(report.main, '--xp_dir', tmp_path).err
    done = call(report.main, '--xp_dir', tmp_path / 'damage', results)
    assert 'damage is shown one run at a time' in done.err


# Damage

def test_page_of_damage(damaged, tmp_path):
    build([damaged], tmp_path)
    data, saved = read_page(tmp_path), read_npz(damaged / 'predictions.npz')
    assert saved['truth'].shape == (NT, 64, 64, 1) and saved['samples'].shape[:2] == (6, 5)
    assert (read_frames(tmp_path / 'sprites/truth.png', data)[:NT] == saved['truth']).all()
    for i in range(6):
        frames = read_frames(tmp_path / f'sprites/{i:05d}.png', data)
        assert (frames[:NT - NT_COND] == saved['samples'][i]).all()
    red = np.zeros(data['network']['width'] * data['network']['height'], bool)
    for i, dots in enumerate(data['network']['dots']):
        red[dots] = True
        picture = np.asarray(Image.open(damaged / f'network/{i:05d}.png'))[:-FOOT]
        assert (red == (picture == RED).ravel()).all()
    first = np.asarray(Image.open(damaged / 'network/00000.png').convert('RGB'))[:-FOOT]
    assert (np.asarray(Image.open(tmp_path / 'network.png').convert('RGB')) == first).all()
    table = np.genfromtxt(damaged / 'damage.csv', delimiter=',', names=True)
    line = data['panels'][1]['lines'][0]
    ssim = table['ssim'].reshape(2, 6)
    np.testing.assert_allclose(line['mean'], ssim.mean(0))
    np.testing.assert_allclose(line['half'], ssim.std(0), atol=1e-12)
    assert data['panels'][0]['lines'][1]['mean'][0] is None  # PSNR of equal frames
    assert data['damaged'] == table['damaged'][:6].tolist()


@pytest.mark.parametrize('name, content, message', [
    ('predictions.npz', None, 'damage.py did not save the predictions in earlier versions'),
    ('predictions.npz', b'no', 'is not a file of predictions'),
    ('damage.csv', b'run,iteration\n1,1\n', 'is not a table of damage'),
    ('damage.json', b'{}', 'lacks xp_dir'),
    ('network/00002.png', b'no', 'is not a picture of a network')])
def test_bad_damage_is_told_in_a_sentence(damaged, tmp_path, call, name, content, message):
    folder = tmp_path / 'copy'
    shutil.copytree(damaged, folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    done = call(report.main, '--xp_dir', folder)
    assert done.code == 2 and message in done.err.splitlines()[-1]


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
    """A page in a browser, from disk unless it has another address."""

    def __init__(self, browser, path, address=None):
        self.browser = browser
        browser.get('about:blank')  # an address that differs in its hash only would not be loaded
        browser.get(address or path.as_uri())
        # chromedriver may take the end of the first page's loading for that of the second
        self.wait('typeof player !== "undefined" && document.readyState === "complete"')

    def __call__(self, script, *args):
        return self.browser.execute_script(f'return {script}', *args)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return [e.text for e in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def choose(self, name, value):
        Select(self.find(f'#{name}')).select_by_value(value)

    def slide(self, name, value):
        self('(arguments[0].value = arguments[1], arguments[0].dispatchEvent(new Event("input")))',
             self.find(f'#{name}'), value)

    def click(self, selector):
        self('arguments[0].click()', self.find(selector))  # the bar may cover it

    def press(self, *pressed):
        webdriver.ActionChains(self.browser).send_keys(*pressed).perform()

    def videos(self):
        """Numbers of the videos shown."""
        return [int(text.split()[1]) for text in self.texts('article h3')]

    def wait(self, script):
        WebDriverWait(self.browser, 20).until(lambda _: self(script))

    def errors(self):
        return [e for e in self.browser.get_log('browser') if e['level'] != 'INFO']


@pytest.fixture
def opened(chromium, page):
    """Page of one run, paused at the first predicted frame."""
    opened = Page(chromium, page / 'index.html')
    opened.find('#play').click()
    opened(f'player.seek({NT_COND})')
    yield opened
    assert opened.errors() == []


def test_browser_steps_and_plays(opened):
    frame = opened.find('#frame')
    assert frame.text == f't = {NT_COND} predicted'
    opened.find('#back').click()
    assert frame.text == f't = {NT_COND - 1} given'
    assert opened('document.body.dataset.phase') == 'given'
    border = 'getComputedStyle(document.querySelector("canvas")).borderColor'
    green = opened(border)
    opened.find('#forward').click()
    assert opened(border) != green
    opened.find('body').click()
    opened.press(Keys.ARROW_RIGHT)
    assert frame.text == f't = {NT_COND + 1} predicted'
    opened.press(Keys.END)
    assert frame.text == f't = {NT - 1} predicted'
    opened.press(Keys.ARROW_RIGHT)
    assert frame.text == 't = 0 given'  # from the start
    opened.slide('scrub', 5)
    assert frame.text == 't = 5 predicted'
    opened.press('-')
    assert opened('player.fps') == 2
    opened.choose('speed', '25')
    assert opened('player.fps') == 25
    opened.find('body').click()
    opened.press(' ')
    opened.wait('player.t !== 5')
    opened.press(' ')
    assert not opened('player.playing')


def test_browser_sorts_by_any_score_in_either_direction(opened, results):
    scores = read_npz(results / 'results.npz')
    assert opened.videos() == list(range(20))
    for k, (metric, higher) in enumerate({'psnr': 1, 'ssim': 1, 'lpips': 0}.items()):
        opened.choose('score', str(k))
        for order, sign in (('best', -1), ('worst', 1)):
            opened.choose('order', order)
            key = scores[metric] * (sign if higher else -sign)
            assert opened.videos() == key.argsort(kind='stable')[:20].tolist()
    opened.find('h1').click()
    opened.press('o')
    assert opened.videos() == list(range(20))


def test_browser_filters_by_a_range(opened, results):
    psnr = read_npz(results / 'results.npz')['psnr'].astype(float)
    opened.slide('low', 40)
    opened.slide('high', 60)
    low, high = (psnr.min() + share * (psnr.max() - psnr.min()) for share in (0.4, 0.6))
    inside = np.flatnonzero((psnr >= low) & (psnr <= high)).tolist()
    assert 0 < len(inside) < 20 and opened.videos() == inside
    assert opened.find('#count').text == f'{len(inside)} of 45 videos in this range'
    assert opened.find('#range').text == f'{low:.2f} to {high:.2f} dB'
    opened.slide('high', 10)  # not below the other end
    assert opened.find('#high').get_attribute('value') == '40'
    opened.choose('score', '1')  # another score has a range of its own
    assert len(opened.videos()) == 20


def test_browser_turns_pages(opened):
    opened.click('#next')
    assert opened.videos() == list(range(20, 40))
    opened.press('n')
    assert opened.videos() == list(range(40, 45)) and not opened.find('#next').is_enabled()
    opened.press('p')
    opened.choose('page', '0')
    assert opened.videos() == list(range(20)) and not opened.find('#previous').is_enabled()


def test_browser_shows_chosen_futures(opened, page):
    tiles, last = read_page(page)['runs'][0]['tiles'], NT - 1
    captions = ['truth', 'best', 'worst', 'random 1', 'random 2', 'random 3']
    assert opened.texts('article:first-child figcaption') == captions

    def shown(t):
        return opened(f'[...drawn.values()][0].cells.map((cell) => cell.tile({t}))')

    def expected(by, t):
        roles = f'{by}_best', f'{by}_worst', 'random_1', 'random_2', 'random_3'
        return [t, *(tiles[role][0] + t - NT_COND for role in roles)]
    assert shown(last) == expected('psnr', last) and shown(1) == [1] * 6
    opened.click('#by input[value=lpips]')
    assert shown(last) == expected('lpips', last)
    assert opened.texts('article:first-child .chosen')[0].startswith('LPIPS')
    opened.press('m')
    assert shown(last) == expected('psnr', last)
    opened.click('#shown input[value=cond_rec]')
    assert shown(1) == [1, *[tiles['cond_rec'][0] + 1] * 5]
    opened.click('#shown input[value=random]')
    assert opened.texts('article:first-child figcaption') == captions[:3]
    width = 'document.querySelector("article canvas").clientWidth'
    assert opened(width) == 128
    opened.choose('zoom', '3')
    assert opened(width) == 192


def test_browser_opens_a_link_to_a_video(chromium, page):
    opened = Page(chromium, page, (page / 'index.html').as_uri() + '#video-33')
    assert opened.videos() == list(range(20, 40))
    top, bottom = opened('(({ top, bottom }) => [top, bottom])('
                         'document.getElementById("video-33").getBoundingClientRect())')
    assert 0 <= top and bottom <= opened('innerHeight')
    assert opened('document.querySelector(".linked").id') == 'video-33'
    opened.slide('low', 99)
    opened('location.hash = "#video-4"')  # shown although it is outside of the range
    opened.wait('document.querySelector(".linked")?.id === "video-4"')
    assert opened.find('#low').get_attribute('value') == '0'
    assert opened.errors() == []


def test_browser_draws_exact_frames(chromium, page, results, run_dir, data_dir):
    """Over HTTP, as scripts may not read the pixels of files."""
    with serve(page) as address:
        opened = Page(chromium, page, f'{address}index.html')
        opened.wait('document.querySelector("article.loaded")')
        truth = load_test(load_config(run_dir), data_dir, NT).videos([0])[:, 0]
        best = read_npz(results / 'psnr_best.npz')['samples'][0]
        for t in (0, NT_COND, NT - 1):
            opened(f'player.seek({t})')
            pixels = opened('[...document.querySelectorAll("article:first-child canvas")].map('
                            '(c) => [...c.getContext("2d").getImageData(0, 0, 64, 64).data])')
            frames = np.array(pixels).reshape(-1, 64, 64, 4)[..., :1]
            assert (frames[0] == truth[t]).all()
            assert (frames[1] == (truth[t] if t < NT_COND else best[t - NT_COND])).all()
        opened.errors()  # advice on reading pixels


def test_browser_shows_curves_and_moves_through_time_along_them(opened, page):
    curve = read_page(page)['runs'][0]['curves']['psnr']
    opened(f'player.seek({NT_COND + 2})')
    value = f'{curve["mean"][2]:.2f} ± {curve["half"][2]:.2f}'
    assert opened.texts('.chart:first-child .value') == [value]
    assert len(opened.texts('.chart')) == 3
    svg = opened.find('.chart svg')
    webdriver.ActionChains(opened.browser).move_to_element_with_offset(
        svg, svg.size['width'] // 2 - 20, 0).click().perform()
    assert opened('player.t') == NT - 1 and not opened('player.playing')


def test_browser_shows_several_runs_in_columns(chromium, results, other, tmp_path):
    build([results, other], tmp_path, ['A', 'B'])
    opened = Page(chromium, tmp_path / 'index.html')
    assert opened.texts('article:first-child .run') == ['A', 'B']
    a, b = (read_npz(folder / 'results.npz')['psnr'][:45] for folder in (results, other))
    names = opened.texts('#score option')
    assert names == ['PSNR of A', 'PSNR of B', 'PSNR: A − B', 'SSIM of A', 'SSIM of B',
                     'SSIM: A − B', 'LPIPS of A']
    opened.choose('order', 'best')
    opened.choose('score', '1')
    assert opened.videos() == (-b).argsort(kind='stable')[:20].tolist()
    opened.choose('score', '2')
    assert opened.videos() == (b.astype(float) - a).argsort(kind='stable')[:20].tolist()
    groups = opened('[...document.querySelectorAll("article:first-child .cells")].map('
                    '(g) => [...g.querySelectorAll("figcaption")].map((c) => c.textContent))')
    assert groups == [['truth'], ['best', 'worst', 'random 1', 'random 2', 'random 3'],
                      ['prediction']]
    assert len(opened.texts('.scores tbody tr')) == 2 and opened.errors() == []


def test_browser_moves_through_damage(chromium, damaged, tmp_path):
    build([damaged], tmp_path)
    opened = Page(chromium, tmp_path, (tmp_path / 'index.html').as_uri() + '#iteration-3')
    data = read_page(tmp_path)
    opened.find('#play').click()
    opened.wait('network.drawn === 2')
    assert opened.find('#iteration').text == 'iteration 3 of 6'
    assert opened.find('#damaged').text.startswith(f'{data["damaged"][2]} values damaged')
    opened.slide('damage', 6)
    opened.wait('damaged.image?.src.endsWith("00005.png")')
    assert opened('network.drawn') == 5
    marks = opened('[...document.querySelectorAll(".chart")].map((c) => '
                   'c.querySelector(".pointer").getAttribute("x1"))')
    assert len(marks) == 4 and len(set(marks)) == 1
    value = f'{data["panels"][2]["lines"][0]["mean"][5]:.4g}'
    assert opened.texts('.chart:nth-child(3) .value')[0].startswith(value)
    opened.find('#damage-back').click()
    opened.find('h1').click()
    chain = webdriver.ActionChains(chromium)
    chain.key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    assert opened.find('#iteration').text == 'iteration 4 of 6'
    opened.press('d')
    opened.wait('damage.t !== 3')
    assert opened.errors() == []


@pytest.mark.parametrize('width', [360, 700, 1300])
def test_browser_fits_any_width(chromium, page, width):
    opened = Page(chromium, page / 'index.html')
    try:
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
            'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500})
        assert opened('document.documentElement.scrollWidth') <= width
    finally:
        chromium.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_browser_names_every_control(opened):
    """Each control and picture has a name for screen readers."""
    unnamed = opened('''[...document.querySelectorAll('button, input, select, canvas, svg[role]')]
        .filter((e) => !e.getAttribute('aria-label') && !e.title && !e.labels?.length)
        .map((e) => e.outerHTML)''')
    assert unnamed == []


def test_browser_does_not_start_motion_that_is_not_wanted(chromium, page):
    media = {'features': [{'name': 'prefers-reduced-motion', 'value': 'reduce'}]}
    chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    try:
        opened = Page(chromium, page / 'index.html')
        assert not opened('player.playing') and opened('player.t') == NT_COND
    finally:
        chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})
    assert Page(chromium, page / 'index.html')('player.playing')
