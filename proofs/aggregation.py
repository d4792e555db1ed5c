"""Four ways to add up token losses: at equal lengths one up to a factor, otherwise four different weightings of length.

An outcome is a response of a batch of any size: T tokens, whose token losses add up to S. ∇ of an aggregate says what a
token counts: the factor on ∇S. Given one denominator for the whole batch the parts of any split (K and the rest) add up
to the whole; the mean of each part's own mean does not.

Source: arXiv 2505.17508, §5 (token-mean); Shao et al. 2024; Yu et al. 2025; Liu et al. 2025 (constant denominator).
"""

import sympy as sp

from proofs.certificate import Claim, Statement, equal
from proofs.language import Grad, Total
from proofs.symbols import K, S, T
from proofs.worlds import Space

_n = sp.Symbol("n", positive=True)
RESPONSES = Total(sp.Integer(1))
TOKEN_MEAN = Total(S) / Total(T)
SEQ_MEAN_TOKEN_MEAN = Total(S / T) / RESPONSES
SEQ_MEAN_TOKEN_SUM = Total(S) / RESPONSES
SEQ_SUM_OVER = Total(S) / _n


def _counts(aggregated: sp.Expr, each: sp.Expr) -> Statement:
    return equal(Grad(aggregated), Total(each * Grad(S)))


def _even(first: sp.Expr, second: sp.Expr) -> Statement:
    return equal(first, second, Space(equal_lengths=True))


CLAIM = Claim(
    id="aggregation",
    source="arXiv 2505.17508, §5; Shao et al. 2024; Liu et al. 2025",
    statements=(
        _counts(TOKEN_MEAN, 1 / Total(T)),
        _counts(SEQ_MEAN_TOKEN_MEAN, 1 / (RESPONSES * T)),
        _counts(SEQ_MEAN_TOKEN_SUM, 1 / RESPONSES),
        _counts(SEQ_SUM_OVER, 1 / _n),
        _even(TOKEN_MEAN, SEQ_MEAN_TOKEN_MEAN),
        _even(TOKEN_MEAN, SEQ_MEAN_TOKEN_SUM / T),
        equal(TOKEN_MEAN, SEQ_SUM_OVER, n=Total(T)),
    ),
    near_misses={
        "token-mean = seq-mean-token-mean": equal(TOKEN_MEAN, SEQ_MEAN_TOKEN_MEAN),
        "token-mean: a token counts 1/T": _counts(TOKEN_MEAN, 1 / (RESPONSES * T)),
        "mean of means: every token counts the same": _counts(SEQ_MEAN_TOKEN_MEAN, 1 / Total(T)),
        "sums: a token counts 1/T": _counts(SEQ_MEAN_TOKEN_SUM, 1 / T),
        "token-mean with a constant for the number of tokens": equal(TOKEN_MEAN, SEQ_SUM_OVER),
    },
    printed=4,
)


def _split(left: sp.Expr, right: sp.Expr) -> Statement:
    return equal(left, right)


_PARTS = (K, 1 - K)
ONE_DENOMINATOR = Claim(
    id="one_denominator",
    source="errata, released code row 5",
    statements=(
        _split(Total(K * S) / _n + Total((1 - K) * S) / _n, SEQ_SUM_OVER),
        _split(Total(K * S) / Total(T) + Total((1 - K) * S) / Total(T), TOKEN_MEAN),
    ),
    near_misses={
        "mean of each micro-batch's token-mean": _split(
            sum(Total(part * S) / Total(part * T) for part in _PARTS) / 2, TOKEN_MEAN
        ),
        "… weighted by responses": _split(
            sum(Total(part * S) / Total(part * T) * Total(part) for part in _PARTS) / RESPONSES, TOKEN_MEAN
        ),
        "each part over its own tokens": _split(sum(Total(part * S) / Total(part * T) for part in _PARTS), TOKEN_MEAN),
    },
)

CLAIMS = (CLAIM, ONE_DENOMINATOR)
