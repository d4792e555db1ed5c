"""The fused path against the plain one, which forms all logits and lets autograd go back through them."""

import math
import weakref
from collections import defaultdict
from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import share
from tiers import QUICK_RECIPES, quick
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from rpg_ref import (
    LEVELS,
    RECIPES,
    WeightBound,
    aggregate,
    fused_logprobs,
    fused_loss,
    token_entropy,
    token_logprobs,
)
from rpg_ref.clipping import DualClip, clipped_loss
from rpg_ref.fused import sees_other_tokens

B, T, V, D = 4, 5, 13, 6
TIGHT = {"rtol": 1e-12, "atol": 1e-12}
DENOMINATOR = 7.0
# A log-probability is off by a few units of rounding; a ratio of a response of T tokens then by T times as much.
ROUNDING = 5e-14


class Case:
    """Hidden states of two kinds of head, responses of any length from none to all, log-probs of three policies."""

    def __init__(self, seed, *, temperature=1.0, tied=False, spread=0.5, dtype=torch.float64, sampler=False):
        random = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)

        self.temperature, self.tied = temperature, tied
        self.hidden, self.head = draw(B, T, D), draw(V, D)
        self.tokens = torch.randint(V, (B, T), generator=random)
        lengths = torch.randint(0, T + 1, (B,), generator=random)
        lengths[seed % B] = T
        self.mask = torch.arange(T) < lengths[:, None]
        now = token_logprobs(self.states(self.hidden, self.head) @ self.head.T, self.tokens, temperature=temperature)
        self.old, self.ref, self.sampler = (now + spread * draw(B, T) for _ in range(3))
        self.sampler = self.sampler if sampler else None
        self.advantages = draw(B)

    def states(self, hidden, head):
        return hidden + 0.3 * head[self.tokens] if self.tied else hidden

    def dense(self, recipe, hidden, head, old, **options):
        logits = self.states(hidden, head) @ head.T
        logp = token_logprobs(logits, self.tokens, temperature=self.temperature)
        old = logp.detach() if old is None else old
        loss, metrics = recipe(
            logp, old, self.ref, self.advantages, self.mask, logp_sampler=self.sampler, denominator=DENOMINATOR
        )
        entropy = token_entropy(logits.detach(), temperature=self.temperature)
        return loss, metrics, torch.where(self.mask, logp, 0.0).detach(), torch.where(self.mask, entropy, 0.0)

    def fused(self, recipe, hidden, head, old, **options):
        options = {"temperature": self.temperature, "logp_sampler": self.sampler, "denominator": DENOMINATOR} | options
        states = self.states(hidden, head)
        return fused_loss(recipe, states, head, self.tokens, old, self.ref, self.advantages, self.mask, **options)

    def sizes(self, recipe, on_policy):
        """By key of ``everything``: the size of the terms that add up to it, which rounding is relative to."""
        logits = self.states(self.hidden, self.head) @ self.head.T
        logp = token_logprobs(logits, self.tokens, temperature=self.temperature)
        old = logp if on_policy else self.old

        def ratio(numerator, denominator):
            log_ratio = torch.where(self.mask, numerator - denominator, 0.0)
            return LEVELS[recipe.level].samples(log_ratio, self.mask).exp()

        sample = 1 + ratio(logp, old) + ratio(self.ref, old)
        if recipe.divergence == "chi2":
            # Its terms are products of w²/u over the tokens before, and of u or w²/u at the token.
            log_w, log_u = logp - old, self.ref - old
            sample = sample + ratio(torch.maximum((2 * log_w - log_u).abs(), log_u.abs()), 0.0)
        of_metrics = sample.max()
        if self.sampler is not None:
            sample = sample * ratio(old, self.sampler)
        # A sample of several tokens moves each of them; a prefix moves the tokens before it.
        token = sample if recipe.level == "token" else sample.sum(1, keepdim=True).expand(B, T)
        slope = 3 * token[..., None] / DENOMINATOR / self.temperature
        pull = slope * 2 * self.head.abs().max()
        sizes = {
            "loss": sample.sum() / DENOMINATOR,
            "hidden": pull,
            "head": slope.sum() * 2 * self.states(self.hidden, self.head).abs().max() + self.tied * pull.sum(),
            "logp": 1 + logits.abs().max() / self.temperature,
            "entropy": 1 + logits.abs().max() / self.temperature,
        }
        return defaultdict(lambda: of_metrics, sizes)

    def everything(self, path, recipe, *, on_policy, **options):
        hidden, head = (x.clone().requires_grad_() for x in (self.hidden, self.head))
        loss, metrics, logp, entropy = path(recipe, hidden, head, None if on_policy else self.old, **options)
        (3 * loss).backward()
        return {
            "loss": loss.detach(),
            "hidden": hidden.grad,
            "head": head.grad,
            "logp": logp,
            "entropy": entropy,
            **metrics,
        }


@pytest.mark.parametrize("name", quick(dict.fromkeys(recipe.name for recipe in RECIPES.values()), QUICK_RECIPES))
@share(5)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([1.0, 0.6, 2.0]),
    tied=st.booleans(),
    on_policy=st.booleans(),
    sampler=st.booleans(),
    spread=st.sampled_from([0.01, 0.5, 3.0]),
    chunk=st.integers(1, B * T),
)
@example(seed=2601, temperature=1.0, tied=False, on_policy=True, sampler=True, spread=3.0, chunk=1)
def test_the_fused_path_is_the_plain_path(name, seed, temperature, tied, on_policy, sampler, spread, chunk):
    case = Case(seed, temperature=temperature, tied=tied, sampler=sampler, spread=spread)
    recipe = replace(RECIPES[name], beta=0.3) if RECIPES[name].beta else RECIPES[name]
    plain = case.everything(case.dense, recipe, on_policy=on_policy)
    fused = case.everything(case.fused, recipe, on_policy=on_policy, chunk=chunk)
    sizes = case.sizes(recipe, on_policy)
    for key, expected in plain.items():
        error = ((fused[key] - expected).abs() / sizes[key]).max()
        assert error <= ROUNDING, f"{key}: {error:.1e} of the size of its terms"


@pytest.mark.parametrize("token", range(3))
def test_one_tokens_score_says_the_entropy_in_fifty_digits(token):
    """Whichever token was drawn; from the definitions of a softmax and its entropy, at a temperature."""
    hidden, head, temperature = [0.7, -1.3], [[1.1, 0.4], [-0.8, 2.5], [0.3, -0.6]], 0.6
    with mpmath.workdps(50):
        h, W, tau = mpmath.matrix(hidden), mpmath.matrix(head), mpmath.mpf(temperature)
        powers = [mpmath.exp(z) for z in W * h / tau]
        p = [power / sum(powers) for power in powers]
        entropy = -sum(x * mpmath.log(x) for x in p)
        score = mpmath.matrix([((k == token) - p[k]) / tau for k in range(3)])
        assert abs(entropy + mpmath.log(p[token]) - (h.T * W.T * score)[0]) < 1e-48
        exact = [mpmath.log(p[token]), entropy, *(W.T * score), *(score * h.T)]
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([[hidden]], head)]
    ids, one = torch.tensor([[token]]), torch.ones(1, 1)
    out = fused_loss(RECIPES["ppo"], *leaves, ids, None, None, -one[0].double(), one, temperature=temperature)
    out.loss.backward()  # the advantage is −1 and the ratio 1: the gradient is the score
    found = torch.cat([x.flatten() for x in (out.logp, out.entropy, *(leaf.grad for leaf in leaves))])
    assert_close(found, torch.tensor([float(x) for x in exact], dtype=torch.float64), rtol=1e-14, atol=1e-15)


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([1.0, 0.6]), chunk=st.integers(1, B * T))
def test_fused_logprobs_are_token_logprobs(seed, temperature, chunk):
    case = Case(seed)

    def gradients(path):
        hidden, head = (x.clone().requires_grad_() for x in (case.hidden, case.head))
        logp = torch.where(case.mask, path(hidden, head), 0.0)
        (case.advantages[:, None] * logp**2).sum().backward()
        return logp.detach(), hidden.grad, head.grad

    plain = gradients(lambda h, W: token_logprobs(h @ W.T, case.tokens, temperature=temperature))
    fused = gradients(lambda h, W: fused_logprobs(h, W, case.tokens, case.mask, temperature=temperature, chunk=chunk))
    assert_close(fused, plain, **TIGHT)


def test_fused_logprobs_pass_gradcheck():
    case = Case(1)
    leaves = [case.hidden.requires_grad_(), case.head.requires_grad_()]
    assert torch.autograd.gradcheck(lambda h, W: fused_logprobs(h, W, case.tokens, case.mask, chunk=3), leaves)


@given(seed=st.integers(0, 2**32), hostile=st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
def test_what_is_masked_changes_nothing(seed, hostile):
    clean, dirty = Case(seed), Case(seed)
    for x in (dirty.hidden, dirty.old, dirty.ref):
        x[~dirty.mask] = hostile
    dirty.tokens[~dirty.mask] = -1
    recipe = RECIPES["rpg-urkl-clip"]
    expected = clean.everything(clean.fused, recipe, on_policy=False)
    found = dirty.everything(dirty.fused, recipe, on_policy=False)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", RECIPES)
def test_which_recipes_see_other_tokens(name, on_policy):
    """By autograd through a constant logp_old instead of by changing numbers, and by the level."""
    recipe = RECIPES[name]
    frozen_reward = name == "reinforce++" and on_policy  # its penalty to come is a function of π_old, here π_θ
    of_response = name in ("opsm", "gmpo") and not on_policy  # a token's weight, from the response's ratios
    expected = recipe.level != "token" or frozen_reward or of_response
    assert sees_other_tokens(recipe, on_policy=on_policy) == expected


def test_a_loss_of_ones_own_that_looks_around_is_found_out():
    """One that weighs a token by its response may not be taken token by token."""
    recipe = replace(RECIPES["rpg-reinforce-urkl-clip"], loss=_looks_around, clip=DualClip())
    assert sees_other_tokens(recipe, on_policy=False)
    case = Case(5)
    plain = case.everything(case.dense, recipe, on_policy=False)
    assert_close(case.everything(case.fused, recipe, on_policy=False, chunk=2), plain, **TIGHT)


@pytest.mark.parametrize("width", [1e-6, 1e-3, 1.0])
def test_a_recipe_that_drops_nearly_everything_is_found_out(width):
    """Of whole responses, with weight zero outside an interval that few ratios are in."""
    bound = WeightBound("mask", 1 - 0.5 * width, 1 + width)
    recipe = replace(RECIPES["cispo"], level="sequence", bound=bound)
    assert sees_other_tokens(recipe, on_policy=False)
    assert not sees_other_tokens(replace(recipe, level="token"), on_policy=False)


def _looks_around(logp, logp_old, advantage, divergence, beta, *, logp_ref=None, clip):
    loss = clipped_loss(logp, logp_old, advantage, divergence, beta, logp_ref=logp_ref, clip=clip)
    return loss * logp.detach().mean(1, keepdim=True).exp()


class Watch(TorchDispatchMode):
    """Write down each operation on a tensor with as many elements as a chunk's logits, and the largest ever made."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.seen, self.largest, self.alive, self.most = elements, [], 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        if any(x.numel() == self.elements for x in tensors) and name not in ("permute", "detach", "alias"):
            self.seen.append(name)
        if name == "mm" and out.numel() == self.elements:
            self.alive = [x for x in self.alive if x() is not None] + [weakref.ref(out)]
            self.most = max(self.most, len(self.alive))
        self.largest = max([self.largest, *(x.numel() for x in tensors)])
        return out


ONE_PASS = ["mm", "amax", "gather", "sub_", "exp_", "scatter_", "sum", "div_", "scatter_", "mm", "addmm_"]
FORWARD = ONE_PASS[:7]


@pytest.mark.parametrize(
    ("name", "passes"), [("rpg-urkl-clip", ONE_PASS), ("grpo", ONE_PASS), ("gspo", [*FORWARD, *ONE_PASS])]
)
def test_how_often_a_chunk_is_touched(name, passes):
    """Three products (four), five passes over the chunk between them, and nothing larger than the chunk or the head."""
    hidden = torch.randn(2, 32, 8, requires_grad=True)
    head = torch.randn(1009, 8, requires_grad=True)
    tokens, old = torch.randint(1009, (2, 32)), torch.full((2, 32), -7.0)
    sees_other_tokens(RECIPES[name], on_policy=False)
    with Watch(16 * 1009) as watch:
        loss = fused_loss(
            RECIPES[name], hidden, head, tokens, old, None, torch.ones(2), torch.ones(2, 32), chunk=16
        ).loss
        loss.backward()
    assert sorted(watch.seen) == sorted(4 * passes)
    assert watch.largest == 16 * 1009 and watch.most == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_likely_token_keeps_its_gradient(dtype):
    """1 − π of a token at 1 − 1e-6: bfloat16 knows no number between 1 − 2⁻⁸ and 1."""
    head = torch.zeros(4, 8, dtype=dtype)
    head[0, 0] = 1.0
    hidden = torch.zeros(1, 1, 8, dtype=dtype)
    hidden[..., 0] = 14.0
    leaf, mask = head.clone().requires_grad_(), torch.ones(1, 1)
    fused_logprobs(hidden, leaf, torch.zeros(1, 1, dtype=torch.int64), mask).backward(torch.ones(1, 1))
    p = 1 / (1 + 3 * math.exp(-14))
    assert_close(leaf.grad[:, 0].double(), 14 * torch.tensor([1 - p, *[-(1 - p) / 3] * 3]).double(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["rpg-urkl-clip", "grpo", "gspo"])
def test_half_precision_is_near_float64_on_the_same_numbers(name):
    """What bfloat16 products cost: each factor has 8 bits; sums are in float32."""
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 40, 32).bfloat16(), (torch.randn(500, 32) / 4).bfloat16()
    tokens, mask = torch.randint(500, (3, 40)), torch.ones(3, 40)
    exact = token_logprobs(hidden.double() @ head.double().T, tokens)
    old, advantages = exact + 0.1 * torch.randn(3, 40), torch.randn(3)

    def gradients(dtype):
        h, W = (x.to(dtype, copy=True).requires_grad_() for x in (hidden, head))
        out = fused_loss(RECIPES[name], h, W, tokens, old, None, advantages, mask, chunk=50)
        out.loss.backward()
        return [x.double() for x in (h.grad, W.grad, out.logp, out.entropy)]

    for found, expected in zip(gradients(torch.bfloat16), gradients(torch.float64), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_micro_batches_and_an_empty_one_add_up():
    case = Case(3)
    recipe = RECIPES["grpo-corrected"]

    def gradient(splits):
        head = case.head.clone().requires_grad_()
        for rows in splits:
            mask = case.mask[rows] if len(rows) else torch.zeros(1, T)
            rows = rows or [0]
            fused_loss(
                recipe,
                case.hidden[rows],
                head,
                case.tokens[rows],
                case.old[rows],
                case.ref[rows],
                case.advantages[rows],
                mask,
                denominator=recipe.count(case.mask),
            ).loss.backward()
        return head.grad

    assert_close(gradient([[0], [], [3, 1], [2]]), gradient([[0, 1, 2, 3]]), **TIGHT)


def test_a_supervised_loss_is_a_loss_of_log_probs():
    """Nothing in fused_logprobs is of policy gradients: mean −log π has cross entropy's gradient."""
    case = Case(2)
    hidden, head = case.hidden.requires_grad_(), case.head.requires_grad_()
    loss = aggregate(-fused_logprobs(hidden, head, case.tokens, case.mask), case.mask, "token-mean")
    expected = nn.functional.cross_entropy((hidden @ head.T)[case.mask], case.tokens[case.mask])
    assert_close(loss, expected, **TIGHT)
    assert_close(*(torch.autograd.grad(x, [hidden, head]) for x in (loss, expected)), **TIGHT)


def test_the_loss_goes_backward_once():
    case = Case(0)
    loss = case.fused(RECIPES["grpo"], case.hidden.requires_grad_(), case.head, case.old).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call fused_loss again"):
        loss.backward()


def test_without_gradient_it_is_an_evaluation():
    case = Case(0)
    with torch.no_grad():
        loss = case.fused(RECIPES["gspo"], case.hidden, case.head, case.old).loss
    assert not loss.requires_grad
    frozen = case.fused(RECIPES["gspo"], case.hidden.requires_grad_(), case.head, case.old).loss
    assert_close(frozen.detach(), loss)
    frozen.backward()
    assert case.hidden.grad is not None and case.head.grad is None


def test_nothing_unmasked_is_the_recipes_own_error():
    case = Case(0)
    case.mask[:] = False
    with pytest.raises(ValueError, match="keeps no token"):
        case.fused(RECIPES["grpo"], case.hidden, case.head, case.old, denominator=None)
