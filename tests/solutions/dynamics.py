"""The KL of the optimum falls with β: bisect."""

import math


def kl(beta, ref, reward):
    best = [r * math.exp((x - max(reward)) / beta) for r, x in zip(ref, reward, strict=True)]
    total = sum(best)
    return sum(x / total * math.log(x / total / r) for x, r in zip(best, ref, strict=True) if x)


def answer(target, ref, reward):
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl(middle, ref, reward) > target else (low, middle)
    return high
