"""Hand-written mutants of the core, each a mistake that someone has made: `make mutants` shows which test kills it.

A row is (file, the code as it stands, the mistake). Each is put into a copy of the checkout, and the tests run there,
those of the file first, until one fails. Results are kept in .mutants.json for the sources they were found on, so that
an interrupted run goes on where it stopped. Exit status 1 if a mutant survives.
"""

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".mutants.json"
COPIED = ("rpg_ref", "proofs", "tests", "pyproject.toml")

# fmt: off
MUTANTS = [
    # divergences and φ
    ("divergences.py", "small.exp() * phi(-small)", "small.exp() * phi(small)"),
    ("divergences.py", "lambda d: (d + 1) * d.exp()", "lambda d: d * d.exp()"),
    ("divergences.py", "lambda d: 2 * d.exp() * d.expm1()", "lambda d: 2 * d.expm1()"),
    ("divergences.py", "return torch.where(d > -1, near * near.expm1(), far * (far.exp() - 1))", "return d * d.expm1()"),
    ("numerics.py", "_SERIES_TERMS = 19", "_SERIES_TERMS = 14"),
    ("numerics.py", "near = d.abs() < 1\n", "near = d.abs() < 0.1\n"),
    ("numerics.py", "torch.promote_types(x.dtype, torch.float32)", "x.dtype"),
    ("numerics.py", 'torch.float32 if x.device.type == "mps" else torch.float64', "torch.float32"),
    ("estimators.py", "return -at_least_float32(log_y)", "return at_least_float32(log_y)"),
    # a dropped stop-gradient
    ("ratios.py", "widest(logp_old.detach())", "widest(logp_old)"),
    ("ratios.py", "widest(logp_ref.detach())", "widest(logp_ref)"),
    ("surrogates.py", "-live.detach()", "-live"),
    ("clipping.py", "log_w.detach(), log_v.detach()", "log_w, log_v"),
    ("recipes.py", ".log_w, self.sampler_cap).detach()", ".log_w, self.sampler_cap)"),
    # a detached term that must be live
    ("surrogates.py", "beta * u * row.f(log_v)", "beta * u * row.f(log_v.detach())"),
    ("clipping.py", "A - beta * row.slope(log_v) * (-log_v).exp()", "(A - beta * row.slope(log_v) * (-log_v).exp()).detach()"),
    ("ppo.py", "row.f(log_v) * (-log_v).exp()", "row.f(log_v) * (-log_v).exp().detach()"),
    # a missing or inverted ratio, sign or mass
    ("ratios.py", "ref - old)", "old - ref)"),
    ("surrogates.py", "log_w.exp() * A - beta * u * row.slope(log_v)", "log_w.exp() * A - beta * row.slope(log_v)"),
    ("surrogates.py", "log_w.exp() * A - beta * u * row.slope(log_v)", "A - beta * u * row.slope(log_v)"),
    ("surrogates.py", "Z * (-log_w.exp() * A", "(-log_w.exp() * A"),
    ("clipping.py", "C = -beta * u", "C = beta * u"),
    ("ppo.py", "0.0, divergence, beta, logp_ref=logp_ref)", "0.0, divergence, beta)"),
    ("recipes.py", '"reverse_kl": log_u.exp() * DIVERGENCES', '"reverse_kl": DIVERGENCES'),
    # the clip's region and values
    ("clipping.py", "up, w < w_high, (", "up, w <= w_high, ("),
    ("clipping.py", "(w_low < w) & (w < clip.dual)", "(w_low <= w) & (w < clip.dual)"),
    ("clipping.py", "(w_low < w) & (w < clip.dual)", "(w_low < w) & (w <= clip.dual)"),
    ("clipping.py", "direction >= 0", "direction > 0"),
    ("clipping.py", "1 - clip.low, 1 + clip.high", "1 - clip.high, 1 + clip.low"),
    ("clipping.py", "math.log(max(1 + clip.high, clip.dual))", "math.log(min(1 + clip.high, clip.dual))"),
    ("clipping.py", "clip.dual)) - 1)", "clip.dual)))"),
    ("clipping.py", "row.slope(log_v - excess)", "row.slope(log_v)"),
    ("clipping.py", "region(w * A + C, w, clip)", "region(w * A, w, clip)"),
    ("clipping.py", "(clamped_w * A + C)", "(w * A + C)"),
    ("clipping.py", "torch.where(live, torch.where(live, log_w, 0.0).exp(), clamped_w)", "log_w.exp()"),
    ("recipes.py", "self.beta if self.clips_penalty else 0.0", "self.beta"),
    ("recipes.py", "(w >= self.clip.dual)", "(w <= self.clip.dual)"),
    # levels, masks, aggregation, denominators
    ("ratios.py", "x.sum(-1, keepdim=True)", "x.sum(-1, keepdim=True) / x.shape[-1]"),
    ("ratios.py", ".clamp(max=cap)", ""),
    ("recipes.py", "level(torch.where(keep, widest(x), 0.0))", "level(widest(x) * keep)"),
    ("recipes.py", "torch.where(alive, widest(", "torch.where(alive | True, widest("),
    ("recipes.py", "denominator=denominator)", "denominator=None)"),
    ("recipes.py", "count(LEVELS[self.level](mask != 0), self.aggregation)", "count(mask, self.aggregation)"),
    ("aggregation.py", "torch.where(keep, at_least_float32(loss), 0.0)", "(at_least_float32(loss) * keep)"),
    ("aggregation.py", "total / length.clamp(min=1)", "total"),
    ("aggregation.py", "lambda total, length: total,                       lambda length: length)", "lambda total, length: total / length.clamp(min=1), lambda length: length > 0)"),
    ("aggregation.py", "lambda total, length: total,                       lambda length: length > 0", "lambda total, length: total,                       lambda length: length"),
    # advantages
    ("advantages.py", "g.size / (g.size - 1)", "g.size / g.size"),
    ("advantages.py", "(size - 1).clamp(min=1)", "size"),
    ("advantages.py", 'torch.where(lowest == of_group(r, "amax"), lowest, of_group(r, "mean"))', 'of_group(r, "mean")'),
    ("advantages.py", 'lambda r, g: r - r.mean()', 'lambda r, g: r - g.mean'),
    # log-probabilities
    ("logprobs.py", "logp = (at_least_float32(logits) / temperature).log_softmax(-1)\n    return", "logp = at_least_float32(logits).log_softmax(-1)\n    return"),
    ("logprobs.py", "logp = torch.where(possible, logp, 0.0)", "logp = logp"),
    # the checks themselves
    ("checks.py", "_ROUNDING = 1e-3", "_ROUNDING = 1e3"),
    ("surrogates.py", "if shape not in ((), tuple(logp.shape)):", "if False:"),
    ("audit/oracle.py", "return reached.sum(-1), through / reached", "return reached.sum(-1), through"),
    ("audit/oracle.py", 'objective.level == "sequence"', 'objective.level == "token"'),
    ("audit/identify.py", "scale = abs(found[\"reward\"]) or 1.0", "scale = found[\"reward\"] or 1.0"),
    ("verify.py", "all(_agrees(*regime) for regime in regimes) and worst", "worst"),
    ("verify.py", "and worst < FIT and", "and"),
    ("verify.py", "return _largest(errors)", "return max(errors)"),
    ("verify.py", "torch.tensor([0.0, *errors], dtype=torch.float64).max()", "max([0.0, *errors])"),
]
# fmt: on

TESTS_OF = {
    "divergences.py": ["numerics"],
    "numerics.py": ["numerics", "recipes"],
    "estimators.py": ["numerics"],
    "ratios.py": ["recipes", "gradient_equivalence"],
    "surrogates.py": ["bad_input", "gradient_equivalence"],
    "clipping.py": ["clipping"],
    "ppo.py": ["verify"],
    "aggregation.py": ["recipes"],
    "advantages.py": ["advantages"],
    "logprobs.py": ["logprobs"],
    "recipes.py": ["recipes"],
    "checks.py": ["bad_input"],
    "audit/oracle.py": ["gradient_equivalence"],
    "audit/identify.py": ["verify"],
    "verify.py": ["verify"],
}
EVERY = ["bad_input", "advantages", "recipes", "clipping", "verify", "errata", "gradient_equivalence", "logprobs"]
EVERY += ["numerics", "k3_is_unnormalised_kl", "proofs"]


def sources() -> str:
    """A hash of all that a result depends on."""
    files = sorted(path for folder in COPIED[:3] for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def killer(checkout: Path, file: str, before: str, after: str) -> str | None:
    """The first test that fails on the mutant, or None."""
    path = checkout / "rpg_ref" / file
    original = path.read_text()
    path.write_text(original.replace(before, after))
    own = TESTS_OF[file]
    try:
        return failure(checkout, own) or failure(checkout, [name for name in EVERY if name not in own])
    finally:
        path.write_text(original)


def failure(checkout: Path, names: list[str]) -> str | None:
    """The first of these tests that fails, or None."""
    tests = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HYPOTHESIS_PROFILE": "ci"}
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return None
    failed = [line.split()[1] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].removeprefix("tests/") if failed else f"exit status {run.returncode}"


def main() -> int:
    """Run every mutant that has no result for these sources yet, and print all of them."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found_on = sources()
    results = known.get("results", {}) if known.get("sources") == found_on else {}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        checkouts = queue.SimpleQueue[Path]()
        for checkout in (Path(first), Path(second)):
            for name in COPIED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, checkout / name)
            checkouts.put(checkout)

        def judge(mutant: tuple[str, str, str]) -> None:
            file, before, after = mutant
            key = f"{file}: {before.strip()}  →  {after.strip()}"
            if key not in results:
                checkout = checkouts.get()
                results[key] = killer(checkout, *mutant)
                checkouts.put(checkout)
                RESULTS.write_text(json.dumps({"sources": found_on, "results": results}, indent=1))
            fate = "SURVIVED" if results[key] is None else f"killed by {results[key]}"
            print(f"{key}\n    {fate}", flush=True)

        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(judge, MUTANTS))
    alive = sum(result is None for result in results.values())
    print(f"{len(MUTANTS)} mutants, {alive} alive")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
