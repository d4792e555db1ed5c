"""The mean is the same for every b, so E|w(R − b)∇log π|² is to be least: b = E[R·n]/E[n], n = w²|∇log π|²."""


def answer(q, w, score, R):
    share = q * w**2 * (score**2).sum(1)
    return (share * R).sum() / share.sum()
