"""The picture of a run: accuracy, KL and clip fraction over steps, with held-out accuracy before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rpg_ref import RECIPES
from train.config import Config
from train.evaluate import Accuracy

BLUE, GREEN, RED, ORANGE, GREY = "#2c6fbb", "#2e8b57", "#b5383c", "#e08a1e", "#6b7280"
SAMPLES = {
    "token": "token",
    "prefix": "prefix",
    "sequence": "response",
    "sequence-over-length": "response",
    "geometric": "response, geometric mean",
}
"""What a sample of each level is called: divergences are averaged over samples."""


def draw_curves(
    history: Sequence[dict[str, Any]], before: Accuracy, after: Accuracy, config: Config, path: Path
) -> None:
    """Write a PNG of panels that share the axis of steps; a recipe that never clips has none for it."""
    steps = range(1, len(history) + 1)
    clips = "clip_high" in history[0]
    heights = (3, 2, 2) if clips else (3, 2)
    figure = Figure(figsize=(7.5, sum(heights) + 1), layout="constrained", dpi=160)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _accuracy(panels[0], steps, history, before, after)
    reference = "old" if config.reference.replace == "rollout" else "ref"
    reverse = rf"KL$(\pi_\theta\,\|\,\pi_{{\mathrm{{{reference}}}}})$, reverse"
    _line(panels[1], steps, history, "reverse_kl", reverse, BLUE)
    _line(panels[1], steps, history, "forward_kl_old", r"KL$(\pi_{\mathrm{old}}\,\|\,\pi_\theta)$, forward", ORANGE)
    panels[1].set(ylabel=f"KL [nats per {SAMPLES[RECIPES[config.recipe].level]}]")
    if clips:
        _line(panels[2], steps, history, "clip_high", r"pushed up, $w \geq 1 + \epsilon_2$", GREEN, scale=100)
        _line(panels[2], steps, history, "clip_low", r"pushed down, $w \leq 1 - \epsilon_1$", RED, scale=100)
        _line(panels[2], steps, history, "clip_dual", r"pushed down, $w \geq c$", GREY, scale=100)
        panels[2].set(ylabel="clipped [% of tokens]")
    panels[-1].set(xlabel="step [rollout batches]")
    for panel in panels:
        panel.grid(color="#e5e7eb", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels[1:]:
        # Room above the highest value, where the legend hides nothing.
        panel.set_ylim(0, 1.35 * max(panel.dataLim.y1, 1e-6))
        panel.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)
    panels[0].legend(loc="best", frameon=False, fontsize=9)
    panels[0].set_title(f"{config.recipe}, seed {config.seed}", loc="left", fontweight="bold")
    figure.savefig(path)


def _accuracy(
    panel: Axes, steps: Sequence[int], history: Sequence[dict[str, Any]], before: Accuracy, after: Accuracy
) -> None:
    _line(panel, steps, history, "accuracy", "of the rollouts", BLUE)
    panel.set(ylabel="accuracy", ylim=(-0.025, 1.025), yticks=(0, 0.25, 0.5, 0.75, 1))
    for x, accuracy, name, colour in ((0, before, "before", RED), (steps[-1], after, "after", GREEN)):
        label = f"held out, {name}: {accuracy}"
        panel.errorbar(x, *accuracy, fmt="o", color=colour, capsize=4, label=label, zorder=3)


def _line(
    panel: Axes,
    steps: Sequence[int],
    history: Sequence[dict[str, Any]],
    key: str,
    label: str,
    colour: str,
    scale: float = 1.0,
) -> None:
    """Draw one metric, with a gap where no optimiser step was taken."""
    values = [float("nan") if row[key] is None else scale * row[key] for row in history]
    panel.plot(steps, values, color=colour, label=label, linewidth=1.8, marker=".", markersize=5)
