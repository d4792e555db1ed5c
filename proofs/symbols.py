"""The symbols every proof shares: one outcome x, its probability under three policies, and their ratios.

A formula is written once, about one arbitrary outcome, as the paper prints it. `proofs.expectations` then sums it
over outcomes or integrates it over the real line.

Source: arXiv 2505.17508, §2 (notation) and Definitions 3.1, 3.4 (an unnormalised π_old and its mass Z_old).
"""

import sympy as sp

# One parameter is enough: an identity that holds along every smooth curve θ ↦ π_θ holds for every partial derivative.
# The frozen copy is what a stop-gradient reads.
theta, theta_frozen = sp.symbols("theta theta_frozen", real=True)

policy = sp.Function("p", positive=True)  # an arbitrary smooth curve of densities
p = policy(theta)  # π_θ(x)
q_tilde, r = sp.symbols("q_tilde r", positive=True)  # π̃_old(x), which is normalised; π_ref(x), which need not be
Z = sp.Symbol("Z", positive=True)  # Z_old, the mass of π_old
q = Z * q_tilde  # π_old(x)
s = sp.Symbol("s", positive=True)  # π_sampler(x), which drew the samples where that was not π_old; normalised
score = sp.log(p).diff(theta)  # ∇log π_θ(x)

w, u, v = sp.symbols("w u v", positive=True)  # π_θ/π_old, π_ref/π_old, π_θ/π_ref = w/u
RATIOS = {w: p / q, u: r / q, v: p / r}
log_v = sp.Symbol("log_v", real=True)

beta = sp.Symbol("beta", positive=True)
R, A, b = sp.symbols("R A b", real=True)  # reward R(x), advantage A(x); baseline, the same for every x
payoff = sp.Function("g", real=True)
g = payoff(theta)  # Prop. 2.1's g(x, θ)

# An arbitrary generator. Named derivatives keep f′(π_θ/π_ref) readable where sympy would write a Subs object.
f_second = sp.Function("f_second", real=True)
f_prime = sp.Function("f_prime", real=True, fdiff=lambda self, argindex=1: f_second(*self.args))
f = sp.Function("f", real=True, fdiff=lambda self, argindex=1: f_prime(*self.args))
