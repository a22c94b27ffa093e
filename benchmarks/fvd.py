"""I3D features: the TensorFlow module against PyTorch, both with random weights, on the CPU."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import compare
from metrics.fvd import build_embedding
from metrics.fvd.weights import parameters, to_tensorflow

N = 16  # clips measured


def random_module(folder):
    """Folder like the TF-Hub module, with random weights: they do not affect the time."""
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.05 * torch.randn(shape, generator=generator) ** 2
             for name, _, shape in parameters()}
    np.savez(folder / 'variables.npz', **to_tensorflow(state))
    script = Path(__file__).parents[1] / 'tests' / 'i3d_module.py'
    subprocess.run([sys.executable, script, folder / 'variables.npz', folder / 'i3d'],
                   check=True, capture_output=True)
    return folder / 'i3d'


def rows(folder):
    """Yield the rows of the table: what, plain, here, ratio."""
    module = random_module(folder)
    embeddings = [build_embedding(module, backend) for backend in ('tfhub', 'torch')]
    for colour, channels in (('grey', 1), ('colour', 3)):
        size = (N, 40, 64, 64, channels)
        videos = np.random.RandomState(0).randint(0, 256, size).astype(np.uint8)

        def timed(embed, videos=videos):
            start = time.perf_counter()
            embed(videos)
            return (time.perf_counter() - start) * 1000 / N

        for embed in embeddings:  # warm up
            timed(embed)
        plain, here, ratio = compare(*(lambda e=embed: timed(e) for embed in embeddings))
        yield (f'FVD, seconds for 1,000 {colour} clips of 40 frames, from {N}: TensorFlow module / '
               'here', f'{plain:.0f}', f'{here:.0f}', f'{ratio:.2f}')
    embeddings[0].close()
