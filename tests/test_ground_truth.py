"""The ground-truth table of the errata on any bandit: each form's expected gradient against the NumPy oracle.

The forms are those of test_errata.py, where `identify` finds them; here nothing of rpg_ref.audit takes part.
"""

import numpy as np
import numpy_oracle as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import floats, share
from test_errata import BETA, GROUND_TRUTH, LIBRARIES

ACTIONS = 6
CELLS = {
    f"{name}, {regime}": (loss, penalty, regime)
    for name, (loss, *penalties) in (GROUND_TRUTH | LIBRARIES).items()
    if "geometric" not in name  # of a bandit's one token the geometric mean is the token's own ratio
    for regime, penalty in zip(("on-policy", "off-policy"), penalties, strict=True)
}
KNOWN = [name for name, (_, penalty, _) in CELLS.items() if penalty is not None]
UNKNOWN = [name for name, (_, penalty, _) in CELLS.items() if penalty is None]
logits = floats((3, ACTIONS), st.floats(-2.5, 2.5))


def values(p, q, r, R):
    """What each term of an objective is worth, gains positive and penalties negative."""
    return {
        "reward": np.sum(p * R),
        "entropy": -np.sum(p * np.log(p)),
        "reverse_kl": -oracle.DIVERGENCE["rkl"](p, r),
        "forward_kl": -oracle.DIVERGENCE["fkl"](p, r),
        "reverse_kl_old": -oracle.DIVERGENCE["rkl"](p, q),
        "forward_kl_old": -oracle.DIVERGENCE["fkl"](p, q),
    }


def ascent(loss, theta, q, r, R):
    """Minus the gradient of E_q[loss], every action a batch of one."""
    leaf = torch.tensor(theta, requires_grad=True)
    logp, log_q, log_r = leaf.log_softmax(-1), torch.tensor(q).log(), torch.tensor(r).log()
    one = torch.ones(1, 1, dtype=torch.bool)
    losses = [
        loss(*(x[a].reshape(1, 1) for x in (logp, log_q, log_r)), torch.tensor(R[a : a + 1]), one)
        for a in range(ACTIONS)
    ]
    return -torch.autograd.grad((torch.tensor(q) * torch.stack(losses)).sum(), leaf)[0].numpy()


def policies(name, table):
    """θ, q and r; on-policy q is π_θ itself."""
    theta, old, ref = table
    return theta, oracle.softmax(theta if CELLS[name][2] == "on-policy" else old), oracle.softmax(ref)


def fields(theta, q, r, R):
    """The gradient of each term."""
    return {
        name: oracle.gradient(lambda x, name=name: values(oracle.softmax(x), q, r, R)[name], theta)
        for name in values(q, q, r, R)
    }


@pytest.mark.parametrize("name", KNOWN)
@share(4)
@given(table=logits, R=floats(ACTIONS, st.floats(-2.0, 2.0)))
def test_a_cell_of_the_table(name, table, R):
    loss, penalty, _ = CELLS[name]
    theta, q, r = policies(name, table)
    gradients = fields(theta, q, r, R)
    exact = sum(c * gradients[term] for term, c in {"reward": 1.0, **penalty}.items())
    found = ascent(loss, theta, q, r, R)
    assert np.abs(found - exact).max() <= 1e-11 * max(1.0, np.abs(exact).max())


# Drawn as one number, so that no policy is drawn with an accidental symmetry under which a cell's gradient is known.
@pytest.mark.parametrize("name", UNKNOWN)
@share(4)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_none_of_the_table_is_no_combination_whatever(name, seed):
    rng = np.random.default_rng(seed)
    loss, theta_old_ref, R = CELLS[name][0], 1.5 * rng.normal(size=(3, ACTIONS)), rng.normal(size=ACTIONS)
    theta, q, r = policies(name, theta_old_ref)
    gradients = fields(theta, q, r, R)
    penalty = (ascent(loss, theta, q, r, R) - gradients["reward"]) / BETA
    known = np.stack([gradients[term] for term in gradients if term not in ("reward", "entropy")], axis=1)
    best = known @ np.linalg.lstsq(known, penalty, rcond=1e-12)[0]
    assert np.linalg.norm(penalty - best) > 1e-7 * np.linalg.norm(penalty)
