"""From logits to the log-probabilities of the tokens that were sampled."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpg_ref.checks import check_number, check_tensor
from rpg_ref.numerics import at_least_float32


def token_logprobs(
    logits: Float[Tensor, "*batch V"], tokens: Int[Tensor, "*batch"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """Return log π(token) = logits[token]/T − logsumexp(logits/T), T the temperature.

    Args:
        logits: scores over the vocabulary, [..., V]; those that predict ``tokens``: nothing is shifted here.
        tokens: ids of the sampled tokens, [...], integers in [0, V).
        temperature: the sampler's temperature, > 0: the policy that drew the tokens is the tempered one.

    Returns:
        Log-probabilities in nats, ≤ 0, [...], in float32 at least.

    Raises:
        ValueError: logits are not tokens' shape plus one vocabulary axis, tokens are not integers, or temperature is
            not in (0, ∞).

    Source: the definition of a softmax policy; temperature as in §5 of the paper (1.0).
    """
    check_number("temperature", temperature, 0.0, math.inf, "()")
    check_tensor("logits", logits)
    check_tensor("tokens", tokens)
    if tokens.is_floating_point():
        raise ValueError(f"tokens must hold integers, got {tokens.dtype}; pass token ids")
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} do not fit tokens of shape {tuple(tokens.shape)}; "
            "pass one row of V logits for each token"
        )
    logp = (at_least_float32(logits) / temperature).log_softmax(-1)
    return logp.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Float[Tensor, "*batch V"], *, temperature: float = 1.0) -> Float[Tensor, "*batch"]:
    """H = −Σ π log π of the next-token distribution, where a token of probability zero adds nothing.

    Args:
        logits: scores over the vocabulary, [..., V]; −inf forbids a token.
        temperature: divides the logits, > 0.

    Returns:
        Entropy in nats, in [0, log V], [...], in float32 at least.

    Raises:
        ValueError: temperature is not in (0, ∞).

    Source: the definition of entropy.
    """
    check_number("temperature", temperature, 0.0, math.inf, "()")
    logp = (at_least_float32(logits) / temperature).log_softmax(-1)
    possible = logp > -torch.inf
    logp = torch.where(possible, logp, 0.0)
    return -(logp.exp() * logp).sum(-1)


def with_rest(logp: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k+1"]:
    """Append the log-probability of all tokens that are not listed, log(1 − Σ π): one bucket for the rest.

    A divergence over the result is a divergence, and bounds that of the whole vocabulary from below. A sum over the
    top k tokens alone does neither. Take the same k tokens for every policy.

    Args:
        logp: log-probabilities of k distinct tokens, in nats, [..., k].

    Returns:
        [..., k + 1], in float32 at least; the rest has the probability 1e-7 at least in float32, 2e-16 in float64.

    Raises:
        ValueError: the probabilities of a row add up to more than 1, by more than rounding.

    Source: verl#7856 (the bucket); the data-processing inequality, Csiszár 1967.
    """
    check_tensor("logp", logp)
    logp = at_least_float32(logp)
    kept, least = logp.logsumexp(-1, keepdim=True), torch.finfo(logp.dtype).eps
    if (kept > 1e-3).any():
        raise ValueError(f"the probabilities of a row add up to {kept.max().exp():.4g}; pass those of distinct tokens")
    kept = kept.clamp(max=-least)
    half = -math.log(2)
    many, few = kept.clamp(min=half), kept.clamp(max=half)
    return torch.cat([logp, torch.where(kept > half, (-many.expm1()).log(), (-few.exp()).log1p())], -1)
