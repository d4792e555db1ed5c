"""The symbols every proof shares, and what stands behind each: a policy, a value of an outcome, or one number.

A formula is written once, about one arbitrary outcome x, as the paper prints it.

Source: arXiv 2505.17508, §2 (notation) and Definitions 3.1, 3.4 (an unnormalised π_old and its mass Z_old).
"""

import sympy as sp

q_tilde, r = sp.symbols("q_tilde r", positive=True)  # π̃_old(x), which is normalised; π_ref(x), which need not be
Z = sp.Symbol("Z", positive=True)  # Z_old, the mass of π_old
s = sp.Symbol("s", positive=True)  # π_sampler(x), which drew the samples where that was not π_old; normalised
w, u, v = sp.symbols("w u v", positive=True)  # π_θ/π_old, π_ref/π_old, π_θ/π_ref = w/u
log_v = sp.Symbol("log_v", real=True)
beta = sp.Symbol("beta", positive=True)
R, A, b = sp.symbols("R A b", real=True)  # reward R(x), advantage A(x); baseline, the same for every x
p = sp.Symbol("p", positive=True)  # π_θ(x): the one live policy
q = sp.Symbol("q", positive=True)  # π_old(x), of mass Z; q_tilde is q/Z
best = sp.Symbol("best", positive=True)  # another normalised policy: the optimum
g = sp.Symbol("g", real=True)  # g(x, θ)
h = sp.Symbol("h", real=True)  # h(x)
K = sp.Symbol("K", nonnegative=True)  # 1 for some outcomes, 0 for the others
T = sp.Symbol("T", positive=True)  # the length of a response
S = sp.Symbol("S", real=True)  # the sum of a response's token losses
loss = sp.Symbol("ell", real=True)  # a per-sample loss of any form
z = sp.Symbol("z", real=True)  # logits
a = sp.Symbol("a", real=True)  # a direction in the space of logits
bounded = sp.Symbol("wbar", real=True)  # any detached weight
along, along_best = sp.symbols("sigma sigmastar", real=True)  # the score along a step, and along the best step
lagrange = sp.Symbol("lambda", real=True)
low, high, dual = sp.symbols("low high c", positive=True)  # 1 − ε1, 1 + ε2, c
G = sp.Symbol("G", positive=True)
J = sp.Symbol("J")  # an objective
w_other = sp.Symbol("w_other", positive=True)  # another value of w
MOVING = sp.Symbol("moving", positive=True)  # in algebra: θ itself
falling = sp.Symbol("F", positive=True)  # in algebra: a positive, falling, convex function of the reward
to_lagrange = sp.Symbol("to_lagrange", positive=True)  # in algebra: λ − R, positive
payoff, transposed = sp.symbols(
    "payoff payoff_T", real=True
)  # M(x, y) of one's own x and the opponent's y; and M(y, x)
i, j, k, t = sp.symbols("i j k t", integer=True)

# What stands behind a name. Every other symbol is one number.
LIVE_POLICY, POLICY, MEASURE, VALUE, LIVE_VALUE, INDICATOR, LENGTH = range(7)
KINDS = {
    p: LIVE_POLICY,
    q_tilde: POLICY,
    s: POLICY,
    best: POLICY,
    q: MEASURE,
    r: MEASURE,
    R: VALUE,
    A: VALUE,
    h: VALUE,
    S: LIVE_VALUE,
    z: LIVE_VALUE,
    a: VALUE,
    bounded: VALUE,
    along: VALUE,
    along_best: VALUE,
    g: LIVE_VALUE,
    loss: LIVE_VALUE,
    K: INDICATOR,
    T: LENGTH,
}
RATIOS = {w: p / q, u: r / q, v: p / r}

f = sp.Function("f", real=True)  # any generator: f(1) = 0
f_prime = sp.Function("f_prime", real=True)
f_second = sp.Function("f_second", real=True)
DERIVATIVE = {f: 0, f_prime: 1, f_second: 2}
