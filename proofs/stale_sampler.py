"""Stale samplers: the tokens of one response come from several versions of the policy.

An asynchronous trainer updates the policy while a response is being drawn. Each token is then drawn by the version of
its moment, and the engine records the log-probability that this version gave it. Write s_t for that probability. The
law of a response and its versions is a product: the s_t of its tokens, times the probabilities of the switches. A
switch may be a matter of chance, and may depend on the tokens and versions before it. It must not depend on the tokens
after it. Then no policy changes the probabilities of the switches, and they cancel in every ratio. The product of the
s_t is the only denominator that a weight needs; a mixture over versions is not.

So the recorded probabilities make each level exact for its own objective: that of responses at sequence and prefix
level, the sampler's frozen-history objective at token level. K is a rule that keeps some responses, such as the
complete ones, and may look at everything: what counts is then E[K·R]. In the last printed statement q is a first
version, K its responses that are kept, and s a newer version that draws the others again.

What one version for all tokens costs, if it is q: the reward and the penalty of a response are multiplied by s/q, held
fixed. The mean of any h is off by a sum over tokens, to which a token that q itself drew adds nothing. The sum splits
into a part of first order in s_t/q_t − 1, over the histories of q, and one of second order. A version that is k updates
old has log(s_t/q_t) = −k·ε·σ_t + O(ε²), where ε·σ_t is what one update changes. So the first part is proportional to
the lag k, and a sum over the stale tokens. Nor does the whole grow faster: each term is at most the total variation
between s_t and q_t times the range of h, and the total variation of k updates is at most the sum of theirs.

Source: ours; Kakade and Langford 2002, Lemma 6.1, for the sum over tokens.
"""

import sympy as sp

from proofs.certificate import ANY, NORMALISED, TREES, Claim, Statement, equal
from proofs.language import KL, PAST, SG, THROUGH, E, Given, Grad, Next, at, over
from proofs.symbols import A, J, K, R, beta, f, h, loss, p, q, r, s, t, u, v, w
from proofs.worlds import Tree

# A switch after the token 1, and, if it chose version 0, another one two tokens later.
SWITCHES = ((1,), (1, 0, 1))
LEAVES = (
    (0,),
    (1, 0, 0),
    (1, 0, 1, 0, 0),
    (1, 0, 1, 0, 1),
    (1, 0, 1, 1, 0),
    (1, 0, 1, 1, 1),
    (1, 1, 0),
    (1, 1, 1, 0),
    (1, 1, 1, 1),
    (2, 0),
    (2, 1),
)
VERSIONS = Tree(old_is_normalised=True, leaves=LEAVES, switches=SWITCHES)

OF_RESPONSES = E(p, R) - beta * E(r, f(v))
LOG_V = sp.log(at(v, t))


def _through(policy: sp.Expr, scope: sp.Symbol = THROUGH) -> sp.Expr:
    return at(policy, t, scope) / at(s, t, scope)


def _of_responses(drawn_by: sp.Expr) -> Statement:
    return equal(Grad(E(s, -p / drawn_by * R + beta * r / drawn_by * f(v))), -Grad(J), VERSIONS, J=OF_RESPONSES)


def _by_prefix(weight: sp.Expr) -> Statement:
    sample = -p / s * R + beta * over(t, weight * LOG_V)
    return equal(Grad(E(s, sample)), beta * Grad(KL(p, r)) - Grad(E(p, R)), VERSIONS)


def _frozen(histories: sp.Expr, continued: sp.Expr) -> sp.Expr:
    gain = Next(t, at(p, t), Given(t, continued, R))
    return E(histories, over(t, gain - beta * Next(t, at(r, t), f(at(v, t)))))


def _by_token(drawn_by: sp.Expr, objective: sp.Expr) -> Statement:
    token = -at(p, t) / at(drawn_by, t) * R + beta * at(r, t) / at(drawn_by, t) * f(at(v, t))
    return equal(Grad(E(s, over(t, token))), -Grad(objective), VERSIONS)


def _kept(objective: sp.Expr) -> Statement:
    return equal(Grad(E(s, K * p / s * R)), Grad(objective), VERSIONS)


def _redrawn(mean: sp.Expr) -> Statement:
    return equal(E(q, K * w * h) + (1 - E(q, K)) * E(s, p / s * h), mean, NORMALISED)


STALE_SAMPLER = Claim(
    id="stale_sampler",
    source="ours",
    statements=(
        _of_responses(s),
        _by_prefix(_through(p)),
        _by_token(s, _frozen(s, s)),
        equal(E(s, SG(q / s) * loss), E(q, loss), VERSIONS),
        _kept(E(p, K * R)),
        _redrawn(E(p, h) + E(p, (K - E(q, K)) * h)),
        equal(Grad(E(s, over(t, _through(r) * -LOG_V))), Grad(KL(r, p)), VERSIONS),
    ),
    near_misses={
        "one version for all tokens": _of_responses(q),
        "prefix: the token's own weight": _by_prefix(at(p, t) / at(s, t)),
        "prefix: one version for the history": _by_prefix(at(w, t, PAST) * at(p, t) / at(s, t)),
        "token by token: one version for all tokens": _by_token(q, _frozen(s, s)),
        "token by token: the objective of responses": _by_token(s, OF_RESPONSES),
        "token by token: histories of one version": _by_token(s, _frozen(q, s)),
        "token by token: one version goes on": _by_token(s, _frozen(s, q)),
        "kept responses: E[R]": _kept(E(p, R)),
        "kept responses: E[R] among the kept": _kept(E(p, K * R) * E(s, K) / E(p, K)),
        "drawn again: E[h]": _redrawn(E(p, h)),
    },
    printed=6,
)

DRIFT = SG(s / q)
REWEIGHTED = E(p, DRIFT * A) - beta * E(r, DRIFT * f(v))


def _assumed(objective: sp.Expr) -> Statement:
    return equal(Grad(E(s, -w * A + beta * u * f(v))), -Grad(J), ANY, J=objective)


BIAS = E(s, h) - E(q, h)


def _by_stale_token(histories: sp.Expr, continued: sp.Expr) -> Statement:
    value = Given(t, continued, h)
    change = Next(t, at(s, t), value) - Next(t, at(q, t), value)
    return equal(BIAS, E(histories, over(t, change)), TREES)


CHANGE = at(s, t) / at(q, t) - 1
SECOND = (at(s, t, PAST) / at(q, t, PAST) - 1) * CHANGE


def _in_orders(*orders: sp.Expr) -> Statement:
    return equal(BIAS, sum(E(q, over(t, x) * h) for x in orders), TREES)


STALE_SAMPLER_BIAS = Claim(
    id="stale_sampler_bias",
    source="ours; after Kakade and Langford 2002, Lemma 6.1",
    statements=(
        _assumed(REWEIGHTED),
        _by_stale_token(s, q),
        _in_orders(CHANGE, SECOND),
    ),
    near_misses={
        "none": _assumed(E(p, A) - beta * E(r, f(v))),
        "the reward alone is reweighted": _assumed(E(p, DRIFT * A) - beta * E(r, f(v))),
        "reweighted by q/s": _assumed(E(p, A / DRIFT) - beta * E(r, f(v) / DRIFT)),
        "histories of the assumed version": _by_stale_token(q, q),
        "the stale versions go on": _by_stale_token(s, s),
        "the first order is all": _in_orders(CHANGE),
        "the last token's drift for the history's": _in_orders(CHANGE, (at(s, t) / at(q, t) - 1) ** 2),
    },
)

CLAIMS = (STALE_SAMPLER, STALE_SAMPLER_BIAS)
