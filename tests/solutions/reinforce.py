"""The regularised advantage is a constant; w alone moves."""


def answer(logp, logp_old, advantage, beta):
    w = (logp - logp_old).exp()
    return -w * (advantage - 2 * beta * (w - 1)).detach()
