"""A page of results that opens from disk in any browser: `build`."""

import shutil
from pathlib import Path

import jinja2

from files import UserError, make_folder, replacing, write_json
from results import default_names, lock_results, replacing_results

N_VIDEOS = 200  # shown by default
HERE = Path(__file__).parent
STATIC = {'evaluation': ['report.css', 'common.js', 'chart.js', 'evaluation.js'],
          'damage': ['report.css', 'common.js', 'chart.js', 'damage.js']}
RESULTS = ['index.html', 'report.json', *sorted({*sum(STATIC.values(), [])}), 'network.png',
           'sprites/[0-9]*.png', 'sprites/truth.png']


def build(sources, out_dir, names=None, data_dir=None, n_videos=N_VIDEOS, overwrite=False,
          testset=None):
    """Write a page of results to a folder, in place of an earlier one.

    Parameters
    ----------
    sources : list of path
        Folders with results of `test.py` or `python -m metrics` on one test set; or a single
        folder with results of `damage.py`.
    out_dir : path
    names : list of str
        Of the results; None: those of their folders.
    data_dir : path
        Folder of the dataset; None: where it was for the evaluation.
    n_videos : int
        Maximum number of videos to show, the first ones of the test set.
    overwrite : bool
        Whether to also replace files that an earlier call did not write.
    testset : object
        The test set (see `data.load_test`), if it is loaded already.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        Results are missing or damaged, or are not of the same videos.
    """
    sources = list(map(Path, sources))
    damage = any(is_damage(source) for source in sources)
    if damage and len(sources) > 1:
        raise UserError('damage is shown one run at a time; give one folder')
    out_dir = make_folder(out_dir, 'the folder of the page,')
    with lock_results(out_dir), replacing_results(
            out_dir, RESULTS, 'report.json', overwrite) as folder:
        (folder / 'sprites').mkdir()
        if damage:
            from pictures.report.damage import damage_page
            kind, content = 'damage', damage_page(folder, sources[0], names)
        else:  # imports PyTorch
            from pictures.report.evaluation import evaluation_page
            kind, content = 'evaluation', evaluation_page(
                folder, sources, names or default_names(sources), data_dir, n_videos, testset)
        for name in STATIC[kind]:
            shutil.copyfile(HERE / 'static' / name, folder / name)
        with replacing(folder / 'index.html') as tmp:
            tmp.write_text(render(kind, content), encoding='utf-8')
        write_json(folder / 'report.json', {})  # gets the list of all files
    return out_dir / 'index.html'


def is_damage(source):
    return (source / 'damage.json').exists() and not (source / 'results.json').exists()


def plain(value):
    """Text of an option or an entry of the protocol."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list):
        return ' × '.join(map(str, value))
    return '' if value is None else str(value)


def render(kind, content):
    """HTML of a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / 'templates'), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.policies['json.dumps_kwargs'] = {'allow_nan': False, 'separators': (',', ':')}
    environment.filters['plain'] = plain
    return environment.get_template(f'{kind}.html').render(scripts=STATIC[kind][1:], **content)
