"""What an evaluation depends on (its protocol), and the summary of its scores."""

import hashlib
import math
import sys

from files import UserError, positive_int

import numpy as np

from args import (add_i3d_option, add_length_options, find_published, has_published_videos,
                  published_scores)
from data import DATASETS, load_test
from metrics import LABELS, METRICS


def add_score_options(parser, lengths='as trained'):
    """Add the options of scores, which `test.py` and `python -m metrics` share."""
    parser.add_argument('--n_videos', type=positive_int,
                        help='score only the first videos of the test set')
    add_length_options(parser, lengths)
    parser.add_argument('--batch_size', type=positive_int, default=16,
                        help='videos at a time; does not change the scores')
    parser.add_argument('--metrics', nargs='+', choices=list(METRICS), default=list(METRICS),
                        help='scores to compute; pictures show the best samples by the first one')
    parser.add_argument('--lpips_dir',
                        help="folder with torchvision's AlexNet, all of it or its features only; "
                             "default: torchvision's cache, or a download")
    parser.add_argument('--fvd', action='store_true',
                        help='also compute the Fréchet video distance, of random samples')
    add_i3d_option(parser)
    parser.add_argument('--overwrite', action='store_true',
                        help='replace earlier results in --out_dir whatever their protocol')


def load_test_set(args, config):
    """Test set of a configuration, and the number of its first videos to score (--n_videos)."""
    testset = load_test(config, args.data_dir, args.nt_gen)
    n_videos = args.n_videos or len(testset)
    if n_videos > len(testset):
        raise UserError(f'--n_videos {n_videos}: the test set has {len(testset)} videos; '
                        'use at most that many')
    return testset, n_videos


def get_protocol(args, config, testset, n_videos, n_samples):
    """All that scores depend on, apart from the predictions, as saved with them.

    Two evaluations are the same one if their protocols are equal.
    """
    first_video = np.ascontiguousarray(testset.videos([0]))  # (nt_gen, 1, H, W, C)
    versions = {f'{name}_version': METRICS[name].version for name in args.metrics
                if hasattr(METRICS[name], 'version')}
    return {'dataset': config.dataset,
            **{name: getattr(config, name) for name in DATASETS[config.dataset].options},
            'size': config.nx, 'test_set': testset.path.name,
            'first_video_sha256': hashlib.sha256(first_video).hexdigest(), 'clips': n_videos,
            'conditioning_frames': args.nt_cond, 'predicted_frames': args.nt_gen - args.nt_cond,
            'samples': n_samples, 'metrics': args.metrics, **versions}


def note_differences(protocol):
    """Print a note if lengths or videos make scores incomparable with the published ones."""
    paper = find_published(protocol)
    given, predicted = protocol['conditioning_frames'], protocol['predicted_frames']
    if paper is not None and (paper['nt_cond'], paper['nt_gen']) != (given, given + predicted):
        print(f'note: published scores on this test set use --nt_gen {paper["nt_gen"]} with '
              f'{paper["nt_cond"]} conditioning frames; found --nt_gen {given + predicted} with '
              f'{given}', file=sys.stderr)
    elif paper is not None and not has_published_videos(paper, protocol):
        print(f'note: {protocol["test_set"]} is not the published test set: its first video is '
              'another one; published scores do not compare', file=sys.stderr)


# Summary

def summarise(values):
    """`mean` of values (N,) and half-width `ci95` of its 95% interval, 1.96 std / √N.

    NaN, the score of videos all of whose frames are equal to the truth, is left out. Both are None
    without a value, and the second one with only one.
    """
    values = values[~np.isnan(values)]
    n = len(values)
    return {'mean': float(values.mean()) if n else None,
            'ci95': float(1.96 * values.std() / math.sqrt(n)) if n > 1 else None}


def summary(scores):
    """Summary of the scores of all videos by metric, with the number of equal frames if any."""
    table = {}
    for name in METRICS:
        if name in scores:
            table[name] = summarise(scores[name])
            if equal := int(np.isinf(scores[f'{name}_t']).sum()):
                table[name]['equal_frames'] = equal
    return table


def score_text(name, score):
    """Text of a summary, as in a table."""
    if score['mean'] is None:
        return 'identical'
    digits = LABELS[name].digits
    half = '' if score['ci95'] is None else f' ± {score["ci95"]:.{digits}f}'
    return f'{score["mean"]:.{digits}f}{half}'


def score_lines(table, protocol):
    """One line of text per score of a table, next to the published one of the same protocol."""
    known = published_scores(protocol)
    lines = []
    for name, score in table.items():
        line = f'{LABELS[name].label:>5} {score_text(name, score)} {LABELS[name].unit}'.rstrip()
        if equal := score.get('equal_frames'):
            line += f' (without {equal:,} frames equal to the truth)'
        lines.append(line + (f'   published: {known[name]}' if name in known else ''))
    if any(name in known for name in table):
        paper = find_published(protocol)
        expected = paper['n_videos'], paper['n_samples']
        if (protocol['clips'], protocol['samples']) != expected:
            lines.append(f'published: {expected[0]:,} videos, best of {expected[1]}; '
                         f'here: {protocol["clips"]:,}, best of {protocol["samples"]}')
    if note := protocol.get('fvd_note'):
        lines.append(f'note: {note}')
    return lines
