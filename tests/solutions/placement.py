"""A token answers for its own KL and for that of the tokens after it, each with the weight of its prefix."""


def answer(log_w, log_v):
    return (log_w.cumsum(0).exp() * log_v).flip(0).cumsum(0).flip(0)
