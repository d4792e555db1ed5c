"""The own reward takes 1/G of the signal away: R − mean = (1 − 1/G)·(R − mean of the others)."""


def answer(G):
    return G / (G - 1)
