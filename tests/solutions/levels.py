"""A reward at the end is earned by the whole response: w_{1:T} for every token, its own future included."""


def answer(log_w):
    return log_w.sum().exp().expand(len(log_w))
