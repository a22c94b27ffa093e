"""Slow parts of starting a script, done once in the process that `processes` forks scripts from."""

import torch._dynamo  # noqa: F401, by torch.optim

import train  # noqa: F401
from data.mmnist import read_mnist5k

read_mnist5k(None, True)

import test  # noqa: E402, F401
