"""`test.py` against the plain evaluation."""

import contextlib
import io
import json
import statistics
import tempfile

import torch
from torchvision.models import alexnet

import test as test_script
from args import preset_config
from benchmarks.training import DEVICE, ON_DEVICE, ON_GPU, seconds
from data import load_test
from metrics.frame import LPIPS
from model import build_model
from tests import plain
from utils import to_video

NT = 40                                     # frames, 10 of them given
N, S = (64, 100) if ON_GPU else (16, 20)    # videos and samples of test.py
N_PLAIN = 16                                # videos of the plain one, 1 sample


def rows(folder, repeats):
    config = preset_config('kth')
    (folder / 'config.json').write_text(json.dumps(vars(config)))
    model = build_model(config).eval().requires_grad_(False)
    torch.save(model.state_dict(), folder / 'model.pt')
    weights = alexnet().state_dict()  # random, as the model: they do not affect the time
    torch.save(weights, folder / 'alexnet.pth')
    model = model.to(DEVICE, memory_format=torch.contiguous_format)
    network = LPIPS(weights).to(DEVICE, memory_format=torch.contiguous_format)
    videos = torch.from_numpy(load_test(config, folder, NT).videos(range(N_PLAIN)))
    x = to_video(videos, DEVICE).contiguous()
    noise = model.draw_noise(NT, (1, N_PLAIN), DEVICE)

    def plain_evaluation():
        plain.evaluate(model, network, x, config.nt_cond, noise)

    def test_py():
        with tempfile.TemporaryDirectory(dir=folder) as out, \
                contextlib.redirect_stdout(io.StringIO()):
            test_script.main([
                '--xp_dir', str(folder), '--data_dir', str(folder), '--lpips_dir', str(folder),
                '--out_dir', out, '--nt_gen', str(NT), '--n_pictures', '0', '--n_videos', str(N),
                '--n_samples', str(S), *ON_DEVICE])
    runs = [(N * S / N_PLAIN * seconds(plain_evaluation, warm_up=False),
             seconds(test_py, warm_up=False)) for _ in range(repeats)]
    before, found = (statistics.median(times) for times in zip(*runs))
    yield (f'KTH, `test.py`, {N} videos, {S} samples, all metrics, s: plain (from 1 sample of '
           f'{N_PLAIN}) / here', f'{before:.0f}', f'{found:.0f}',
           f'{statistics.median(a / b for a, b in runs):.2f}')
    yield 'the same for 1,000 videos, minutes', '', f'{found * 1000 / N / 60:.1f}', ''
