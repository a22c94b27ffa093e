"""Results of an evaluation: scores, samples and pictures."""

from pathlib import Path

import numpy as np

import metrics.fvd
from evaluation.task import ARRAYS, RESULTS, n_done
from files import write_json, write_npz, write_npz_parts
from metrics.scoring import concatenate
from metrics.summary import finite, score_lines, summarise, summary
from pictures import charts, frames, report
from results import replacing_results


def merge_scores(partial):
    """Scores of all finished videos by name, in their order."""
    return concatenate([partial.scores[k] for k in sorted(partial.scores)])


def report_interruption(task, partial):
    """Print the scores so far, and how to go on."""
    if not partial.scores:
        partial.remove()
        print('interrupted before the end of the first batch')
        return
    lines = score_lines(summary(merge_scores(partial)))
    print('\n'.join([f'scores so far, of {n_done(task, partial)}:', *lines,
                     f'kept in {partial.folder}; repeat the command to continue']), flush=True)


def write_results(task, partial):
    """Print the scores, and write all results to --out_dir."""
    args, scores = task.args, merge_scores(partial)
    table = summary(scores)
    if task.fvd is not None:
        true, *samples = (np.concatenate(list(partial.column(f'fvd/{name}')))
                          for name in ['true', *range(args.fvd_samples)])
        table['fvd'] = summarise(np.array(
            [metrics.fvd.frechet_distance(true, sample) for sample in samples]))
    print('\n'.join(score_lines(table, task.protocol)), flush=True)
    with replacing_results(args.out_dir, RESULTS, 'results.json', args.overwrite) as folder:
        write_npz(folder / 'results.npz', **scores)
        names = write_samples(folder, task, partial)
        charts.score_curves(folder / 'curves.png', {'': scores}, args.nt_cond)
        drawn = draw_pictures(folder / 'pictures', names, task, partial)
        write_json(folder / 'results.json', {
            'scores': finite(table), 'protocol': task.protocol, 'data_dir': str(args.data_dir),
            'results.npz': ARRAYS})
    partial.remove()
    print(f'results in {args.out_dir}: results.json, results.npz, curves.png, '
          f'{", ".join(f"{name}.npz" for name in sorted(names))}')
    if drawn:
        print('pictures:', ', '.join(f'{args.out_dir}/pictures/{name}' for name in drawn))
    if args.report:
        name = args.baseline or Path(args.xp_dir).resolve().name
        page = report.build([args.out_dir], args.out_dir / 'report', [name],
                            overwrite=args.overwrite, testset=task.scorer.testset)
        print(f'page: {page}')


def write_samples(folder, task, partial):
    """Write the saved frames of all videos; returns where each is in `partial`, by file name."""
    first = partial.read(min(partial.scores), 'frames/')
    names = {name.removeprefix('frames/'): name for name in first}
    if task.args.n_samples == 1:
        names |= {f'{metric}_{end}': 'frames/random_1' for metric in task.args.metrics
                  for end in ('best', 'worst')}
    for name, source in names.items():
        write_npz_parts(folder / f'{name}.npz', 'samples', task.scorer.n_videos,
                        partial.column(source))
    return names


def draw_pictures(folder, names, task, partial):
    """Draw the first videos: truth, best, worst and random samples. Returns the file names."""
    args = task.args
    metric = args.metrics[0]
    rows = {'best': f'{metric}_best', 'worst': f'{metric}_worst',
            **{f'random {i}': f'random_{i}' for i in (1, 2, 3)}}
    rows = {label: names[name] for label, name in rows.items() if name in names}
    folder.mkdir()
    drawn = []
    for i in range(min(args.n_pictures, task.scorer.n_videos)):
        k, j = divmod(i, args.batch_size)
        videos = {label: partial.read(k, name)[name][j] for label, name in rows.items()}
        truth = task.scorer.testset.videos([i])[:, 0]
        frames.strip(folder / f'video_{i:04d}.png', {'truth': truth, **videos}, args.nt_cond)
        given = truth[:args.nt_cond]
        videos = {label: np.concatenate([given, video]) for label, video in videos.items()}
        frames.animation(folder / f'video_{i:04d}.gif', {'truth': truth, **videos}, args.nt_cond)
        drawn += [f'video_{i:04d}.png', f'video_{i:04d}.gif']
    return drawn
