"""Pages of results, which open from disk in any browser: of evaluations, and of damage.

A page is a folder with `index.html`, `curves.png` and, in `sprites/`, a picture for each video
that holds all its frames, without loss.
"""

import contextlib
import csv
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from files import UserError, progress_bar, read_json, reading, remove

import jinja2
import numpy as np
from PIL import Image

from args import find_published, published_scores
from data import load_test
from data.video import VideoFile
from evaluation.scoring import score_text
from metrics import LABELS, METRICS
from pictures import charts
from pictures.frames import GIVEN, PREDICTED
from pictures.network import FOOT, RED

N_VIDEOS, PER_PAGE = 200, 20  # videos on a page by default, and at a time
N_RANDOM = 3                  # futures shown besides the best and the worst one
MAX_WIDTH = 4096              # of a sprite picture, in pixels: what small devices can show
PAPER = 'SRVP, as published'
PARTS = ['index.html', 'curves.png', 'table.md', 'sprites']
MARK = '<meta name="generator" content="srvp">'  # of a page that may be replaced


# Evaluations

class Run(NamedTuple):
    """Results of `test.py` or `python -m metrics`."""
    name: str
    folder: Path
    record: dict    # results.json
    protocol: dict  # what the scores depend on
    scores: dict    # results.npz: arrays (N,) by metric, and (N, nt) by <metric>_t


def read_run(folder, name):
    record = read_json(folder / 'results.json')
    with reading(folder / 'results.npz', 'is not a file of scores', 'evaluate again'), \
            np.load(folder / 'results.npz', allow_pickle=False) as file:
        return Run(name, folder, record, record['protocol'], dict(file))


def score_table(runs, paper):
    """Names of metrics, and rows (dicts) of scores, texts by metric.

    The last row may be that of the published evaluation `paper` (see `args.find_published`), with
    those scores that can be compared with all runs.
    """
    names = [name for name in LABELS if any(name in run.record['scores'] for run in runs)]
    rows = []
    for run in runs:
        scores = {name: score_text(name, score) for name, score in run.record['scores'].items()}
        rows.append({'name': run.name, 'videos': run.protocol['clips'],
                     'samples': run.protocol['samples'], 'scores': scores})
    known = min((published_scores(run.protocol) for run in runs), key=len)
    if known.keys() & names:
        rows.append({'name': PAPER, 'videos': paper['n_videos'], 'samples': paper['n_samples'],
                     'scores': known})
    return names, rows


def markdown(runs, names, rows):
    """Table of the scores in Markdown, and what was compared."""
    heads = ['method', 'samples']
    heads += [f'{LABELS[name].label} {"↓↑"[LABELS[name].higher_is_better]}' for name in names]
    lines = [heads, ['---'] + ['---:'] * (len(heads) - 1)]
    for row in rows:
        lines.append([row['name'].replace('|', r'\|'), str(row['samples']),
                      *(row['scores'].get(name, '–') for name in names)])
    p = runs[0].protocol
    text = (f'{p["dataset"]}: {p["clips"]:,} videos of {p["size"]} x {p["size"]}, '
            f'{p["conditioning_frames"]} conditioning and {p["predicted_frames"]} predicted '
            'frames; mean and 95% interval over videos of the best sample of each')
    if 'fvd' in names:
        text += '; FVD: mean and 95% interval over samples'
        if note := next(run.protocol['fvd_note'] for run in runs if 'fvd_note' in run.protocol):
            text += f' ({note})'
    if rows[-1]['videos'] != p['clips']:
        text += f'; {PAPER}: {rows[-1]["videos"]:,} videos'
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + f'\n\n{text}.\n'


def load_truth(runs, data_dir):
    """Test set of the evaluations."""
    record, protocol = runs[0].record, runs[0].protocol
    data_dir = Path(data_dir or record['data_dir'])
    if data_dir.is_dir():
        # All that a test set depends on, under the names of a configuration
        config = SimpleNamespace(**protocol, nx=protocol['size'], nc=record['channels'])
        nt = protocol['conditioning_frames'] + protocol['predicted_frames']
        testset = load_test(config, data_dir, nt)
        if testset.path.name == protocol['test_set'] and len(testset) >= protocol['clips']:
            return testset
    raise UserError(f'the test set, {protocol["clips"]:,} videos of {protocol["test_set"]}, is not '
                    f'in {data_dir}; give its folder as --data_dir, or leave the videos out with '
                    '--n_videos 0')


def predictions(run):
    """Files of the videos that a run predicted, by role.

    A single future has the role random_1; files of another method are read where they were.
    """
    paths = {f'random_{k + 1}': Path(path)
             for k, path in enumerate(run.record.get('predictions', [])[:N_RANDOM])}
    if not paths:
        roles = [f'random_{k + 1}' for k in range(N_RANDOM)] + ['cond_rec']
        if run.protocol['samples'] > 1:
            roles += [f'{metric}_{end}' for metric in METRICS for end in ('best', 'worst')]
        paths = {role: run.folder / f'{role}.npz' for role in roles}
    return {role: VideoFile(path) for role, path in paths.items() if path.exists()}


def write_evaluation(runs, out_dir, data_dir=None, n_videos=N_VIDEOS, overwrite=False,
                     testset=None):
    """Write a page of runs on one test set, in place of an earlier page, and return its path.

    It shows the first `n_videos` videos of the test set, which is `testset` (see `data.load_test`),
    or in `data_dir`, or where it was.
    """
    protocol, paper = runs[0].protocol, find_published(runs[0].protocol)
    given, n = protocol['conditioning_frames'], min(n_videos, protocol['clips'])
    if n > 0 and testset is None:
        testset = load_truth(runs, data_dir)
    names, rows = score_table(runs, paper)
    metrics = [{'key': name, 'label': LABELS[name].label, 'digits': LABELS[name].digits,
                'higher': LABELS[name].higher_is_better} for name in names]
    columns = [{'name': run.name, 'colour': charts.COLOURS[k % len(charts.COLOURS)],
                'single': run.protocol['samples'] == 1, 'tiles': {},
                'scores': {name: [float(str(score)) if np.isfinite(score) else None
                                  for score in run.scores[name][:n]]  # with few digits
                           for name in METRICS if name in run.scores}}
               for k, run in enumerate(runs)]
    data = {'videos': n, 'perPage': PER_PAGE, 'given': given, 'runs': columns,
            'metrics': [metric for metric in metrics if metric['key'] in METRICS],
            'frames': given + protocol['predicted_frames']}
    with new_page(out_dir, overwrite) as folder:
        if len(runs) > 1:
            (folder / 'table.md').write_text(markdown(runs, names, rows), encoding='utf-8')
        known = rows[-1]['scores'] if len(rows) > len(runs) else {}
        levels = {PAPER: {name: float(text.split()[0]) for name, text in known.items()}}
        charts.score_curves(folder / 'curves.png', {run.name: run.scores for run in runs}, given,
                            levels)
        if n > 0:
            data |= layout(testset.videos([0])[:, 0])
            data['names'] = [testset.name(i) for i in range(n)]
            videos = [predictions(run) for run in runs]
            for column, futures in zip(columns, videos):
                column['tiles'] = {role: [] for role in futures}  # numbers of first frames
            for i in progress_bar(range(n), 'page', unit='video'):
                frames, first = [*testset.videos([i])[:, 0]], {}
                for column, futures in zip(columns, videos):
                    for role, file in futures.items():
                        video, = file.read(1)
                        key = video.tobytes()
                        if key not in first:  # equal futures are kept once
                            first[key] = len(frames)
                            frames.extend(video)
                        column['tiles'][role].append(first[key])
                write_sheet(folder / 'sprites' / f'{i:05d}.png', frames, data['across'])
        for row in rows:  # mean and half-width of the interval
            row['scores'] = [row['scores'].get(name, '–').partition(' ± ')[::2] for name in names]
        keys = dict.fromkeys(key for run in runs for key, value in run.protocol.items()
                             if value is not None)
        table = {key.replace('_', ' '): [run.protocol.get(key) for run in runs] for key in keys}
        render(folder, 'evaluation.html', data, rows=rows, metrics=metrics, protocol=table,
               paper=PAPER, title=paper['name'] if paper else protocol['dataset'])
    return out_dir / 'index.html'


# Damage

def write_damage(source, out_dir, name=None, overwrite=False):
    """Write a page of the results of `damage.py` in `source`; see `write_evaluation`."""
    record = read_json(source / 'damage.json')
    with open(source / 'damage.csv', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['run'] == '1']
    with np.load(source / 'predictions.npz', allow_pickle=False) as file:
        truth, futures = file['truth'], file['samples']  # (T, …), (iterations, nt, …)
    given = len(truth) - futures.shape[1]
    data = layout(truth) | {
        'given': given, 'frames': len(truth), 'iterations': len(futures), 'captions': [
            f'{int(row["damaged"]):,} values damaged ({100 * float(row["share"]):.3g}%), '
            f'PSNR {float(row["psnr"]):.2f} dB' for row in rows]}
    with new_page(out_dir, overwrite) as folder:
        shutil.copyfile(source / 'damage.png', folder / 'curves.png')
        sprites = folder / 'sprites'
        write_sheet(sprites / 'truth.png', truth, data['across'])
        for i in progress_bar(range(len(futures)), 'page', unit='iteration'):
            write_sheet(sprites / f'{i:05d}.png', [*truth[:given], *futures[i]], data['across'])
            with Image.open(source / 'network' / f'{i:05d}.png') as picture:
                network = picture.crop((0, 0, picture.width, picture.height - FOOT))
            if i == 0:  # below the damage, which is red in a transparent picture
                network.save(sprites / 'network.png')
            red = Image.fromarray(np.uint8(np.asarray(network) == RED))
            red.putpalette([255, 255, 255, 255, 0, 0])
            red.save(sprites / f'network_{i:05d}.png', transparency=0, bits=1)
        clip = (f'Test video {record["index"]}' if record['video'] is None
                else f'{record["video"]} from frame {record["t_0"]}')
        options = {key.replace('_', ' '): value for key, value in record.items()
                   if value is not None and not key.endswith('_dir')}
        render(folder, 'damage.html', data, clip=clip, options=options, n_runs=record['n_runs'],
               name=name or Path(record['xp_dir']).resolve().name, size=network.size)
    return out_dir / 'index.html'


# Files

@contextlib.contextmanager
def new_page(out_dir, overwrite):
    """Yield a temporary folder for the parts of a page, which then replace those in `out_dir`.

    A folder that is neither empty nor a page is a UserError, unless `overwrite` is set.
    """
    index = out_dir / PARTS[0]
    found = {path.name for path in out_dir.iterdir()} if out_dir.exists() else set()
    if index.exists() and MARK in index.read_text(errors='replace'):
        found -= set(PARTS)
    if found and not overwrite:
        raise UserError(f'{out_dir} holds {min(found)}, which is not of a page; use another '
                        f'--out_dir, or --overwrite to replace {", ".join(PARTS)} in it')
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.page.', dir=out_dir.parent) as tmp:
        (Path(tmp) / 'sprites').mkdir()
        yield Path(tmp)
        for name in PARTS:  # nothing else is removed
            remove(out_dir / name)
        for path in Path(tmp).iterdir():
            path.rename(out_dir / path.name)


def layout(video):
    """Size of the frames of a video (T, H, W, C), and how many are side by side in sprites."""
    T, H, W, _ = video.shape
    return {'width': W, 'height': H, 'across': max(1, min(T, MAX_WIDTH // W))}


def write_sheet(path, frames, across):
    """Write frames uint8 (H, W, C) as one picture: frame k is in row k // across."""
    H, W, C = frames[0].shape
    canvas = np.zeros((-(-len(frames) // across), H, across, W, C), np.uint8)
    for k, frame in enumerate(frames):
        canvas[k // across, :, k % across] = frame
    canvas = canvas.reshape(-1, across * W, C)
    Image.fromarray(canvas[..., 0] if C == 1 else canvas).save(path)


def render(folder, template, data, **variables):
    """Write index.html; its scripts read `data`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        finalize=lambda value: '' if value is None else value)
    environment.policies['json.dumps_kwargs'] = {'allow_nan': False, 'separators': (',', ':')}
    html = environment.get_template(template).render(
        data=data, mark=MARK, given=f'rgb{GIVEN}', predicted=f'rgb{PREDICTED}', **variables)
    (folder / 'index.html').write_text(html, encoding='utf-8')
