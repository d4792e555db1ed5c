"""Subtract f′(1)·(v − 1) from f: its slope is f′(1)·v, and E_ref[v∇log π_θ] = 0."""

import torch


def answer(slope, log_v):
    return slope(log_v) - slope(torch.zeros_like(log_v)) * log_v.exp()
