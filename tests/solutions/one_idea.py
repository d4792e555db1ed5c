"""f′(v) = 1 − v^(−½), and slope = v·f′(v)."""


def answer(log_v):
    return log_v.exp() - (log_v / 2).exp()
