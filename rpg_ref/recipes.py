"""The table of named recipes: each row is one choice of everything, with its source."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rpg_ref.checks import Table
from rpg_ref.clipping import DualClip, bounded_loss, clipped_loss, clipped_loss_as_printed
from rpg_ref.cpgd_pmd import cpgd_loss, pmd_mean_loss
from rpg_ref.gates import GATED
from rpg_ref.ppo import grpo_corrected_loss, grpo_loss, k2_loss, kl_in_reward_loss
from rpg_ref.prefix import per_decision_loss
from rpg_ref.ratios import WeightBound
from rpg_ref.recipe import Recipe, Samples
from rpg_ref.surrogates import differentiable_loss, entropy_loss, reinforce_loss

# The penalty each row is the gradient of: unnormalised rows differ from the normalised ones by a constant in θ.
FORWARD, REVERSE, NONE = {"forward_kl": 1.0}, {"reverse_kl": 1.0}, dict[str, float]()
FROM_SAMPLER = {"reverse_kl": 1.0, "reverse_kl_old": -1.0}
PENALTY = {"fkl": FORWARD, "ufkl": FORWARD, "rkl": REVERSE, "urkl": REVERSE}
# As printed, w·f′(w) is differentiated, and that is −1 for fkl and w − 1 for ufkl: its expected gradient is zero.
PRINTED_PENALTY = PENALTY | {"fkl": NONE, "ufkl": NONE}
# The divergences of responses that are sums over tokens.
CHAIN_RULES = PENALTY | {"jeffreys": FORWARD | REVERSE, "chi2": {"chi2": 1.0}}


def _rpg(
    style: str, loss: Callable[..., Samples], penalties: Mapping[str, Mapping[str, float]] = PENALTY, **choices: Any
) -> list[Recipe]:
    return [Recipe(style.format(x), loss, y, y, x, **choices) for x, y in penalties.items()]


# Schulman et al. 2017; paper §5.
_ppo = partial(Recipe, clip=DualClip(low=0.2, high=0.2, dual=math.inf), clips_penalty=False)
# Shao et al. 2024 (DeepSeekMath), §4.2.
_grpo = partial(_ppo, beta=0.04, baseline="group_std", aggregation="seq-mean-token-mean")
# The same without a penalty, its loss being then PPO's alone.
_bare = partial(_grpo, loss=grpo_corrected_loss, on_policy_penalty=NONE, off_policy_penalty=NONE, beta=0.0)

_ROWS = [
    *_rpg("rpg-{}", differentiable_loss),
    *_rpg("rpg-reinforce-{}", reinforce_loss),
    *_rpg("rpg-reinforce-{}-clip", clipped_loss, clip=DualClip()),
    *_rpg("rpg-{}-clip-as-printed", clipped_loss_as_printed, PRINTED_PENALTY, clip=DualClip()),
    *_rpg("rpg-{}-prefix", per_decision_loss, CHAIN_RULES, level="prefix"),
    # Mnih et al. 2016 (A3C), §4: an entropy bonus of 0.01.
    Recipe("rpg-urkl-entropy", entropy_loss, REVERSE, REVERSE, entropy=0.01),
    # For top-p and top-k samples: logp_sampler = logp_old − log(kept mass). There a baseline b adds −b·∇p(kept).
    Recipe("rpg-urkl-top-p", differentiable_loss, REVERSE, REVERSE, baseline="none"),
    _grpo("grpo", grpo_loss, FORWARD, None),
    _grpo("grpo-corrected", grpo_corrected_loss, REVERSE, REVERSE),
    # Schulman et al. 2017; the advantages are a critic's, one per token.
    _bare("ppo", baseline="none", critic=True, aggregation="token-mean"),
    # Yu et al. 2025, Eqs. 8–12.
    _bare("dapo", clip=DualClip(low=0.2, high=0.28, dual=math.inf), aggregation="token-mean"),
    # Liu et al. 2025 (Understanding R1-Zero-like training), §3: no std, and a constant denominator.
    _bare("dr-grpo", baseline="group_mean", aggregation="seq-mean-token-sum", needs_denominator=True),
    # Zheng et al. 2025, Eqs. 5–7 and §5.1.
    _bare("gspo", clip=DualClip(low=3e-4, high=4e-4, dual=math.inf), level="geometric", off_policy_reward=False),
    # MiniMax 2025 (M1), Eqs. 4–5, no lower bound; the upper one of Khatri et al. 2025 (ScaleRL).
    Recipe("cispo", bounded_loss, NONE, NONE, beta=0.0, bound=WeightBound(high=5.0), baseline="group_std"),
    # Hu et al. 2025; β is OpenRLHF's default.
    _ppo("reinforce++", kl_in_reward_loss, REVERSE, None, beta=0.01, baseline="batch_std", objective_level="sequence"),
    _ppo("reinforce++-baseline", k2_loss, REVERSE, None, beta=0.01, baseline="group_mean_batch_std"),
    # Ahmadian et al. 2024; clip and β are TRL's defaults.
    _ppo("rloo", kl_in_reward_loss, REVERSE, FROM_SAMPLER, beta=0.05, baseline="leave_one_out", level="sequence"),
    # Kimi Team 2025 (k1.5); Xu et al. 2026. Both anchor at π_old, whose KL has no gradient on-policy.
    Recipe("pmd-mean", pmd_mean_loss, NONE, None, level="sequence", off_policy_reward=False),
    # Xu et al. 2026 as released (OpenKimi): τ = 0.01, and each response's loss is divided by its length.
    Recipe(
        "pmd-mean-released",
        pmd_mean_loss,
        NONE,
        None,
        beta=0.01,
        level="sequence-over-length",
        baseline="leave_one_out",
        off_policy_reward=False,
    ),
    # Liu et al. 2025 (CPGD), Eq. 4.
    _ppo("cpgd", cpgd_loss, NONE, None, off_policy_reward=False),
    *GATED,
]

# With one advantage a response GSPO-token has GSPO's gradient: Zheng et al. 2025, §4.3.
ALIASES = {f"rpg-{x}-clip": f"rpg-reinforce-{x}-clip" for x in PENALTY} | {"gspo-token": "gspo"}
RECIPES: Table[Recipe] = Table("recipe", {row.name: row for row in _ROWS}, ALIASES)
"""The named recipes, each once; ``RECIPES["rpg-X-clip"]`` is ``rpg-reinforce-X-clip``, by the table ALIASES.

Source: paper §3 (rpg-X), §4 (rpg-reinforce-X), Algorithm 2 (…-clip), Algorithm 1 (…-as-printed), §2.2 (grpo), §5 (its
comparisons); PAPER §5 (…-prefix); the others beside their rows.
"""
