"""From hidden states to the gradients, forward and backward: this package, TRL and Liger-Kernel, beside three products.

``make bench-loss`` runs it on the CPU in float32, in the environment in which both libraries are audited; with
``--device cuda`` it is in bfloat16, in the environment at hand. Each contender is a process of its own, so that its
peak memory is its own; before it is timed, its gradient must be that of the dense path. They take turns: one round is
one turn of each, and × limit is the median over rounds of the ratio inside a round. ``--small`` is one round of small
tensors: it shows that every contender still runs and has the right gradient, and its times mean nothing.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# torch is imported by the contenders alone: a process is charged with the memory of the one that starts it.

ROOT = Path(__file__).parents[2]
LENGTH, CALLS = 256, {"cpu": 1, "cuda": 10}
"""Tokens of a response; calls of a turn, of which the fastest counts."""


class Batch(NamedTuple):
    """What every contender is given; the first two require gradients, and every token counts."""

    hidden: Any
    head: Any
    tokens: Any
    old: Any
    advantages: Any
    mask: Any


def make(vocabulary: int, width: int, tokens: int, length: int, device: str, dtype: Any) -> Batch:
    """Return a batch whose logits are standard normal, π_θ near π_old."""
    import torch

    from rpg_ref import fused_logprobs

    torch.manual_seed(0)
    rows = tokens // length
    hidden = torch.randn(rows, length, width, device=device).to(dtype)
    head = torch.randn(vocabulary, width, device=device).div_(width**0.5).to(dtype)
    ids = torch.randint(vocabulary, (rows, length), device=device)
    mask, advantages = torch.ones(rows, length, device=device), torch.randn(rows, device=device)
    old = fused_logprobs(hidden, head, ids, mask, chunk=16) + 0.1 * torch.randn(rows, length, device=device)
    return Batch(hidden.requires_grad_(), head.requires_grad_(), ids, old, advantages, mask)


def products(batch: Batch, _: str) -> None:
    """The limit: each logit, both gradients, and nothing else, in the chunks that ``fused_loss`` takes."""
    import torch

    from rpg_ref.fused import LOGITS_AT_ONCE

    x, head = batch.hidden.detach().flatten(0, 1), batch.head.detach()
    x_grad, head_grad = torch.empty_like(x), torch.zeros_like(head)
    chunk = max(1, LOGITS_AT_ONCE[x.device.type] // len(head))
    for part, part_grad in zip(x.split(chunk), x_grad.split(chunk), strict=True):
        z = part @ head.T
        torch.mm(z, head, out=part_grad)
        head_grad.addmm_(z.T, part)
        del z


def fused(batch: Batch, recipe: str) -> None:
    from rpg_ref import RECIPES, fused_loss

    hidden, head, tokens, old, advantages, mask = batch
    fused_loss(RECIPES[recipe], hidden, head, tokens, old, None, advantages, mask).loss.backward()


def dense(batch: Batch, recipe: str) -> None:
    from rpg_ref import RECIPES, token_logprobs

    logp = token_logprobs(batch.hidden @ batch.head.T, batch.tokens)
    RECIPES[recipe](logp, batch.old, None, batch.advantages, batch.mask).loss.backward()


def trl_fused(batch: Batch, _: str) -> None:
    """As TRL's ``add_fused_lm_head`` calls it for GRPOTrainer, which wants the entropy too."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    x, ids = batch.hidden.flatten(0, 1), batch.tokens.flatten()
    choices = (1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy"))
    logp = ChunkedLogProbFunction.apply(x, batch.head, None, ids, *choices)[0]
    _dapo(logp.view_as(batch.old), batch)


def trl_dense(batch: Batch, _: str) -> None:
    from trl.trainer.utils import selective_log_softmax

    _dapo(selective_log_softmax(batch.hidden @ batch.head.T, batch.tokens), batch)


def _dapo(logp: Any, batch: Batch) -> None:
    """The lines of GRPOTrainer's ``_compute_loss`` for loss_type="dapo", epsilon_high=0.28, beta=0."""
    import torch

    advantages = batch.advantages.unsqueeze(1)
    coef_1 = torch.exp(logp - batch.old)
    coef_2 = torch.clamp(coef_1, 1 - 0.2, 1 + 0.28)
    per_token_loss = -torch.min(coef_1 * advantages, coef_2 * advantages)
    ((per_token_loss * batch.mask).sum() / batch.mask.sum()).backward()


def liger(batch: Batch, _: str) -> None:
    """One response at a time, its default; compiled, as by default, on a GPU only."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    compiled = batch.head.device.type == "cuda"
    loss_fn = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, epsilon_high=0.28, compiled=compiled)
    hidden, head, tokens, old, advantages, mask = batch
    loss_fn(hidden, head, tokens, mask, advantages, old_per_token_logps=old)[0].backward()


CONTENDERS = {
    "three matrix products": (products, "", "torch"),
    "`fused_loss`, rpg-urkl-clip": (fused, "rpg-urkl-clip", "rpg_ref"),
    "`fused_loss`, gspo": (fused, "gspo", "rpg_ref"),
    "`token_logprobs` of all logits, rpg-urkl-clip": (dense, "rpg-urkl-clip", "rpg_ref"),
    "TRL, its fused head, dapo": (trl_fused, "dapo", "trl"),
    "TRL, `selective_log_softmax` of all logits, dapo": (trl_dense, "dapo", "trl"),
    "Liger-Kernel, `LigerFusedLinearGRPOLoss`, dapo": (liger, "dapo", "liger_kernel"),
}
"""Each contender, the recipe whose gradient it must have, and the package that it needs."""


def agree(run: Any, recipe: str, device: str) -> None:
    """Raise unless the contender has the dense path's gradient, to float32 rounding."""
    import torch

    def gradients(contender: Any) -> list[Any]:
        batch = make(5001, 32, 64, 16, device, torch.float32)
        contender(batch, recipe)
        return [batch.hidden.grad, batch.head.grad]

    for found, expected in zip(gradients(run), gradients(dense), strict=True):
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < 1e-5:
            raise SystemExit(f"{run.__name__} is {error:.1e} off the gradient of {recipe}; it does other work")


def work(name: str, vocabulary: int, width: int, tokens: int, device: str) -> None:
    """One contender: check it, say what memory it begins with, warm up; then a turn for each line that comes in."""
    run, recipe, package = CONTENDERS[name]
    if find_spec(package) is None:
        print(json.dumps({"missing": package}))
        return
    import torch

    if recipe:
        agree(run, recipe, device)
    batch = make(vocabulary, width, tokens, LENGTH, device, {"cpu": torch.float32, "cuda": torch.bfloat16}[device])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # making the batch takes more than some contenders do
    start = memory(device)
    seconds(run, recipe, batch)
    print(json.dumps({"start": start}), flush=True)
    for _ in sys.stdin:
        fastest = min(seconds(run, recipe, batch) for _ in range(CALLS[device]))
        print(json.dumps({"seconds": fastest, "peak": memory(device)}), flush=True)


def memory(device: str) -> float:
    """Return the most that was ever taken, in MB: of the whole process on a CPU, of tensors on a GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def seconds(run: Any, recipe: str, batch: Batch) -> float:
    """Return what one call takes."""
    import torch

    batch.hidden.grad = batch.head.grad = None
    if batch.head.is_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run(batch, recipe)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    run(batch, recipe)
    return time.perf_counter() - start


def compare(stack: ExitStack, python: str, vocabulary: int, choices: argparse.Namespace) -> None:
    """Start every contender, take turns, print the table."""
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    workers: dict[str, subprocess.Popen[str]] = {}
    starts, turns = {}, {}
    for name in CONTENDERS:
        arguments = [name, vocabulary, choices.width, choices.tokens, choices.device]
        words = [python, "-P", __file__, json.dumps(arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        worker = stack.enter_context(subprocess.Popen(words, env=quiet, **pipes))
        found = answer(worker)
        if "missing" in found:
            print(f"{name} is left out: no module {found['missing']}", flush=True)
        else:
            workers[name], starts[name], turns[name] = worker, found["start"], []
    for _ in range(choices.rounds):
        for name, worker in workers.items():
            turns[name].append(answer(worker, "go\n"))
    print(f"\nV = {vocabulary:,}, d = {choices.width}, {choices.tokens:,} tokens, {choices.device}\n")
    print("| contender | seconds | × limit (rounds) | peak, MB | at the start, MB |\n|---|---|---|---|---|")
    limit = [turn["seconds"] for turn in turns[next(iter(CONTENDERS))]]
    for name, found in turns.items():
        times = [turn["seconds"] for turn in found]
        ratios = [a / b for a, b in zip(times, limit, strict=True)]
        beside = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        peak = max(turn["peak"] for turn in found)
        print(f"| {name} | {statistics.median(times):.3g} | {beside} | {peak:,.0f} | {starts[name]:,.0f} |", flush=True)


def answer(worker: subprocess.Popen[str], word: str = "") -> dict[str, Any]:
    """Send a word and return what the worker says; stop if it broke, with its own traceback above."""
    worker.stdin.write(word)
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(worker.wait())
    return json.loads(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare at each size of vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=CALLS, default="cpu")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="one round of small tensors")
    choices = parser.parse_args(arguments)
    if choices.small:
        choices.vocabulary, choices.width, choices.tokens, choices.rounds = [5001], 32, 2 * LENGTH, 1
    audited = ROOT / ".audit/trl/bin/python"
    python = str(audited) if choices.device == "cpu" and audited.exists() else sys.executable
    for vocabulary in choices.vocabulary:
        with ExitStack() as stack:
            compare(stack, python, vocabulary, choices)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("["):
        work(*json.loads(sys.argv[1]))
    else:
        main()
