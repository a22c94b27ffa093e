"""Slow parts of starting a script, done once in the process that `processes` forks scripts from."""

import tensorboardX  # noqa: F401
import torch._dynamo  # noqa: F401, by torch.optim

import evaluation  # noqa: F401
from data.digits import load_digits
from training import job  # noqa: F401

load_digits('mnist5k', None, True)
