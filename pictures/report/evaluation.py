"""Content of the page of evaluations: scores, curves, and a sprite picture of each video."""

import published
from files import progress_bar
from metrics import METRICS
from metrics.summary import FORMATS, score_text
from pictures.charts import band
from pictures.report.sheet import Sheet, columns, numbers
from pictures.report.sources import check_same_videos, load_truth, open_videos, read_run

PER_PAGE = 20  # videos
# Entries of the protocol that do not speak for themselves
LABELS = {'clips': 'videos', 'conditioning_frames': 'given frames', 'samples': 'futures per video',
          'n_euler_steps': 'Euler steps per frame', 'lpips_version': 'LPIPS version',
          'checkpoint_sha256': 'SHA-256 of the checkpoint'}


def evaluation_page(folder, sources, names, data_dir, n_videos, testset=None):
    """Write the sprites of a page to `folder`, and return its content.

    Parameters
    ----------
    folder : Path
    sources : list of path
        Folders with results of evaluations.
    names : list of str
        Of these evaluations.
    data_dir : path
        Folder of the test set; None: where it was for the evaluation.
    n_videos : int
        Maximum number of videos to show, the first ones.
    testset : object
        The test set, if it is loaded already.

    Returns
    -------
    dict
        Variables of the template. `data` is what its scripts read.
    """
    runs = [read_run(source, name) for source, name in zip(sources, names)]
    check_same_videos(runs)
    if testset is None:
        testset = load_truth(runs, data_dir)
    n = min(n_videos, *(run.protocol['clips'] for run in runs))
    shown, sprites = write_sprites(folder, runs, testset, n)
    metrics = [m for m in METRICS if any(m in run.scores for run in runs)]
    paper = find_paper(runs)
    return {
        'title': paper.name if paper else runs[0].protocol['dataset'],
        'lengths': (runs[0].protocol['conditioning_frames'],
                    runs[0].protocol['predicted_frames']),
        'scores': score_table(runs, paper), 'protocol': protocol_table(runs),
        'data': {
            **sprites, 'perPage': PER_PAGE, 'metrics': list(map(describe, metrics)),
            'runs': [{'name': run.name, 'single': run.protocol['samples'] == 1, 'tiles': tiles,
                      'scores': {m: numbers(run.scores[m][:n]) for m in metrics if m in run.scores},
                      'curves': curves(run)} for run, tiles in zip(runs, shown)]}}


def find_paper(runs):
    """Published evaluation of the same frames, or None; with those scores that suit all runs."""
    papers = [published.find_scores(run.protocol) for run in runs]
    return None if None in papers else min(papers, key=lambda paper: len(paper.scores))


def describe(metric):
    """What the page has to know of a metric."""
    digits, unit = FORMATS[metric]
    return {'key': metric, 'label': metric.upper(), 'unit': unit, 'digits': digits,
            'higher': metric in METRICS and METRICS[metric].higher_is_better}


def curves(run):
    """Means over all videos, and halves of their 95% intervals, of predicted frames by metric."""
    found = {m: band(run.scores[f'{m}_t'], interval=True)
             for m in METRICS if f'{m}_t' in run.scores}
    return {m: {'mean': numbers(mean), 'half': numbers(half)} for m, (mean, half) in found.items()}


# Tables

def score_table(runs, paper):
    """Table of mean scores: its columns, its rows with the published one last, and a note."""
    scores = [run.record['scores'] for run in runs]
    metrics = [m for m in FORMATS if any(m in found for found in scores)]
    rows = [{'name': run.name, 'videos': run.protocol['clips'],
             'samples': run.protocol['samples'], 'published': False,
             'scores': [(score_text(m, found[m]) if m in found else '–').partition(' ± ')
                        for m in metrics]}
            for run, found in zip(runs, scores)]
    known = paper.scores if paper else {}
    if any(m in known for m in metrics):
        rows.append({'name': 'SRVP, as published', 'videos': paper.n_videos,
                     'samples': paper.n_samples, 'published': True,
                     'scores': [known.get(m, '–').partition(' ± ') for m in metrics]})
    return {'metrics': list(map(describe, metrics)), 'rows': rows, 'fvd': 'fvd' in metrics,
            'same': len({(row['videos'], row['samples']) for row in rows}) == 1}


def protocol_table(runs):
    """Rows (label, values by run) of what the scores depend on."""
    flat = []
    for run in runs:
        fvd = {f'FVD: {key}': value for key, value in run.protocol.get('fvd', {}).items()}
        flat.append({key: value for key, value in run.protocol.items() if key != 'fvd'} | fvd)
    keys = dict.fromkeys(key for protocol in flat for key in protocol)
    rows = [(LABELS.get(key, key.replace('_', ' ')), [protocol.get(key) for protocol in flat])
            for key in keys]
    return [row for row in rows if any(value is not None for value in row[1])]


# Sprites

def write_sprites(folder, runs, testset, n):
    """Write one picture for each of the first n videos: the truth, then all predictions.

    Returns
    -------
    tiles : list of dicts of lists
        By run and role: number of the first frame in the picture of each video.
    layout : dict
        How frames are arranged.
    """
    truth = testset.videos([0])[:, 0]
    nt, H, W, _ = truth.shape
    across = columns(nt, W)
    tiles = [{role: [] for role in run.videos} for run in runs]
    with open_videos(runs, truth.shape) as files:
        for i in progress_bar(range(n), 'sprites', unit='video'):
            sheet = Sheet(across)
            sheet.add(testset.videos([i])[:, 0])
            for starts, opened in zip(tiles, files):
                for role, file in opened.items():
                    starts[role].append(sheet.add(next(file)))
            sheet.write(folder / 'sprites' / f'{i:05d}.png')
    return tiles, {'videos': n, 'names': list(map(testset.name, range(n))),
                   'given': runs[0].protocol['conditioning_frames'],
                   'frames': nt, 'width': W, 'height': H, 'across': across}
