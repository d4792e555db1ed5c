"""Surrogate, REINFORCE style and exact ∇J agree.

Three roads meet: autograd of the code as shipped, the NumPy oracle of tests/numpy_oracle.py (complex steps, no shared
code), and the torch oracle of rpg_ref.audit. First sample by sample on arbitrary inputs, then in expectation on random
bandits, on trees with every response enumerated, and on real transformers with all their parameters.
"""

import numpy as np
import numpy_oracle
import pytest
import torch
from divergence_facts import FACTS
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import (
    Bandit,
    SampleInputs,
    Tree,
    bandits,
    betas,
    chain_names,
    divergence_names,
    log_masses,
    sample_inputs,
    trees,
)
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from rpg_ref import (
    DualClip,
    clipped_loss,
    differentiable_loss,
    per_decision_loss,
    reinforce_loss,
    token_logprobs,
    weight,
)
from rpg_ref.audit import oracle, statements
from rpg_ref.objective import Objective

# Below this float64 has no full precision.
SUBNORMAL = 1e-300
UNCLIPPED = [differentiable_loss, reinforce_loss]
TERM = {name: facts.term for name, facts in FACTS.items() if facts.term}


def gradient_of(loss, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), leaf)[0]


def assert_ascends(g: torch.Tensor | np.ndarray, exact: torch.Tensor | np.ndarray, tolerance: float = 1e-10) -> None:
    """‖g + ∇J‖∞ ≤ tolerance·max(1, ‖∇J‖∞) for the gradient g of a loss."""
    g, exact = np.asarray(g), np.asarray(exact)
    assert np.abs(g + exact).max() <= tolerance * max(1.0, np.abs(exact).max())


# Sample by sample, on arbitrary inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", UNCLIPPED)
@given(x=sample_inputs(), name=divergence_names, beta=betas, log_mass=log_masses)
def test_each_sample_moves_by_minus_its_weight(loss, x: SampleInputs, name, beta, log_mass):
    leaf = x.logp.clone().requires_grad_()
    choices = {"logp_ref": x.logp_ref, "log_mass_old": log_mass}
    coefficient = weight(x.logp, x.logp_old, x.advantage, name, beta, **choices)
    g = gradient_of(loss(leaf, x.logp_old, x.advantage, name, beta, **choices), leaf)
    # Terms of the weight may cancel: the error is relative to the largest of them.
    log_w, log_v = x.logp - x.logp_old, x.logp - (x.logp_old if x.logp_ref is None else x.logp_ref)
    w, u = log_w.exp(), (log_w - log_v).exp()
    size = w * x.advantage.abs() + beta * (u + w * (1 + log_v.abs()) * (1 + (log_v.exp() if name == "chi2" else 0)))
    assert bool(((g + coefficient).abs() <= 1e-13 * np.exp(log_mass) * size + SUBNORMAL).all())


def printed_weight(name: str, w: float, A: float, beta: float) -> float:
    """The weights of the paper's tables, π_ref = π_old, as printed."""
    return {
        "fkl": w * A + beta,
        "ufkl": w * A - beta * (w - 1),
        "rkl": w * (A - beta * (np.log(w) + 1)),
        "urkl": w * (A - beta * np.log(w)),
    }[name]


@given(log_w=st.floats(-20, 20), A=st.floats(-3, 3), beta=betas, name=st.sampled_from(["fkl", "ufkl", "rkl", "urkl"]))
@example(log_w=0.0, A=1.0, beta=1.0, name="fkl")
def test_the_weight_is_the_papers_column(log_w, A, beta, name):
    logp, old = torch.tensor([-25.0], dtype=torch.float64), torch.tensor([-25.0 - log_w], dtype=torch.float64)
    expected = printed_weight(name, (logp - old).exp().item(), A, beta)
    found = weight(logp, old, A, name, beta).item()
    assert abs(found - expected) <= 1e-13 * (np.exp(log_w) * (abs(A) + beta * (1 + abs(log_w))) + beta)


@given(x=sample_inputs(), name=divergence_names, beta=betas)
def test_only_logp_receives_a_gradient(x: SampleInputs, name, beta):
    inputs = [t.clone().requires_grad_() for t in (x.logp, x.logp_old, x.advantage, x.logp - 1)]
    for loss in (*UNCLIPPED, clipped_loss):
        out = loss(*inputs[:3], name, beta, logp_ref=inputs[3]).sum()
        gradients = torch.autograd.grad(out, inputs, allow_unused=True)
        assert gradients[0] is not None and gradients[1:] == (None, None, None)


# In expectation, one state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", UNCLIPPED)
@given(bandit=bandits(), name=divergence_names, beta=betas, log_mass=log_masses)
def test_bandit_loss_ascends_the_objective(loss, bandit: Bandit, name, beta, log_mass):
    """π_old of mass Z, sampled from π_old/Z; the reference is it, or another measure of any mass."""
    leaf = torch.tensor(bandit.logits, requires_grad=True)
    sampler = torch.tensor(numpy_oracle.softmax(bandit.old))
    old = sampler.log() + log_mass
    ref = None if bandit.ref is None else torch.tensor(bandit.ref)
    value = loss(
        leaf.log_softmax(-1), old, torch.tensor(bandit.reward), name, beta, logp_ref=ref, log_mass_old=log_mass
    )
    g = gradient_of(sampler * value, leaf)
    measure = np.exp(old.numpy() if bandit.ref is None else bandit.ref)
    exact = numpy_oracle.gradient(numpy_oracle.bandit_objective(name, beta, bandit.reward, measure), bandit.logits)
    assert_ascends(g, exact)


@given(bandit=bandits(), name=divergence_names, beta=betas)
def test_surrogate_value_is_minus_the_objective(bandit: Bandit, name, beta):
    log_p, log_q = (torch.tensor(x).log_softmax(-1) for x in (bandit.logits, bandit.old))
    reward = torch.tensor(bandit.reward)
    loss = (log_q.exp() * differentiable_loss(log_p, log_q, reward, name, beta)).sum()
    exact = numpy_oracle.bandit_objective(name, beta, bandit.reward, log_q.exp().numpy())(bandit.logits)
    assert_close(-loss.item(), exact.real.item(), rtol=1e-10, atol=1e-10)


# In expectation, every response of a tree enumerated -----------------------------------------------------------------


def tree_tensors(tree: Tree):
    """The torch oracle's enumeration, whose order of states and responses is the NumPy oracle's."""
    enumeration = oracle.prefix_tree(*tree.shape)
    leaf = torch.tensor(tree.logits, requires_grad=True)
    tables = oracle.Policies(leaf.log_softmax(-1), *(torch.tensor(x).log_softmax(-1) for x in (tree.old, tree.ref)))
    logps = oracle.Policies(*(oracle.token_logp(enumeration, table) for table in tables))
    return enumeration, leaf, tables, logps


@pytest.mark.parametrize("loss", UNCLIPPED)
@given(tree=trees(), name=divergence_names, beta=betas)
def test_token_level_ascends_the_frozen_history_objective(loss, tree: Tree, name, beta):
    enumeration, leaf, tables, logps = tree_tensors(tree)
    advantage = torch.tensor(tree.reward).unsqueeze(1).expand_as(enumeration.mask)
    per_token = loss(logps.current, logps.old, advantage, name, beta, logp_ref=logps.ref)
    per_response = torch.where(enumeration.mask, per_token, 0.0).sum(1)
    g = gradient_of(logps.old.sum(1).exp() * per_response, leaf)
    old, ref = tables.old.exp().numpy(), tables.ref.exp().numpy()
    J = numpy_oracle.tree_objective(name, beta, tree.reward, old, ref, tree.shape, "token")
    assert_ascends(g, numpy_oracle.gradient(J, tree.logits))


@pytest.mark.parametrize("loss", UNCLIPPED)
@given(tree=trees(), name=divergence_names, beta=betas)
def test_sequence_level_ascends_the_objective_of_whole_responses(loss, tree: Tree, name, beta):
    _, leaf, tables, logps = tree_tensors(tree)
    current, old, ref = (logp.sum(1) for logp in logps)
    g = gradient_of(old.exp() * loss(current, old, torch.tensor(tree.reward), name, beta, logp_ref=ref), leaf)
    J = numpy_oracle.tree_objective(
        name, beta, tree.reward, tables.old.exp().numpy(), tables.ref.exp().numpy(), tree.shape, "sequence"
    )
    assert_ascends(g, numpy_oracle.gradient(J, tree.logits))


@given(tree=trees(), name=chain_names, beta=betas)
def test_prefix_level_ascends_the_objective_of_whole_responses(tree: Tree, name, beta):
    """With the reward at the end and every token's penalty weighted by its history: w, u, both, or w²/u for chi2."""
    enumeration, leaf, tables, logps = tree_tensors(tree)
    current, old, ref = (logp.cumsum(1) for logp in logps)
    last = enumeration.mask.cumsum(1) == enumeration.mask.sum(1, keepdim=True)
    reward = torch.where(last & enumeration.mask, torch.tensor(tree.reward).unsqueeze(1), 0.0)
    per_prefix = per_decision_loss(current, old, reward, name, beta, logp_ref=ref)
    g = gradient_of(logps.old.sum(1).exp() * torch.where(enumeration.mask, per_prefix, 0.0).sum(1), leaf)
    J = numpy_oracle.tree_objective(
        name, beta, tree.reward, tables.old.exp().numpy(), tables.ref.exp().numpy(), tree.shape, "sequence"
    )
    assert_ascends(g, numpy_oracle.gradient(J, tree.logits))


def test_rewards_at_the_steps_need_only_the_prefix_before_them():
    """Per-decision importance sampling: E_old[Σ_t w_{1:t} r_t] = E_π[Σ_t r_t]."""
    rng = np.random.default_rng(0)
    tree = Tree((3, 3, None), *rng.normal(size=(3, 13, 3)), rng.normal(size=27))
    enumeration, leaf, tables, logps = tree_tensors(tree)
    at_tokens = torch.tensor(rng.normal(size=(13, 3)))[enumeration.state, enumeration.tokens]
    current, old = logps.current.cumsum(1), logps.old.cumsum(1)
    exact = oracle.gradient(Objective({"reward": 1.0}, "sequence"), enumeration, tables, at_tokens.sum(1), [leaf])
    q = logps.old.sum(1).exp()
    g = gradient_of(q * per_decision_loss(current, old, at_tokens, "urkl", 0.0).sum(1), leaf)
    assert_ascends(g, exact.reshape(leaf.shape))


@given(tree=trees(), name=st.sampled_from(sorted(TERM)), beta=betas, level=st.sampled_from(["token", "sequence"]))
def test_the_two_oracles_agree(tree: Tree, name, beta, level):
    enumeration, leaf, tables, _ = tree_tensors(tree)
    objective = Objective({"reward": 1.0, TERM[name]: beta}, level)
    old, ref = tables.old.exp().numpy(), tables.ref.exp().numpy()
    J = numpy_oracle.tree_objective(name, beta, tree.reward, old, ref, tree.shape, level)
    reward = torch.tensor(tree.reward)
    exact = oracle.gradient(objective, enumeration, tables, reward, [leaf]).reshape(leaf.shape)
    assert_ascends(-exact, numpy_oracle.gradient(J, tree.logits))
    if name not in ("ufkl", "urkl"):
        value = oracle.value(objective, enumeration, tables, reward).item()
        assert_close(value, J(tree.logits).real.item(), rtol=1e-10, atol=1e-10)


def test_token_level_is_not_the_sequence_level():
    """The two objectives part off-policy, and for the reverse KL on-policy too: the check above could fail."""
    rng = np.random.default_rng(0)
    logits, ref = rng.normal(size=(2, 4, 3))
    args = ("rkl", 1.0, rng.normal(size=9), numpy_oracle.softmax(logits), numpy_oracle.softmax(ref), (3, 2, None))
    token, sequence = (
        numpy_oracle.gradient(numpy_oracle.tree_objective(*args, level), logits) for level in ("token", "sequence")
    )
    assert np.abs(token - sequence).max() > 1e-2


# In expectation, clipped ---------------------------------------------------------------------------------------------


@given(
    tree=trees(),
    name=divergence_names,
    beta=betas,
    clip=st.sampled_from([DualClip(), DualClip(0.1, 0.1, 3.0), DualClip(0.5, 2.0, 1.5)]),
)
def test_clipped_loss_moves_live_samples_by_their_weight_and_no_others(tree: Tree, name, beta, clip):
    enumeration, leaf, _, logps = tree_tensors(tree)
    mask, probability = enumeration.mask, logps.old.sum(1).exp().unsqueeze(1)
    advantage = torch.tensor(tree.reward).unsqueeze(1).expand_as(mask)
    loss = clipped_loss(logps.current, logps.old, advantage, name, beta, logp_ref=logps.ref, clip=clip)
    g = gradient_of(probability * torch.where(mask, loss, 0.0), leaf)
    current = logps.current.detach()
    samples = oracle.Policies(current, logps.old, logps.ref)
    exact_weight = (current - logps.old).exp() * advantage - beta * statements.penalty_slope(name, samples)
    inside = statements.samples_inside(exact_weight, current, logps.old, (clip.low, clip.high, clip.dual))
    logp = oracle.token_logp(enumeration, leaf.log_softmax(-1))
    expected = gradient_of(probability * torch.where(mask & inside, exact_weight * logp, 0.0), leaf)
    assert_ascends(g, expected)


# In expectation, a real transformer ----------------------------------------------------------------------------------

VOCABULARY, PROMPT = 4, torch.tensor([5, 3])
GPT2 = GPT2Config(
    vocab_size=6, n_positions=8, n_embd=16, n_layer=2, n_head=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0
)
QWEN3 = Qwen3Config(
    vocab_size=6,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=16,
)


def transformer(architecture: str, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = {"gpt2": lambda: GPT2LMHeadModel(GPT2), "qwen3": lambda: Qwen3ForCausalLM(QWEN3)}[architecture]()
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("name", ["fkl", "ufkl", "rkl", "urkl"])
# Qwen3's norms compute in float32 whatever the model's dtype, which the backward pass sees as rounding of 1e-7.
@pytest.mark.parametrize(("architecture", "tolerance"), [("gpt2", 1e-10), ("qwen3", 2e-6)])
def test_transformer_with_all_parameters(architecture, tolerance, name, level):
    tree = oracle.prefix_tree(VOCABULARY, 3, eos=2)
    model, old_model, ref_model = (transformer(architecture, seed) for seed in range(3))
    with torch.no_grad():
        old, ref = (oracle.table_of(m, tree, PROMPT) for m in (old_model, ref_model))
    parameters = list(model.parameters())
    reward = torch.linspace(-1, 1, len(tree.tokens), dtype=torch.float64).sin()
    tables = oracle.Policies(oracle.table_of(model, tree, PROMPT), old, ref)
    exact = oracle.gradient(Objective({"reward": 1.0, TERM[name]: 0.5}, level), tree, tables, reward, parameters)

    ids = torch.cat([PROMPT.expand(len(tree.tokens), -1), tree.tokens], 1)
    logits = model(ids).logits[:, len(PROMPT) - 1 : -1, :VOCABULARY]
    logp = token_logprobs(logits, tree.tokens)
    logp_old, logp_ref = (oracle.token_logp(tree, table) for table in (old, ref))
    advantage = reward.unsqueeze(1).expand_as(tree.mask)
    if level == "sequence":
        logp, logp_old, logp_ref = (torch.where(tree.mask, x, 0.0).sum(1, True) for x in (logp, logp_old, logp_ref))
        advantage = advantage[:, :1]
    for loss in UNCLIPPED:
        per_token = loss(logp, logp_old, advantage, name, 0.5, logp_ref=logp_ref)
        keep = tree.mask if level == "token" else torch.ones_like(logp, dtype=torch.bool)
        probability = oracle.token_logp(tree, old).sum(1, True).exp()
        total = (probability * torch.where(keep, per_token, 0.0)).sum()
        assert_ascends(oracle.flat_gradient(total, parameters), exact, tolerance)
    assert sum(p.numel() for p in parameters) == len(exact) > 2000
    assert exact.abs().max() > 1e-2


def test_transformer_gradient_is_that_of_finite_differences():
    """The oracle's own autograd through a transformer, against central differences along random directions."""
    tree = oracle.prefix_tree(VOCABULARY, 3, eos=2)
    model = transformer("gpt2", 0)
    old, ref = (oracle.table_of(transformer("gpt2", seed), tree, PROMPT).detach() for seed in (1, 2))
    reward = torch.linspace(-1, 1, len(tree.tokens), dtype=torch.float64)
    objective = Objective({"reward": 1.0, "reverse_kl": 0.5})
    parameters = list(model.parameters())

    def J() -> torch.Tensor:
        return oracle.value(objective, tree, oracle.Policies(oracle.table_of(model, tree, PROMPT), old, ref), reward)

    exact = oracle.flat_gradient(J(), parameters)
    for seed in range(3):
        direction = torch.randn(len(exact), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        base = torch.nn.utils.parameters_to_vector(parameters).detach()
        ends = []
        for h in (1e-5, -1e-5):
            torch.nn.utils.vector_to_parameters(base + h * direction, parameters)
            ends.append(J().item())
        torch.nn.utils.vector_to_parameters(base, parameters)
        assert_close((ends[0] - ends[1]) / 2e-5, (exact @ direction).item(), rtol=1e-7, atol=1e-8)
