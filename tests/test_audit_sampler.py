"""`identify_sampler` against losses with a sixth tensor, `audit_sampler` against tokens of known distributions."""

import json
import math

import pytest
import torch
from tiers import quick

from rpg_ref import RECIPES, k3
from rpg_ref.audit import audit_sampler, identify_sampler

BETA = 0.1
MEANT = {"reward": 1.0, "reverse_kl": BETA}


def loss_with(weigh, of_penalty=None):
    """PPO's gain and a weighted k3, each token multiplied by a function of log π_old − log π_sampler and the mask."""

    def loss(p, q, r, A, mask, s):
        d = torch.where(mask, q - s, 0.0).detach()
        w = (p - q).exp()
        gain = torch.minimum(w * A[:, None], w.clamp(0.8, 1.2) * A[:, None])
        cost = BETA * w * k3(r - p)
        total = (of_penalty or weigh)(d, mask) * cost - weigh(d, mask) * gain
        return torch.where(mask, total, 0.0).sum() / mask.sum()

    return loss


def one(d, mask):
    return torch.ones_like(d)


def ratio(d, mask):
    return d.exp()


def normalised(d, mask):
    return d.exp() * mask.sum() / (d.exp() * mask).sum()


TOKEN = "π_old/π_sampler of the token"
WEIGHTS = {
    "right": (ratio, TOKEN, None, ""),
    "nothing": (one, "nothing", "error", "the sampler's log-probabilities change nothing there"),
    "inverse": (lambda d, m: (-d).exp(), "π_sampler/π_old of the token", "error", "multiplied by π_sampler/π_old"),
    "square": (lambda d, m: (2 * d).exp(), f"the square of {TOKEN}", "error", "the square of"),
    "tempered": (
        lambda d, m: (d / 0.7).exp(),
        f"{TOKEN} to the power 1.43, as at another temperature",
        "error",
        "as at another temperature",
    ),
    "late": (lambda d, m: d.roll(1, 1).exp(), f"{TOKEN} before", "error", "of the token before"),
    "early": (lambda d, m: d.roll(-1, 1).exp(), f"{TOKEN} after", "error", "of the token after"),
    "response": (lambda d, m: d.sum(1, True).exp(), "π_old/π_sampler of the response", None, ""),
    "geometric": (
        lambda d, m: (d.sum(1, True) / m.sum(1, True)).exp(),
        "the geometric mean of π_old/π_sampler over the response",
        None,
        "",
    ),
    "prefix": (lambda d, m: d.cumsum(1).exp(), "π_old/π_sampler of the tokens up to it", None, ""),
    "normalised": (normalised, f"{TOKEN}, normalised over the batch", "note", "Normalised"),
    "unknown": (lambda d, m: 1 + d**2 + d, None, "warning", "by no known weight"),
    "clamped": (lambda d, m: d.exp().clamp(max=2.0), TOKEN, "note", "clamped to 2 above 2"),
    "masked": (
        lambda d, m: d.exp() * ((d.exp() < 2) & (d.exp() > 0.5)),
        TOKEN,
        "note",
        "set to 0 above 2 and set to 0 below 0.5",
    ),
}


@pytest.mark.parametrize("name", quick(WEIGHTS, ["right", "nothing", "late", "clamped", "normalised", "unknown"]))
def test_what_a_loss_makes_of_the_sampler(name):
    weigh, weight, severity, sentence = WEIGHTS[name]
    report = identify_sampler(loss_with(weigh))
    assert report.weights == {"reward": weight, "penalty": weight}
    assert dict(report.report.off_policy.objective.terms) == pytest.approx(MEANT)
    assert {x.severity for x in report.remarks} == ({severity} if severity else set()), report
    assert sentence in " ".join([*report.remarks, *(x.why for x in report.remarks)])
    # A weight of the token alone makes it the objective's gradient: right ones, bounded ones where nothing is bounded.
    right = weight in (TOKEN, f"{TOKEN}, normalised over the batch")
    objective = report.apart.off_policy.objective
    assert (objective is not None and dict(objective.terms) == pytest.approx(MEANT, rel=1e-4)) == right
    assert report.ok == (severity != "error")
    assert json.loads(json.dumps(report.record(), allow_nan=False))["weights"]["reward"] == weight
    assert f"the reward part is multiplied by {weight or 'no known weight'}" in str(report)


def test_a_penalty_that_is_not_weighted():
    report = identify_sampler(loss_with(ratio, one))
    assert report.weights == {"reward": TOKEN, "penalty": "nothing"}
    (remark,) = report.remarks
    assert remark.severity == "warning" and remark.startswith("the penalty is not weighted")
    assert report.apart.off_policy.objective is None


def test_a_loss_without_a_penalty_or_without_a_reward():
    def of(part):
        def loss(p, q, r, A, mask, s):
            x = -A[:, None] if part == "reward" else k3(r - p)
            return torch.where(mask, (p - s).exp() * x, 0.0).sum() / mask.sum()

        return loss

    for part in ("reward", "penalty"):
        assert identify_sampler(of(part)).weights == {part: TOKEN}


def test_the_response_weight_is_right_at_its_own_level():
    def loss(p, q, r, A, mask, s):
        p, q, s = (torch.where(mask, x, 0.0).sum(1) for x in (p, q, s))
        return -((p - q).exp() * (q - s).exp().detach() * A).mean()

    report = identify_sampler(loss, level="sequence")
    assert dict(report.apart.off_policy.objective.terms) == {"reward": 1.0} and report.remarks == ()
    assert "it is an objective at sequence level" in str(identify_sampler(loss))


@pytest.mark.parametrize("name", quick(["rpg-urkl", "rpg-reinforce-ufkl-clip", "dapo"], ["rpg-urkl"]))
def test_our_recipes_take_a_sampler(name):
    recipe = RECIPES[name]
    report = identify_sampler(lambda p, q, r, A, mask, s: recipe.scalar_loss(p, q, r, A, mask, logp_sampler=s))
    assert set(report.weights.values()) == {TOKEN} and report.ok
    assert dict(report.apart.off_policy.objective.terms) == pytest.approx(dict(recipe.off_policy.terms), rel=1e-4)


ROWS, WIDTH, VOCABULARY = 24, 48, 40


class Engine:
    """Tokens of a random policy, drawn at a temperature from the k likeliest tokens or the likeliest of mass p."""

    def __init__(self, tau=1.0, k=VOCABULARY, p=1.0, seed=0):
        self.rng = torch.Generator().manual_seed(seed)
        shape = (ROWS, WIDTH, VOCABULARY)
        self.logits = 2 * torch.randn(shape, generator=self.rng, dtype=torch.float64)
        self.mask = torch.arange(WIDTH) < torch.randint(20, WIDTH + 1, (ROWS, 1), generator=self.rng)
        chance, order = (self.logits / tau).softmax(-1).sort(-1, descending=True)
        kept = (torch.arange(VOCABULARY) < k) & (chance.cumsum(-1) - chance < p)
        chance = chance * kept / (chance * kept).sum(-1, keepdim=True)
        drawn = torch.multinomial(chance.view(-1, VOCABULARY), 1, generator=self.rng).view(ROWS, WIDTH, 1)
        self.ids = order.gather(-1, drawn).squeeze(-1)
        self.processed = chance.gather(-1, drawn).squeeze(-1).log()

    def at(self, tau):
        return (self.logits / tau).log_softmax(-1).gather(-1, self.ids[..., None]).squeeze(-1)

    def noise(self, size=0.003):
        return size * torch.randn((ROWS, WIDTH), generator=self.rng, dtype=torch.float64)

    def audits(self, sampler, old):
        """With the logits and without."""
        full = audit_sampler(sampler, old, self.mask, logits=self.logits, ids=self.ids)
        return full, audit_sampler(sampler, old, self.mask)


def words(report):
    return " | ".join(f"{x.severity}: {x}" for x in report.remarks)


@pytest.mark.parametrize("tau", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_policy_is_not_accused(tau, seed):
    engine = Engine(tau, seed=seed)
    full, blind = engine.audits(engine.processed + engine.noise(), engine.at(tau) + engine.noise())
    assert full.remarks == () and blind.remarks == ()
    assert full.temperatures == pytest.approx((tau, tau), rel=0.01)
    assert abs(full.drawn.temperature - tau) < 5 * full.drawn.error < 0.2
    assert full.drawn.top_p is None and full.drawn.top_k is None
    assert full.kept == pytest.approx(1.0, abs=0.01) and full.ok


@pytest.mark.parametrize("seed", quick(range(4), [0]))
@pytest.mark.parametrize(("tau", "old"), [(0.7, 1.0), (1.0, 0.7), (1.4, 1.0)])
def test_two_temperatures(tau, old, seed):
    engine = Engine(tau, seed=seed)
    full, blind = engine.audits(engine.processed, engine.at(old))
    assert f"error: the sampler's log-probabilities are those at temperature {tau:.3g}, π_old's those at {old:.3g}" in (
        words(full)
    )
    assert "the tokens were drawn" not in words(full)
    assert f"look like those of a {'lower' if tau < old else 'higher'} temperature than π_old's" in words(blind)


@pytest.mark.parametrize("seed", quick(range(4), [0]))
def test_raw_log_probabilities_of_tempered_tokens(seed):
    """The engine returns log-probabilities before the temperature; both agree, and neither drew the tokens."""
    engine = Engine(0.6, seed=seed)
    full, blind = engine.audits(engine.at(1.0), engine.at(1.0))
    assert "error: the tokens were drawn at temperature 0.6" in words(full) or "at temperature 0.5" in words(full)
    assert abs(full.drawn.temperature - 0.6) < 5 * full.drawn.error
    assert blind.remarks == ()


@pytest.mark.parametrize("seed", quick(range(4), [0]))
@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize(("tau", "k", "p"), [(1.0, 8, 1.0), (1.0, VOCABULARY, 0.9), (0.8, VOCABULARY, 0.9)])
def test_truncated_sampling(tau, k, p, processed, seed):
    engine = Engine(tau, k, p, seed=seed)
    old = engine.at(tau)
    full, blind = engine.audits(engine.processed if processed else old, old)
    outside = 1 - float((old - engine.processed).exp()[engine.mask].mean())
    assert f"as by top-{'k' if k < VOCABULARY else 'p'}" in words(full)
    assert f"of the {'truncated one' if processed else 'whole distribution'}" in words(full)
    assert full.drawn.top_k == (k if k < VOCABULARY else None)
    assert full.drawn.top_p is None if k < VOCABULARY else full.drawn.top_p == pytest.approx(p, abs=0.03)
    assert "the tokens were drawn" not in words(full) and full.ok
    if processed:
        assert full.kept == pytest.approx(1 - outside)
        assert "warning: the sampler's distribution is truncated" in words(blind)
        assert f"{outside:.1%} ±" in words(blind)
    else:
        assert blind.remarks == ()


@pytest.mark.parametrize(("by", "how"), [(1, "one token late"), (-1, "one token early"), (2, "two tokens late")])
def test_shifted_log_probabilities(by, how):
    engine = Engine()
    for report in engine.audits(engine.processed.roll(by, 1) + engine.noise(), engine.at(1.0)):
        assert f"error: the sampler's log-probabilities are {how}" in words(report) and not report.ok
        assert len(report.remarks) == 1


def test_other_weights_in_the_engine():
    engine = Engine()
    full, blind = engine.audits(engine.processed + engine.noise(0.5), engine.at(1.0))
    assert "warning: no temperature of these logits gives the sampler's log-probabilities" in words(full)
    assert blind.remarks == () or "truncated" not in words(blind)


def test_truncated_and_of_other_weights():
    """Log-ratios of both signs, and a mass that is missing all the same."""
    engine = Engine(p=0.5)
    _, blind = engine.audits(engine.processed + engine.noise(0.5), engine.at(1.0))
    assert "the sampler's distribution is truncated" in words(blind)


def test_greedy_tokens():
    """Temperature 0: the likelihood has no maximum, and nothing breaks."""
    engine = Engine(k=1)
    full, _ = engine.audits(engine.at(1.0), engine.at(1.0))
    assert "error: the tokens were drawn at temperature 0.001" in words(full)
    engine.logits *= 1e6
    full, _ = engine.audits(engine.at(1e6), engine.at(1e6))
    assert full.drawn.error > 0


def test_the_report_as_text_and_as_json():
    engine = Engine(0.7)
    full, blind = engine.audits(engine.processed, engine.at(1.0))
    assert str(full).startswith("|log π_sampler − log π_old| is 0.") and "\n    fix: " in str(full)
    record = json.loads(json.dumps(full.record(), allow_nan=False))
    assert record["temperatures"][0] == pytest.approx(0.7) and record["drawn"]["top_p"] is None
    assert blind.record()["temperatures"] is None and blind.record()["drawn"] is None
    assert all(x.why.endswith(".") and x.fix for x in full.remarks + blind.remarks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros((ROWS, WIDTH))}, "the mask keeps 0 tokens"),
        ({"logp_sampler": torch.full((ROWS, WIDTH), math.nan)}, r"logp_sampler\[0, 0\] is nan where the mask keeps it"),
        ({"logp_old": torch.full((ROWS, WIDTH), -math.inf)}, r"logp_old\[0, 0\] is -inf where"),
        ({"logits": torch.zeros((ROWS, WIDTH, 3))}, "come with ids"),
    ],
)
def test_what_cannot_be_audited_is_refused(change, message):
    engine = Engine()
    given = {"logp_sampler": engine.processed, "logp_old": engine.processed, "mask": engine.mask}
    with pytest.raises(ValueError, match=message):
        audit_sampler(**(given | change))
