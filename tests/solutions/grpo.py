"""The slope must be w·log v: k2's is log v."""

from rpg_ref import k2


def answer(w, log_v):
    return w * k2(-log_v)
