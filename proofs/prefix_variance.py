"""The prefix level's variance is not uniformly lower than the sequence level's: two exact policies, one each way.

Both estimate ∇KL(π_θ‖π_ref) of whole sequences without bias (`prefix_level`, `sequence_level`). θ is the first
token's logit. The probabilities are rational, so a variance is an exact sum of logarithms; sympy decides its sign.

Source: ours; on per-decision importance sampling, Precup et al. 2000.
"""

from collections.abc import Callable

import sympy as sp

from proofs.certificate import Claim
from proofs.sequences import EVEN, Tokens, expectation, new, old, ratio, ref, score
from proofs.symbols import theta

# Odds of token 0 after the empty history, after 0 and after 1, under π_θ, π_old and π_ref.
PREFIX_BETTER = {"a": (1, 4, 4), "b": (1, sp.Rational(1, 4), sp.Rational(1, 4)), "c": (sp.Rational(1, 2), 4, 4)}
PREFIX_WORSE = {"a": (1, 2, 2), "b": (1, sp.Rational(1, 4), sp.Rational(1, 4)), "c": (2, 1, 4)}


def _sequence(y: Tokens) -> sp.Expr:
    return ratio(new, old, y) * sp.log(ratio(new, ref, y)) * score(y)


def _prefix(y: Tokens) -> sp.Expr:
    log_v = [sp.log(ratio(new, ref, y[:t])) for t in (0, 1, 2)]
    return sum(ratio(new, old, y[:t]) * (log_v[t] - log_v[t - 1]) * score(y[:t]) for t in (1, 2))


def _variance(estimate: Callable[[Tokens], sp.Expr], odds: dict[str, tuple[sp.Expr, ...]]) -> sp.Expr:
    value = expectation(old, EVEN, lambda y: estimate(y) ** 2) - expectation(old, EVEN, estimate) ** 2
    names = ("{}", "{}_0", "{}_1")
    policy = [sp.Function(name.format("a"), positive=True)(theta) for name in names]
    logit = dict(zip((f.diff(theta) for f in policy), (policy[0], 0, 0), strict=True))
    others = {sp.Symbol(n.format(k), positive=True): x for k in "bc" for n, x in zip(names, odds[k], strict=True)}
    return value.subs(logit).subs(dict(zip(policy, odds["a"], strict=True))).subs(others)


def _excess(odds: dict[str, tuple[sp.Expr, ...]]) -> sp.Expr:
    return _variance(_prefix, odds) - _variance(_sequence, odds)


CLAIM = Claim(
    id="prefix_variance",
    statement="the prefix weight's reverse-KL gradient may have a lower or a higher variance than the whole sequence's",
    source="ours; on Precup et al. 2000",
    identities=lambda: {
        "lower": (sp.sign(_excess(PREFIX_BETTER)), sp.S.NegativeOne),
        "higher": (sp.sign(_excess(PREFIX_WORSE)), sp.S.One),
    },
    near_misses=lambda: {
        "never higher": (sp.sign(_excess(PREFIX_WORSE)), sp.S.NegativeOne),
        "always equal": (_excess(PREFIX_WORSE), sp.S.Zero),
        "equal where the prefix is better": (_excess(PREFIX_BETTER), sp.S.Zero),
    },
)
