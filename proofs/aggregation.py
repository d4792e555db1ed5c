"""Four ways to add up token losses: at equal lengths one up to a factor, otherwise four different weightings of length.

A batch of two sequences of T₁ and T₂ tokens, whose token losses add up to S₁ and S₂. Given one denominator for the
whole batch the parts of any split add up to the whole; the mean of each part's own mean does not.

Source: arXiv 2505.17508, §5 (token-mean); Shao et al. 2024; Yu et al. 2025; Liu et al. 2025 (constant denominator).
"""

import sympy as sp

from proofs.certificate import Claim
from proofs.expectations import Equation

_T, _T1, _T2, _constant = sp.symbols("T T1 T2 constant", positive=True)
_S1, _S2 = sp.symbols("S1 S2", real=True)
Batch = tuple[tuple[sp.Expr, sp.Expr], ...]  # (sum of token losses, number of tokens) of each sequence
RAGGED: Batch = ((_S1, _T1), (_S2, _T2))
EVEN: Batch = ((_S1, _T), (_S2, _T))


def token_mean(batch: Batch) -> sp.Expr:
    """Return Σ over tokens / number of tokens. Source: arXiv 2505.17508, §5."""
    return sum(s for s, _ in batch) / sum(t for _, t in batch)


def seq_mean_token_mean(batch: Batch) -> sp.Expr:
    """Return the mean over sequences of each one's mean. Source: Shao et al. 2024."""
    return sum(s / t for s, t in batch) / len(batch)


def seq_mean_token_sum(batch: Batch) -> sp.Expr:
    """Return the mean over sequences of each one's sum. Source: Liu et al. 2025."""
    return sum(s for s, _ in batch) / len(batch)


def seq_sum_over(batch: Batch, constant: sp.Expr) -> sp.Expr:
    """Return Σ over tokens / a constant. Source: Liu et al. 2025."""
    return sum(s for s, _ in batch) / constant


def _share_of_a_token(aggregated: sp.Expr) -> sp.Expr:
    # How much a token of the first sequence counts for one token of the second.
    return aggregated.diff(_S1) / aggregated.diff(_S2)


def _difference() -> Equation:
    gap = (_T1 - _T2) * (_S1 / _T1 - _S2 / _T2) / (2 * (_T1 + _T2))
    return token_mean(RAGGED) - seq_mean_token_mean(RAGGED), gap


CLAIM = Claim(
    id="aggregation",
    statement="equal lengths: one up to a factor; else a token counts 1 (token-mean, sums) or 1/T_i (mean of means)",
    source="arXiv 2505.17508, §5; Shao et al. 2024; Liu et al. 2025",
    identities=lambda: {
        "equal lengths: token-mean = seq-mean-token-mean": (token_mean(EVEN), seq_mean_token_mean(EVEN)),
        "equal lengths: token-mean = seq-mean-token-sum / T": (token_mean(EVEN), seq_mean_token_sum(EVEN) / _T),
        "equal lengths: constant = number of tokens": (token_mean(EVEN), seq_sum_over(EVEN, 2 * _T)),
        "token-mean: every token of a batch counts the same": (_share_of_a_token(token_mean(RAGGED)), sp.S.One),
        "seq-mean-token-mean: a token counts 1/T_i": (_share_of_a_token(seq_mean_token_mean(RAGGED)), _T2 / _T1),
        "seq-mean-token-sum = seq-sum / number of sequences": (
            seq_mean_token_sum(RAGGED),
            seq_sum_over(RAGGED, sp.Integer(2)),
        ),
        "token-mean less the mean of means": _difference(),
        "a common denominator: the parts add up": (
            sum(seq_sum_over((part,), _T1 + _T2) for part in RAGGED),
            token_mean(RAGGED),
        ),
    },
    near_misses=lambda: {
        "token-mean = seq-mean-token-mean": (token_mean(RAGGED), seq_mean_token_mean(RAGGED)),
        "mean of each micro-batch's token-mean": (sum(token_mean((part,)) for part in RAGGED) / 2, token_mean(RAGGED)),
        "… weighted by sequences": (
            sum(token_mean(part) * len(part) for part in (RAGGED, RAGGED[:1])) / 3,
            token_mean((*RAGGED, RAGGED[0])),
        ),
        "seq-mean-token-sum: a token counts 1/T_i": (_share_of_a_token(seq_mean_token_sum(RAGGED)), _T2 / _T1),
        "token-mean with a constant for the number of tokens": (token_mean(RAGGED), seq_sum_over(RAGGED, _constant)),
    },
)
