"""Content of the page of damage: predictions by iteration, curves, and where the damage is."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from files import UserError, progress_bar, read_json, read_npz, reading, replacing
from pictures.charts import band
from pictures.network import FOOT, MID_GREY, RED
from pictures.report.sheet import Sheet, columns, numbers

# Curves, by the label of their axis: columns of damage.csv, by their name in the legend
PANELS = {
    'PSNR (dB)': {'against the truth': 'psnr', 'against the intact prediction': 'psnr_intact'},
    'SSIM': {'against the truth': 'ssim', 'against the intact prediction': 'ssim_intact'},
    'Damaged values': {'': 'damaged'},
    'Change of the weights (norm)': {'': 'weight_change'}}
OPTIONS = {'dataset': 'dataset', 'video': 'clip', 't_0': 'first frame', 'index': 'test video',
           'nt_cond': 'given frames', 'n_iterations': 'iterations',
           'n_damages': 'draws per iteration', 'mode': 'mode', 'damage_low': 'lower bound',
           'damage_high': 'upper bound', 'where': 'damaged part', 'n_runs': 'runs',
           'n_euler_steps': 'Euler steps per frame', 'seed': 'seed', 'replay': 'replay of',
           'model_name': 'checkpoint', 'checkpoint_sha256': 'SHA-256 of the checkpoint'}


def damage_page(folder, source, names):
    """Write the sprites of a page to `folder`, and return its content; see `evaluation_page`."""
    source = Path(source)
    record = read_json(source / 'damage.json')
    if not isinstance(record.get('xp_dir'), str):
        raise UserError(f'{source}/damage.json is not from damage.py: it lacks xp_dir')
    table = read_table(source / 'damage.csv')
    truth, predictions = read_predictions(source / 'predictions.npz')
    n, (nt, H, W, _) = len(predictions), truth.shape
    across = columns(nt, W)
    for i, video in enumerate([truth, *predictions]):
        sheet = Sheet(across)
        sheet.add(video)
        sheet.write(folder / 'sprites' / (f'{i - 1:05d}.png' if i else 'truth.png'))
    network = write_network(folder / 'network.png', source / 'network', n)
    clip = f'Test video {record.get("index")}'
    if record.get('video'):
        clip = f'{record["video"]} from frame {record["t_0"]}'
    return {
        'name': names[0] if names else Path(record['xp_dir']).resolve().name, 'clip': clip,
        'n_runs': len(table['psnr']),
        'options': [(label, record[key]) for key, label in OPTIONS.items()
                    if record.get(key) is not None],
        'data': {'given': nt - predictions.shape[1], 'frames': nt, 'width': W, 'height': H,
                 'across': across, 'iterations': n, 'network': network,
                 'damaged': [int(v) for v in table['damaged'][0]],
                 'share': numbers(table['share'][0]), 'panels': panels(table)}}


def read_table(path):
    """Columns (runs, iterations) of damage.csv, by name."""
    with reading(path, 'is not a table of damage', 'run damage.py again'):
        with open(path, newline='') as f:
            rows = list(csv.DictReader(f))
        shape = int(rows[-1]['run']), -1
        table = {key: np.array([float(row[key]) for row in rows]).reshape(shape) for key in rows[0]}
        for key in ['damaged', 'share', *(key for lines in PANELS.values()
                                          for key in lines.values())]:
            if key not in table:
                raise ValueError(f'it has no column {key}')
        return table


def read_predictions(path):
    """Clip uint8 (T, H, W, C), and predictions uint8 (iterations, nt, H, W, C)."""
    if not path.exists():
        raise UserError(f'{path} does not exist: damage.py did not save the predictions in earlier '
                        'versions; run it again, as with --replay')
    with reading(path, 'is not a file of predictions', 'run damage.py again'):
        arrays = read_npz(path)
        truth, predictions = arrays['truth'], arrays['samples']
        if {truth.dtype, predictions.dtype} != {np.dtype(np.uint8)} or predictions.ndim != 5 \
                or truth.shape[1:] != predictions.shape[2:] or len(truth) <= predictions.shape[1]:
            raise ValueError(f'truth is {truth.shape}, samples is {predictions.shape}')
        return truth, predictions


def panels(table):
    """Curves for the page: mean over runs and its standard deviation, by iteration."""
    found = []
    for label, lines in PANELS.items():
        bands = {name: band(table[key]) for name, key in lines.items()}
        found.append({'label': label, 'lines': [
            {'name': name, 'mean': numbers(mean), 'half': numbers(half)}
            for name, (mean, half) in bands.items()]})
    return found


def write_network(path, folder, n):
    """Write the picture of the intact network.

    Returns
    -------
    dict
        `width` and `height` of the picture, and `dots`: by iteration, the pixels (numbered row by
        row) that turn red.
    """
    dots, red = [], None
    for i in progress_bar(range(n), 'network', unit='picture'):
        file = folder / f'{i:05d}.png'
        with reading(file, 'is not a picture of a network', 'run damage.py again'), \
                Image.open(file) as picture:
            canvas = np.asarray(picture)[:-FOOT]  # without the caption
            if red is None:
                red = canvas == RED
                palette, intact = picture.getpalette(), np.where(red, np.uint8(MID_GREY), canvas)
            new = (canvas == RED) & ~red
        red |= new
        dots.append(np.flatnonzero(new).tolist())
    picture = Image.fromarray(intact)
    picture.putpalette(palette)
    with replacing(path) as tmp:
        picture.save(tmp, 'PNG')
    return {'width': intact.shape[1], 'height': intact.shape[0], 'dots': dots}
