"""A sampler that is not π_old: what a loss does with its log-probabilities, and what dumped ones are.

``identify_sampler`` gives a loss a sixth tensor and finds the weight that it makes of it. ``audit_sampler`` looks at
the log-probabilities that an engine returned for one batch, and at the tokens that it drew.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from rpg_ref.audit.advised import Advised, advice_lines, advice_records
from rpg_ref.audit.identify import Report, descent, find, identify
from rpg_ref.audit.population import Loss, as_loss, population
from rpg_ref.checks import check_log_probs, check_mask

_SAME = 1e-5
_FARTHEST, _LEFT = 4.0, 1e-3

_Weight = Callable[[Float[Tensor, "B T"], Bool[Tensor, "B T"]], Float[Tensor, "B T"]]


def _shifted(x: Tensor, by: int) -> Tensor:
    """Column t holds what column t − by held."""
    return torch.roll(x, by, 1)


# From log π_old − log π_sampler, 0 where the mask leaves out.
SAMPLER_WEIGHTS: dict[str, _Weight] = {
    "π_old/π_sampler of the token": lambda d, mask: d.exp(),
    "π_old/π_sampler of the response": lambda d, mask: d.sum(1, keepdim=True).exp().expand(d.shape),
    "the geometric mean of π_old/π_sampler over the response": lambda d, mask: (
        (d.sum(1) / mask.sum(1)).exp()[:, None].expand(d.shape)
    ),
    "π_old/π_sampler of the tokens up to it": lambda d, mask: d.cumsum(1).exp(),
    "nothing": lambda d, mask: torch.ones_like(d),
    "π_sampler/π_old of the token": lambda d, mask: (-d).exp(),
    "π_sampler/π_old of the response": lambda d, mask: (-d.sum(1, keepdim=True)).exp().expand(d.shape),
    "the square of π_old/π_sampler of the token": lambda d, mask: (2 * d).exp(),
    "π_old/π_sampler of the token before": lambda d, mask: _shifted(d, 1).exp(),
    "π_old/π_sampler of the token after": lambda d, mask: _shifted(d, -1).exp(),
}
"""What a loss may multiply a token by, right ones first."""

RIGHT_WEIGHTS = tuple(SAMPLER_WEIGHTS)[:4]
_FIX = "Multiply each token's whole loss: `loss = (logp_old - logp_sampler).exp().detach() * loss`."


@dataclass(frozen=True)
class SamplerReport:
    """What a loss does with a sampler's log-probabilities.

    Attributes:
        report: the objective where π_sampler is π_old, as from ``identify``.
        apart: the objective where it is not: π_θ is π_old, and the batch's tokens are π_sampler's.
        weights: by part, "reward" and "penalty", what it is multiplied by; None: no known weight.
        bounds: by part, how the weight is bounded, in words; empty: it is not, up to e⁴.
        remarks: what is wrong, with advice.

    Source: ours; the weight is that of importance sampling.
    """

    report: Report
    apart: Report
    weights: dict[str, str | None]
    bounds: dict[str, str]
    remarks: tuple[Advised, ...]

    @property
    def ok(self) -> bool:
        """Whether no remark is an error."""
        return not self.report.faults and all(remark.severity != "error" for remark in self.remarks)

    def record(self) -> dict[str, Any]:
        """Return plain values, as a JSON file holds them."""
        return {
            "verdict": str(self.report),
            "apart": self.apart.off_policy.verdict,
            "weights": dict(self.weights),
            "bounds": dict(self.bounds),
            "remarks": advice_records(self.remarks),
        }

    def __str__(self) -> str:
        """Return the objectives, the weight of each part, and the remarks."""
        lines = [str(self.report), f"with a sampler that is not π_old: {self.apart.off_policy.verdict}"]
        lines += [f"- {hazard}" for hazard in self.apart.hazards if hazard.startswith("off-policy")]
        for part, weight in self.weights.items():
            bound = f", {self.bounds[part]}" if self.bounds.get(part) else ""
            lines.append(f"the {part} part is multiplied by {weight or 'no known weight'}{bound}")
        return "\n".join([*lines, *advice_lines(self.remarks)])


def identify_sampler(loss_fn: Loss, *, level: str = "token", seed: int = 0) -> SamplerReport:
    """Find what a loss makes of the log-probabilities of a sampler that is not π_old.

    Args:
        loss_fn: loss_fn(logp, logp_old, logp_ref, advantages, mask, logp_sampler), the sixth tensor [B, T]; else as for
            ``identify``.
        level: of the terms that the objective is compared with, "token" or "sequence".
        seed: of the policies.

    Returns:
        SamplerReport; print it.

    Raises:
        ValueError: as ``identify``.

    Source: ours.
    """
    report = identify(lambda p, q, r, A, mask: loss_fn(p, q, r, A, mask, q.clone()), level=level, seed=seed)
    batch = population(seed)
    # The population's π_old draws the batch; the trainer's π_old is where π_θ stands.
    apart = as_loss(lambda p, q, r, A, mask: loss_fn(p, p.detach(), r, A, mask, q))
    stale = find(partial(descent, apart, batch), batch, level)
    weights, bounds = dict[str, str | None](), dict[str, str]()
    for part in ("reward", "penalty"):
        read = _Part(loss_fn, part)
        if read.there:
            weights[part] = read.weight()
            bounds[part] = read.bounds(weights[part])
    return SamplerReport(report, stale, weights, bounds, tuple(_remarks(weights, bounds)))


class _Part:
    """One part of a loss on a small batch where π_θ is π_old, and the factor by which a sampler changes its pulls."""

    def __init__(self, loss_fn: Loss, part: str) -> None:
        rng = torch.Generator().manual_seed(0)
        self.loss = as_loss(lambda p, q, r, A, mask: loss_fn(p, p.detach(), r, A, mask, q))
        p, gap = torch.randn((2, 8, 6), generator=rng, dtype=torch.float64)
        self.p, self.r = -1.0 - p.abs(), -1.0 - p.abs() - 0.3
        self.gap = 0.05 * gap
        self.mask = torch.arange(6) < torch.tensor([3, 6, 4, 5, 3, 3, 6, 5])[:, None]
        A = torch.randn(8, generator=rng, dtype=torch.float64)
        self.part, self.A = part, A - A.mean()
        self.base = self.pull(self.p)
        whole = self.base if part == "reward" else self.pull(self.p, reward=True)
        self.there = bool(self.base.abs().max() > 1e-9 * whole.abs().max()) and bool(self.base.abs().max() > 0)

    def pull(self, sampler: Tensor, *, reward: bool | None = None) -> Tensor:
        """The part's pull of each token."""

        def of(A: Tensor) -> Tensor:
            leaf = self.p.clone().requires_grad_()
            loss = self.loss(leaf, sampler, self.r, A, self.mask)
            (gradient,) = torch.autograd.grad(loss, leaf, materialize_grads=True, allow_unused=True)
            return torch.where(self.mask, -gradient.double(), 0.0)

        plus, minus = of(self.A), of(-self.A)
        return (plus - minus) / 2 if self.part == "reward" or reward else (plus + minus) / 2

    def factor(self, d: Tensor) -> Tensor:
        """What log π_old − log π_sampler = d multiplies each token's pull by; 1 where there is none."""
        live = self.mask & (self.base.abs() > 1e-9 * self.base.abs().max())
        return torch.where(live, self.pull(self.p - d) / torch.where(live, self.base, 1.0), 1.0)

    def weight(self) -> str | None:
        """The name of the factor, up to one number for all tokens, since a loss may normalise its weights."""
        d = torch.where(self.mask, self.gap, 0.0)
        found = self.factor(d)
        live = self.mask & (self.base.abs() > 1e-9 * self.base.abs().max())
        for exact in (True, False):
            for name, weigh in SAMPLER_WEIGHTS.items():
                ratio = (found / weigh(d, self.mask))[live]
                middle = torch.ones(()) if exact else ratio.median()
                if bool((ratio - middle).abs().max() < _SAME * middle.abs()):
                    return name if exact else f"{name}, normalised over the batch"
        told = live & (d.abs() > 0.01)
        powers = (found.log() / torch.where(told, d, 1.0))[told]
        if bool((powers - powers.median()).abs().max() < _SAME * powers.median().abs()):
            return f"π_old/π_sampler of the token to the power {float(powers.median()):.3g}, as at another temperature"
        return None

    def _left(self, nats: float) -> Tensor | None:
        """The factor where all tokens are so far from the sampler, if it is no longer the ratio; else None."""
        factor = self.factor(torch.where(self.mask, nats, 0.0))[self.mask & (self.base != 0)]
        return factor if bool((factor * math.exp(-nats) - 1).abs().max() > _LEFT) else None

    def bounds(self, weight: str | None) -> str:
        """How the factor stops following the ratio, as all tokens move together."""
        if weight != "π_old/π_sampler of the token":
            return ""
        ends = []
        for sign, side in ((1.0, "above"), (-1.0, "below")):
            inside, outside = 0.0, _FARTHEST
            stopped = self._left(sign * outside)
            if stopped is None:
                continue
            while outside - inside > _LEFT:
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if self._left(sign * middle) is None else (inside, middle)
            value = float(stopped.median())
            how = "set to 0" if bool((stopped.abs() < 1e-9).all()) else f"clamped to {value:.3g}"
            ends.append(f"{how} {side} {math.exp(sign * inside):.3g}")
        return " and ".join(ends)


def _remarks(weights: dict[str, str | None], bounds: dict[str, str]) -> Iterator[Advised]:
    for part, weight in weights.items():
        whose = "the advantages' part" if part == "reward" else "the penalty"
        if weight is None:
            yield Advised(
                f"{whose} depends on the sampler's log-probabilities by no known weight",
                "warning",
                "The tokens are the sampler's, and only π_old/π_sampler makes them stand for π_old's.",
                _FIX,
            )
        elif weight == "nothing":
            yield Advised(
                f"{whose} is not weighted: the sampler's log-probabilities change nothing there",
                "warning" if part == "penalty" and weights.get("reward") not in ("nothing", None) else "error",
                "Its gradient is that of the objective only where the sampler is π_old.",
                _FIX,
            )
        elif weight.removesuffix(", normalised over the batch") not in RIGHT_WEIGHTS:
            yield Advised(
                f"{whose} is multiplied by {weight}",
                "error",
                "Only π_old/π_sampler, of that token or of its response, makes the tokens stand for π_old's.",
                _FIX,
            )
        elif weight.endswith("normalised over the batch"):
            yield Advised(
                f"{whose} is multiplied by {weight}",
                "note",
                "Normalised weights are biased in a small batch, and depend on its split.",
                "Nothing is to be done if the normalisation is meant.",
            )
        if bounds.get(part):
            yield Advised(
                f"the sampler's weight in {whose} is {bounds[part]}",
                "note",
                "A bound trades variance for bias at the tokens outside it.",
                "Nothing is to be done if the bound is meant.",
            )


class Drawn(NamedTuple):
    """What the drawn tokens tell of the sampler.

    Attributes:
        temperature: at which they were drawn, by maximum likelihood.
        error: its standard error.
        top_p: the mass of more likely tokens beyond which none was drawn, or None.
        top_k: the rank beyond which none was drawn, or None.

    Source: maximum likelihood.
    """

    temperature: float
    error: float
    top_p: float | None
    top_k: int | None


@dataclass(frozen=True)
class EngineReport:
    """What an engine's log-probabilities are, beside the trainer's log π_old of the same tokens.

    Attributes:
        difference: mean of |log π_sampler − log π_old| over the tokens.
        kept: mean of π_old/π_sampler: the mass of π_old on what the sampler may draw, 1 if that is everything.
        error: its standard error.
        temperatures: of the sampler's and of the trainer's log-probabilities, from the logits; None: not told.
        drawn: what the tokens tell, from the logits; None: not told.
        remarks: what is wrong, with advice.

    Source: ours.
    """

    difference: float
    kept: float
    error: float
    temperatures: tuple[float | None, float | None] | None = None
    drawn: Drawn | None = None
    remarks: tuple[Advised, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no remark is an error."""
        return all(remark.severity != "error" for remark in self.remarks)

    def record(self) -> dict[str, Any]:
        """Return plain values, as a JSON file holds them."""
        return {
            "difference": self.difference,
            "kept": self.kept,
            "error": self.error,
            "temperatures": self.temperatures and list(self.temperatures),
            "drawn": self.drawn and self.drawn._asdict(),
            "remarks": advice_records(self.remarks),
        }

    def __str__(self) -> str:
        """Return the numbers and the remarks."""
        lines = [
            f"|log π_sampler − log π_old| is {self.difference:.2g} on average; "
            f"the mean of π_old/π_sampler is {self.kept:.3f} ± {self.error:.3f}"
        ]
        return "\n".join([*lines, *advice_lines(self.remarks)])


# How many standard errors are no chance, how many tokens must be missing, and how near log-probabilities must be.
_SIGMAS, _MISSING, _NEAR = 5.0, 12.0, 0.02


def audit_sampler(
    logp_sampler: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    logits: Float[Tensor, "B T V"] | None = None,
    ids: Int[Tensor, "B T"] | None = None,
) -> EngineReport:
    """Say what an engine's log-probabilities are: shifted, at another temperature, of a truncated distribution.

    Args:
        logp_sampler: log-probabilities that the engine returned for the tokens that it drew, [B, T].
        logp_old: log π_old of the same tokens, by the trainer, [B, T].
        mask: [B, T], nonzero for tokens that the engine drew.
        logits: π_old's logits before any temperature, [B, T, V], for a few responses at least. With them the report
            names the temperature and the truncation; without them it can only tell that there is one.
        ids: the tokens, [B, T]; needed with logits.

    Returns:
        EngineReport; print it.

    Raises:
        ValueError: shapes differ, a kept value is not finite, nothing is kept, or logits come without ids.

    Source: ours; under π_sampler the mean of π_old/π_sampler is π_old's mass on its support.
    """
    check_log_probs(logp_old, logp_sampler=logp_sampler)
    check_mask(mask, logp_old.shape)
    keep = mask != 0
    s, q = logp_sampler.double(), logp_old.double()
    if int(keep.sum()) < 2:
        raise ValueError(f"the mask keeps {int(keep.sum())} tokens; pass a batch of many")
    for name, x in (("logp_sampler", s), ("logp_old", q)):
        if not bool(x[keep].isfinite().all()):
            at = (keep & ~x.isfinite()).nonzero()[0].tolist()
            raise ValueError(f"{name}{at} is {x[tuple(at)].item()} where the mask keeps it; mend what computed it")
    if logits is not None and (ids is None or logits.shape[:2] != q.shape or ids.shape != q.shape):
        raise ValueError("logits must be [B, T, V] and come with ids [B, T]; pass both")
    d = (s - q)[keep]
    ratio = (-d).exp()
    error = float(ratio.std() / math.sqrt(len(d)))
    report = partial(EngineReport, float(d.abs().mean()), float(ratio.mean()), error)
    late = list(_late(s, q, keep))
    if late:
        return report(remarks=tuple(late))
    if logits is None or ids is None:
        return report(remarks=tuple(_without_logits(d, q[keep], float(ratio.mean()), error)))
    z, y = logits[keep].double(), ids[keep]
    fitted = (_temperature_of(z, y, s[keep]), _temperature_of(z, y, q[keep]))
    drawn, kept = _drawn(z, y, [1 / tau for tau in fitted if tau])
    return report(fitted, drawn, tuple(_with_logits(z, s[keep], q[keep], fitted, drawn, kept)))


def _late(s: Tensor, q: Tensor, keep: Tensor) -> Iterator[Advised]:
    """Whether the sampler's log-probabilities are another token's."""
    here = float((s - q)[keep].abs().median())
    for by, how in ((1, "one token late"), (-1, "one token early"), (2, "two tokens late"), (-2, "two tokens early")):
        both = keep & _shifted(keep, by)
        # What was rolled around the end is no neighbour.
        both[:, slice(0, by) if by > 0 else slice(by, None)] = False
        if bool(both.any()) and float((s - _shifted(q, by))[both].abs().median()) < min(0.2 * here, 0.1):
            column = f"logp_sampler[:, t] is the token {'before' if by > 0 else 'after'}"
            yield Advised(
                f"the sampler's log-probabilities are {how}: {column}",
                "error",
                "The ratio π_old/π_sampler compares two different tokens.",
                f"Cut both the same way: `logp_sampler = logp_sampler[:, {by}:]`."
                if by > 0
                else f"Cut both the same way: drop the last {-by} columns of `logp_old`, the first of `logp_sampler`.",
            )
            return


def _missing_mass(kept: float, error: float) -> Advised:
    return Advised(
        f"the sampler's distribution is truncated: {1 - kept:.1%} ± {error:.1%} of π_old's mass is on tokens that it "
        "never draws",
        "warning",
        "No weight makes up for tokens that cannot be drawn: the gradient is that of the truncated policy.",
        "Sample with `top_p=1.0, top_k=-1, min_p=0.0`, or truncate π_θ and π_old to the same tokens.",
    )


def _without_logits(d: Tensor, q: Tensor, kept: float, error: float) -> Iterator[Advised]:
    if float(d.abs().mean()) < _NEAR / 10:
        return
    # Every token of a renormalised distribution is likelier than in the whole one.
    if kept < 1 - _SIGMAS * error and float((d < -_NEAR).double().mean()) < 0.01:
        yield _missing_mass(kept, error)
        return
    slope = float(torch.corrcoef(torch.stack([d, q]))[0, 1]) if float(d.std()) > 0 and float(q.std()) > 0 else 0.0
    if abs(slope) > 0.5 and float(d.abs().mean()) > _NEAR:
        yield Advised(
            f"the sampler's log-probabilities look like those of a {'lower' if slope > 0 else 'higher'} temperature "
            "than π_old's: rare tokens differ most",
            "warning",
            "The ratio π_old/π_sampler is then that of two temperatures, and not 1 where the policies are the same.",
            "Use one temperature: return processed log-probabilities, and `(logits / temperature).log_softmax(-1)`.",
        )
    if kept < 1 - _SIGMAS * error and abs(slope) <= 0.5:
        yield _missing_mass(kept, error)


def _temperature_of(z: Tensor, y: Tensor, logp: Tensor) -> float | None:
    """The temperature at which the logits have these log-probabilities, or None."""
    log_tau = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64)
    step = float(log_tau[1] - log_tau[0])

    def left(x: float) -> float:
        found = (z / math.exp(x)).log_softmax(-1).gather(-1, y[:, None]).squeeze(-1)
        return float((found - logp).abs().median())

    best = min(log_tau.tolist(), key=left)
    while step > 1e-7:
        best = min((best - step / 2, best, best + step / 2), key=left)
        step /= 2
    return math.exp(best) if left(best) < _NEAR else None


class _Draw(NamedTuple):
    """A model of how tokens were drawn: inverse temperature and its information, tokens kept, log-likelihood."""

    beta: float
    information: float
    kept: Bool[Tensor, "N V"]
    likelihood: float


def _fitted(z: Tensor, y: Tensor, kept: Tensor) -> _Draw:
    """Fit the inverse temperature of a softmax over the kept tokens, by Newton's method on log β."""
    beta, information = 1.0, 0.0
    inside = z.masked_fill(~kept, -math.inf)
    chosen = z.gather(-1, y[:, None]).squeeze(-1)
    for _ in range(50):
        p = (beta * inside).softmax(-1)
        mean = (p * z).sum(-1)
        information = float(((p * z.square()).sum(-1) - mean.square()).clamp(min=0).sum())
        if information <= 0:
            break
        step = max(-0.5, min(0.5, float((chosen - mean).sum()) / information / beta))
        beta = max(1e-3, min(1e3, beta * math.exp(step)))
        if abs(step) < 1e-10:
            break
    likelihood = float((beta * inside).log_softmax(-1).gather(-1, y[:, None]).sum())
    return _Draw(beta, information, kept, likelihood)


def _drawn(z: Tensor, y: Tensor, told: Sequence[float]) -> tuple[Drawn, Tensor]:
    """Tell how the tokens were drawn, and which tokens could be, [N, V]; ``told`` are inverse temperatures to try."""
    order = z.argsort(-1, descending=True)
    rank = order.argsort(-1)
    own = rank.gather(-1, y[:, None])
    whole = _fitted(z, y, torch.ones_like(z, dtype=torch.bool))
    top_k = int(own.max()) + 1
    by_rank = _fitted(z, y, rank < top_k)

    def of_mass(beta: float) -> tuple[float, float, Tensor]:
        """The likelihood of a truncation by mass at β, the mass before the least likely drawn token, what is kept."""
        p = (beta * z).softmax(-1).gather(-1, order)
        before = (p.cumsum(-1) - p).gather(-1, rank)
        top_p = float(before.gather(-1, y[:, None]).max())
        inside = (beta * z).masked_fill(before > top_p, -math.inf)
        return float(inside.log_softmax(-1).gather(-1, y[:, None]).sum()), top_p, before <= top_p

    # What is truncated looks colder than it is.
    around = whole.beta * torch.linspace(-0.8, 0.2, 41, dtype=torch.float64).exp()
    beta = max([*around.tolist(), *told], key=lambda beta: of_mass(beta)[0])
    top_p, kept = of_mass(beta)[1:]
    by_mass = _fitted(z, y, kept)
    best = max((whole, by_rank, by_mass), key=lambda draw: draw.likelihood)
    best = best if best.likelihood > whole.likelihood + _MISSING else whole
    error = math.inf if best.information <= 0 else 1 / best.beta**2 / math.sqrt(best.information)
    of_p, of_k = best is by_mass and best is not whole, best is by_rank and best is not whole
    return Drawn(1 / best.beta, error, top_p if of_p else None, top_k if of_k else None), best.kept


def _with_logits(
    z: Tensor, s: Tensor, q: Tensor, fitted: tuple[float | None, float | None], drawn: Drawn, kept: Tensor
) -> Iterator[Advised]:
    of_sampler, of_old = fitted
    remedy = (
        "Use one temperature: return processed log-probabilities, and `logp = (logits / temperature).log_softmax(-1)`."
    )
    if of_sampler and of_old and abs(of_sampler / of_old - 1) > 0.01:
        yield Advised(
            f"the sampler's log-probabilities are those at temperature {of_sampler:.3g}, π_old's those at {of_old:.3g}",
            "error",
            "The ratio π_old/π_sampler is then that of two temperatures, and not 1 where the policies are the same.",
            remedy,
        )
    told, whose = (of_sampler, "the sampler's") if of_sampler else (of_old, "π_old's")
    if told and abs(drawn.temperature - told) > max(_SIGMAS * drawn.error, 0.01 * told):
        yield Advised(
            f"the tokens were drawn at temperature {drawn.temperature:.2g} ± {drawn.error:.1g}, and {whose} "
            f"log-probabilities are those at {told:.3g}",
            "error",
            "The log-probabilities are not those of the distribution that drew the tokens.",
            remedy,
        )
    if drawn.top_p is not None or drawn.top_k is not None:
        p = (z / (of_old or drawn.temperature)).softmax(-1)
        outside = float(torch.where(kept, 0.0, p).sum(-1).mean())
        what = f"{drawn.top_k} likeliest tokens" if drawn.top_k else f"likeliest tokens, of mass {drawn.top_p:.3g},"
        returned = "of the whole distribution" if of_sampler else "of the truncated one"
        yield Advised(
            f"only the {what} were drawn, as by top-{'k' if drawn.top_k else 'p'}: {outside:.1%} of π_old's mass is "
            f"outside; the sampler's log-probabilities are those {returned}",
            "warning",
            "No weight makes up for tokens that cannot be drawn: the gradient is that of the truncated policy.",
            "Sample with `top_p=1.0, top_k=-1, min_p=0.0`, or truncate π_θ and π_old to the same tokens.",
        )
    elif of_sampler is None and float((s - q).abs().mean()) > _NEAR:
        yield Advised(
            "no temperature of these logits gives the sampler's log-probabilities",
            "warning",
            "The engine has other weights, another template, or another precision than the trainer.",
            "Compare both log-probabilities of one response, right after the weights are sent to the engine.",
        )
