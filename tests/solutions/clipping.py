"""A clip stops what has gone where it is sent, and a bad sample that is far too likely."""

import torch


def answer(direction, w):
    return torch.where(direction >= 0, w < 1.28, (w > 0.8) & (w < 10))
