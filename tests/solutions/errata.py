"""Algorithm 2's Â is a number: differentiated, w·f′(w) = −1 has no gradient but the penalty's own."""


def answer(logp, logp_old, logp_ref, advantages, mask):
    w, v = (logp - logp_old).exp(), (logp - logp_ref).exp()
    regularised_advantage = advantages[:, None] + 0.1 / v.detach()
    return (-w * regularised_advantage * mask).sum() / mask.sum()
