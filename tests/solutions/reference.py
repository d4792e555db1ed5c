"""Exponents add up: R/β = R/β₁ + R/β₂ + R/β₃."""


def answer(strengths):
    return 1 / sum(1 / strength for strength in strengths)
