"""A portrait of where recipes land: exact expected gradient flows on the simplex of three actions.

`python -m docs.kit.portrait OUT.png` (or .svg) draws it as the README shows it.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from docs.kit.drawing import COLOURS, panels
from rpg_ref import RECIPES, DualClip, Recipe, differentiable_loss, k1, k3, log_ratios


def _numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


REWARD, REF, OLD, BETA = _numbers(1.0, 0.8, 0.0), _numbers(0.1, 0.2, 0.7), _numbers(0.7, 0.1, 0.2), 0.3
"""R of each action, π_ref, the fixed π_old of the off-policy flows, and β."""


def _sg_weighted_k3(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, divergence: str, beta: float, *, logp_ref: Tensor
) -> Tensor:
    log_w, log_v, _ = log_ratios(logp, logp_old, logp_ref)
    return differentiable_loss(logp, logp_old, advantage, divergence, 0.0) + beta * log_w.exp().detach() * k3(-log_v)


def _unweighted_k1(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, divergence: str, beta: float, *, logp_ref: Tensor
) -> Tensor:
    _, log_v, _ = log_ratios(logp, logp_old, logp_ref)
    return differentiable_loss(logp, logp_old, advantage, divergence, 0.0) + beta * k1(-log_v)


FLOWS: dict[str, Recipe] = {
    **{f"rpg-{x}": replace(RECIPES[f"rpg-{x}"], beta=BETA) for x in ("rkl", "urkl", "fkl", "ufkl")},
    "grpo": replace(RECIPES["grpo"], beta=BETA, clip=DualClip(low=1.0, high=inf, dual=inf)),
    "sg-k3": Recipe("sg-k3", _sg_weighted_k3, {"forward_kl": 1.0}, {"forward_kl": 1.0}, beta=BETA),
    "k1": Recipe("k1", _unweighted_k1, {}, None, beta=BETA),
}
"""The recipes drawn: the package's own without a clip, and two penalties that are no recipes of its.

Source: paper §2.2 and §3; PAPER §3.
"""


def ascent(recipe: Recipe, logits: Tensor, old: Tensor | None) -> Tensor:
    """Return minus the exact gradient of the recipe's expected loss, in the logits.

    The loss of each of the three actions is the recipe's own; its expectation is their sum, weighted by π_old.

    Args:
        recipe: at token level, a sample being one action.
        logits: of the policies, [N, 3].
        old: π_old, [3] or [N, 3]; None is on-policy, π_old = π_θ wherever π_θ is.

    Returns:
        The direction of plain gradient ascent, [N, 3].

    Source: PAPER §2.
    """
    leaf = logits.detach().requires_grad_()
    logp = leaf.log_softmax(-1)
    q = logp.detach().exp() if old is None else old.expand_as(logp)
    rows = [x.expand_as(logp).reshape(-1, 1) for x in (logp, q.log(), REF.log())]
    A = REWARD.expand_as(logp).flatten()
    loss = recipe.per_sample(*rows, A, torch.ones_like(rows[0])).loss
    return -torch.autograd.grad((q.reshape(-1, 1) * loss).sum(), leaf)[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    """For three numbers at a time, several threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def landing(recipe: Recipe, old: Tensor | None, start: Tensor = REF) -> Tensor | None:
    """Return where the flow comes to rest, by gradient ascent with steps as long as the gradient falls.

    Args:
        recipe: as in ``ascent``.
        old: as in ``ascent``.
        start: the first policy, [3].

    Returns:
        The policy, [3], or None if no rest inside the simplex is found.

    Source: ours.
    """
    logits, step = start.log()[None], 1.0
    direction = ascent(recipe, logits, old)
    for _ in range(1000):
        p = logits.softmax(-1)[0]
        if direction.abs().max() < 1e-11 or p.min() < 1e-6:
            return p if p.min() > 1e-6 else None
        trial = logits + step * direction
        found = ascent(recipe, trial, old)
        if found.norm() < direction.norm() or step < 1:
            logits, direction, step = trial, found, 1.2 * step
        else:
            step = step / 2
    return None


def optimum(direction: str) -> Tensor:
    """Return the policy that maximises E[R] − β·KL, in closed form.

    Args:
        direction: "reverse", KL(π‖π_ref), or "forward", KL(π_ref‖π).

    Returns:
        π_ref·exp(R/β) normalised, or β·π_ref/(λ − R), λ > max R found by bisection; [3].

    Source: PAPER §9.
    """
    if direction == "reverse":
        return (REF.log() + REWARD / BETA).softmax(-1)
    low, high = REWARD.max(), REWARD.max() + BETA
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * REF / (middle - REWARD)).sum() > 1 else (low, middle)
    return BETA * REF / (high - REWARD)


@_one_thread()
def paths(recipe: Recipe, old: Tensor | None, starts: Tensor, *, step: float = 0.016, steps: int = 160) -> list[Tensor]:
    """Return the flow's paths on the plane, followed at constant speed: where they go is the flow's, not how fast.

    Args:
        recipe: as in ``ascent``.
        old: as in ``ascent``.
        starts: policies, [N, 3].
        step: distance on the plane between a path's points; the triangle's sides are 1.
        steps: at most.

    Returns:
        For each start [P, 2], up to where the path comes to rest or reaches a corner.

    Source: ours.
    """
    ends = _CORNERS if (rest := landing(recipe, old)) is None else torch.cat([plane(rest[None]), _CORNERS])

    def unit(logits: Tensor) -> Tensor:
        g, p = ascent(recipe, logits, old), logits.softmax(-1)
        speed = plane(p * (g - (p * g).sum(-1, keepdim=True))).norm(dim=-1, keepdim=True)
        return g / speed.clamp(min=1e-9)

    logits, lines, going = starts.log(), [[x] for x in plane(starts)], list(range(len(starts)))
    direction = unit(logits)
    for _ in range(steps):
        logits = logits + step * unit(logits + step / 2 * direction)
        direction, there = unit(logits), plane(logits.softmax(-1))
        # A corner is an end only of what it attracts, where its action's logit rises most.
        attracts = one_hot(direction.argmax(-1), 3) > 0
        possible = torch.cat([attracts.new_ones(len(there), len(ends) - 3), attracts], dim=1)
        away, nearest = torch.cdist(there, ends).where(possible, inf).min(-1)
        there_yet = away < 1.5 * step
        for n, point, end, stop in zip(going, there, ends[nearest], there_yet, strict=True):
            lines[n] += [point, end] if stop else [point]
        going = [n for n, stop in zip(going, there_yet, strict=True) if not stop]
        logits, direction = logits[~there_yet], direction[~there_yet]
        if not going:
            break
    return [torch.stack(line) for line in lines]


_CORNERS = torch.tensor([[0.5, 0.75**0.5], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)


def plane(p: Tensor) -> Tensor:
    """Return where policies stand on the plane, [N, 2]: the best action's corner on top, the worst's on the left."""
    return p @ _CORNERS


def rim(number: int = 30, inset: float = 0.03) -> Tensor:
    """Return policies evenly spaced along a triangle a little inside the simplex, [number, 3]."""
    t = (torch.arange(number, dtype=torch.float64) + 0.5) * 3 / number
    side, along = t.floor().long(), t.frac()[:, None]
    corners = torch.eye(3, dtype=torch.float64) * (1 - 3 * inset) + inset
    return corners[side] * (1 - along) + corners[(side + 1) % 3] * along


@dataclass(frozen=True)
class Method:
    """What the portrait shows: a method with one expected flow, whatever it is called.

    Attributes:
        recipe: the name in FLOWS whose flow is drawn.
        title: what the penalty means to be.
        names: of the recipes that have this flow.
        colour: of the flow.
        verdicts: where it lands, on-policy and off-policy, and the colour of that.
    """

    recipe: str
    title: str
    names: str
    colour: str
    verdicts: tuple[tuple[str, str], tuple[str, str]]


REVERSE, FORWARD, OTHER = COLOURS["rkl"], COLOURS["fkl"], "#b8478c"
_TO_REVERSE, _TO_FORWARD = (
    ("lands at the reverse KL’s optimum", REVERSE),
    ("lands at the forward KL’s optimum", FORWARD),
)
METHODS = (
    Method("rpg-urkl", "RPG, reverse KL", "rpg-rkl and rpg-urkl", REVERSE, (_TO_REVERSE, _TO_REVERSE)),
    Method("rpg-ufkl", "RPG, forward KL", "rpg-fkl and rpg-ufkl", FORWARD, (_TO_FORWARD, _TO_FORWARD)),
    Method("grpo", "GRPO", "k3 without a weight", OTHER, (_TO_FORWARD, ("lands at no KL’s optimum", OTHER))),
)
OTHERS = (
    Method("sg-k3", "SG(w)·k3", "the weight detached", "#779944", (_TO_FORWARD, _TO_FORWARD)),
    Method(
        "k1", "k1", "without a weight", "#888888", (("runs to a corner", "#888888"), ("runs to a corner", "#888888"))
    ),
)


def portrait(methods: Sequence[Method] = METHODS, *, width: float = 10.0, tall: bool = False) -> Figure:
    """Draw the flows, a column for each method and on-policy above off-policy, or a row for each.

    Args:
        methods: what is drawn.
        width: of the figure, inches.
        tall: whether methods are rows, for a narrow page.

    Returns:
        The figure, in the house's style.

    Source: ours.
    """
    rows, columns = (len(methods), 2) if tall else (2, len(methods))
    heights = [_TITLED - _LOW] + [_HIGH - _LOW] * (rows - 1)
    left = -0.2 if tall else -0.12
    height = width / columns * sum(heights) / (_RIGHT - left)
    grid = {"height_ratios": heights}
    figure, axes = panels(rows, columns, width=width, height=height, gridspec_kw=grid, squeeze=False)
    figure.get_layout_engine().set(w_pad=0, h_pad=0, wspace=0, hspace=0)
    for x, y in product(range(columns), range(rows)):
        method, off = methods[y if tall else x], bool(x if tall else y)
        _panel(axes[y, x], method, OLD if off else None)
        axes[y, x].set(xlim=(left, _RIGHT), ylim=(_LOW, _HIGH if y else _TITLED), aspect="equal")
        heading = ("off-policy" if off else "on-policy", "", pyplot.rcParams["text.color"])
        described = (method.title, method.names, method.colour)
        if y == 0:
            _above(axes[y, x], *(heading if tall else described))
        if x == 0:
            _beside(axes[y, x], *(described if tall else heading))
    return figure


_RIGHT, _LOW, _HIGH, _TITLED = 1.09, -0.2, 0.96, 1.17


def _above(axis: Any, title: str, names: str, colour: str) -> None:
    axis.text(0.5, 1.08 if names else 1.04, title, color=colour, fontsize=14, fontweight="bold", ha="center")
    axis.text(0.5, 1.0, names, color=colour, ha="center")


def _beside(axis: Any, title: str, names: str, colour: str) -> None:
    style = {"color": colour, "rotation": 90, "ha": "center", "va": "center"}
    axis.text(-0.15 if names else -0.075, 0.4, title, fontsize=13, fontweight="bold", **style)
    axis.text(-0.075, 0.4, names, **style)


def _panel(axis: Any, method: Method, old: Tensor | None) -> None:
    recipe, colour = FLOWS[method.recipe], method.colour
    ink = pyplot.rcParams["text.color"]
    axis.plot(*torch.cat([_CORNERS, _CORNERS[:1]]).T, color=ink, linewidth=1.0, alpha=0.5, solid_joinstyle="round")
    *thin, main = paths(recipe, old, torch.cat([rim(), REF[None]]))
    for line in thin:
        axis.plot(*line.T, color=colour, linewidth=0.9, alpha=0.5)
        if len(line) > 8:
            _arrow(axis, line, 0.4, color=colour, alpha=0.8, size=0.15)
    axis.plot(*main.T, color=colour, linewidth=2.8, solid_capstyle="round")
    _arrow(axis, main, 0.5, color=colour, alpha=1.0, size=0.35)
    axis.plot(*main[-1], "o", color=colour, markersize=8.5, mew=0)
    for kind, marker, size, place in (("reverse", "D", 12.0, (0.83, 0.47)), ("forward", "o", 15.5, (0.74, 0.62))):
        at, shade = plane(optimum(kind)), REVERSE if kind == "reverse" else FORWARD
        axis.plot(*at, marker, color=shade, markersize=size, fillstyle="none", mew=1.8)
        _name(axis, f"{kind} KL", at, place, shade, ha="left", gap=9.0)
    axis.plot(*plane(REF), "o", color=ink, markersize=5.5, mew=0)
    axis.text(0.235, 0.12, r"$\pi_\mathrm{ref}$", fontsize=12, ha="center", va="bottom")
    if old is not None:
        axis.plot(*plane(OLD), "X", color=ink, markersize=9, mew=0)
        _name(axis, r"$\pi_\mathrm{old}$", plane(OLD), (0.27, 0.68), ink, ha="right", gap=6, fontsize=12)
    for corner, reward, (x, y) in zip(_CORNERS, REWARD, ((0, 0.03), (0, -0.065), (0, -0.065)), strict=True):
        axis.text(corner[0] + x, corner[1] + y, f"R = {float(reward):g}", fontsize=9, alpha=0.75, ha="center")
    verdict, shade = method.verdicts[old is not None]
    axis.text(0.5, -0.15, verdict, color=shade, fontsize=11.5, ha="center")
    axis.set_axis_off()


def _arrow(axis: Any, line: Tensor, where: float, *, color: str, alpha: float, size: float) -> None:
    at = int((len(line) - 2) * where)
    head = f"-|>,head_width={size},head_length={1.8 * size}"
    style = {"arrowstyle": head, "color": color, "alpha": alpha, "linewidth": 0, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", line[at + 1].tolist(), line[at].tolist(), arrowprops=style)


def _name(axis: Any, text: str, at: Tensor, place: tuple[float, float], color: str, gap: float, **style: Any) -> None:
    lead = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 1, "shrinkB": gap}
    side = float(style["ha"] == "right")
    axis.annotate(
        text, at.tolist(), place, color=color, va="center", arrowprops=lead | {"relpos": (side, 0.5)}, **style
    )


def main() -> None:
    """Draw the portrait into the file named: an SVG in black, or a PNG on a white card that any page may carry."""
    path, figure = Path(sys.argv[1]), portrait()
    if path.suffix == ".svg":
        figure.savefig(path)
        return
    figure.get_layout_engine().set(rect=(0.015, 0.015, 0.97, 0.97))
    card = FancyBboxPatch((0.02, 0.02), 0.96, 0.96, boxstyle="round,pad=0.02", transform=figure.transFigure)
    card.set(facecolor="white", edgecolor="none", zorder=-1)
    figure.patches.append(card)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=200)
    image = Image.open(drawing).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.putpalette([255 if x == 254 else x for x in image.getpalette("RGBA") or []], "RGBA")  # white as white
    image.save(path, optimize=True)


if __name__ == "__main__":
    main()
