"""What the checks would catch: `make mutants` breaks the core in every way it knows and names the test that notices.

Two lists. mutmut breaks every expression inside a function of the core. HAND holds what it does not make: mistakes that
people have made (a dropped detach, a swapped direction, a mask after arithmetic, …) and every row of every table, since
mutmut leaves the code outside functions alone. A row is (file, the code as it stands, the mistake).

Everything happens in .mutants/, a copy of the checkout. It is kept for the sources it was made from, so that an
interrupted run goes on where it stopped; .mutants/report.txt names each mutant and its killer. Exit status 1 if a mutant
survives that is not in EQUIVALENT, where each has its reason. `make mutants ARGS="--only TEXT"` judges the rows of HAND
that contain the text, such as a file's name, in a folder that it removes.
"""

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".mutants"
COPIED = ("rpg_ref", "proofs", "tests", "docs", "README.md", "pyproject.toml")

# fmt: off
HAND = [
    # divergences and φ
    ("divergences.py", "small.exp() * phi(-small)", "small.exp() * phi(small)"),
    ("divergences.py", "lambda d: (d + 1) * d.exp()", "lambda d: d * d.exp()"),
    ("divergences.py", "lambda d: 2 * d.exp() * d.expm1()", "lambda d: 2 * d.expm1()"),
    ("divergences.py", "return torch.where(d > -1, d.expm1(), d.clamp(max=-1.0).exp() - 1)", "return d.expm1()"),
    ("numerics.py", "_SERIES_TERMS = 19", "_SERIES_TERMS = 14"),
    ("numerics.py", "near = d.abs() < 1\n", "near = d.abs() < 0.1\n"),
    ("numerics.py", "torch.promote_types(x.dtype, torch.float32)", "x.dtype"),
    ("numerics.py", 'torch.float32 if x.device.type == "mps" else torch.float64', "torch.float32"),
    ("estimators.py", "return -at_least_float32(log_y)", "return at_least_float32(log_y)"),
    # a dropped stop-gradient
    ("ratios.py", "widest(logp_old.detach())", "widest(logp_old)"),
    ("ratios.py", "widest(logp_ref.detach())", "widest(logp_ref)"),
    ("surrogates.py", "-coefficient(t, beta).detach() * t.logp", "-coefficient(t, beta) * t.logp"),
    ("clipping.py", "t.log_w.detach(), t.log_v.detach()", "t.log_w, t.log_v"),
    ("recipe.py", "self.sampler).exp().detach()", "self.sampler).exp()"),
    # a detached term that must be live
    ("surrogates.py", "beta * t.u * t.row.f(t.log_v)", "beta * t.u * t.row.f(t.log_v.detach())"),
    ("clipping.py", "clamped_w.log()), beta), logp)", "clamped_w.log()), beta).detach(), logp)"),
    ("ppo.py", "t.row.f(t.log_v) * (-t.log_v).exp()", "t.row.f(t.log_v) * (-t.log_v).exp().detach()"),
    # a missing or inverted ratio, sign or mass
    ("ratios.py", "ref - old)", "old - ref)"),
    ("surrogates.py", "- beta * t.u * t.row.slope(t.log_v)", "- beta * t.row.slope(t.log_v)"),
    ("surrogates.py", "t.log_w.exp() * t.advantage - beta", "t.advantage - beta"),
    ("surrogates.py", "t.mass * (-t.log_w.exp()", "(-t.log_w.exp()"),
    ("clipping.py", "C = -beta * t.u", "C = beta * t.u"),
    ("ppo.py", "penalty(t, beta)", "penalty(t, 0.0)"),
    ("recipe.py", '"reverse_kl": log_u.exp() * DIVERGENCES', '"reverse_kl": DIVERGENCES'),
    # the clip's region and values
    ("clipping.py", "up, w < w_high, (", "up, w <= w_high, ("),
    ("clipping.py", "(w_low < w) & (w < clip.dual)", "(w_low <= w) & (w < clip.dual)"),
    ("clipping.py", "(w_low < w) & (w < clip.dual)", "(w_low < w) & (w <= clip.dual)"),
    ("clipping.py", "direction >= 0", "direction > 0"),
    ("clipping.py", "1 - clip.low, 1 + clip.high", "1 - clip.high, 1 + clip.low"),
    ("clipping.py", "math.log(max(1 + clip.high, clip.dual))", "math.log(min(1 + clip.high, clip.dual))"),
    ("clipping.py", "clip.dual)) - 1)", "clip.dual)))"),
    ("clipping.py", "t.row.slope(log_v - excess)", "t.row.slope(log_v)"),
    ("clipping.py", "region(w * t.advantage + C, w, clip)", "region(w * t.advantage, w, clip)"),
    ("clipping.py", "(clamped_w * t.advantage + C)", "(w * t.advantage + C)"),
    ("clipping.py", "torch.where(inside, torch.where(inside, log_w, 0.0).exp(), clamped_w)", "log_w.exp()"),
    ("recipe.py", "self.beta if self.clips_penalty else 0.0", "self.beta"),
    ("recipe.py", "(w >= self.clip.dual)", "(w <= self.clip.dual)"),
    # levels, masks, aggregation, denominators
    ("ratios.py", "x.sum(1, keepdim=True), _any,  ", "x.sum(1, keepdim=True) / x.shape[1], _any,  "),
    ("recipe.py", "level.samples(torch.where(keep, widest(x), 0.0), keep)", "level.samples(widest(x) * keep, keep)"),
    ("recipe.py", "torch.where(alive, widest(reward), 0.0)", "widest(reward)"),
    ("recipe.py", "denominator=denominator)", "denominator=None)"),
    ("recipe.py", "count(LEVELS[self.level].alive(mask != 0), self.aggregation)", "count(mask, self.aggregation)"),
    ("aggregation.py", "torch.where(keep, at_least_float32(loss), 0.0)", "(at_least_float32(loss) * keep)"),
    ("aggregation.py", "total / length.clamp(min=1)", "total"),
    ("aggregation.py", "lambda total, length: total,                       lambda length: length)", "lambda total, length: total / length.clamp(min=1), lambda length: length > 0)"),
    ("aggregation.py", "lambda total, length: total,                       lambda length: length > 0", "lambda total, length: total,                       lambda length: length"),
    # advantages
    ("advantages.py", "g.size / (g.size - 1)", "g.size / g.size"),
    ("advantages.py", "(size - 1).clamp(min=1)", "size"),
    ("advantages.py", 'torch.where(lowest == _within(r, member, "amax"), lowest, _within(r, member, "mean"))', '_within(r, member, "mean")'),
    ("advantages.py", "lambda r, g: r - _batch(r).mean", "lambda r, g: r - g.mean"),
    # log-probabilities
    ("logprobs.py", "logp = (at_least_float32(logits) / temperature).log_softmax(-1)\n    return", "logp = at_least_float32(logits).log_softmax(-1)\n    return"),
    ("logprobs.py", "logp = torch.where(possible, logp, 0.0)", "logp = logp"),
    ("logprobs.py", "kept = kept.clamp(max=-least)", "kept = kept.clamp(max=0.0)"),
    ("logprobs.py", "torch.where(kept > half, (-many.expm1()).log(), (-few.exp()).log1p())", "(-kept.exp()).log1p()"),
    # the checks themselves
    ("checks.py", "_ROUNDING = 1e-3", "_ROUNDING = 1e3"),
    ("surrogates.py", "if shape not in ((), tuple(logp.shape)):", "if False:"),
    ("audit/oracle.py", "return reached.sum(-1), through / reached", "return reached.sum(-1), through"),
    ("audit/oracle.py", 'objective.level == "sequence"', 'objective.level == "token"'),
    # the audit
    ("audit/identify.py", 'scale = abs(found["reward"]) if measured else scale', 'scale = found["reward"] if measured else scale'),
    ("audit/identify.py", 'scale = abs(found["reward"]) if measured else scale', 'scale = abs(found["reward"]) or scale'),
    ("audit/identify.py", "if drift > 0 or name not in AGAINST_SAMPLER", "if True"),
    ("audit/identify.py", "_LINEAR * (plus - minus).norm())", "1e3 * (plus - minus).norm())"),
    ("audit/identify.py", "if finding.residual < _ROUNDING and", "if finding.residual < FIT and"),
    ("audit/identify.py", "for shrink in (16, 256, 4096))", "for shrink in (16,))"),
    ("audit/identify.py", "return _NEVER_LINEAR", "return 1e-5"),
    ("audit/identify.py", "return NO_FIT * min(1.0, self.spread / _NEAR) if self.drift else NO_FIT", "return NO_FIT"),
    ("audit/identify.py", "max(FIT, residual * condition) * solution.abs().max()] = 0.0", "0.0] = 0.0"),
    ("audit/identify.py", "vector.norm() < _ZERO_SINGLE * pulls[part]", "vector.norm() < 0"),
    ("audit/identify.py", "return second if second.residual < second.no_fit or math.isinf(first.residual) else first", "return first"),
    ("audit/identify.py", "return any(self.coefficients.get(name", "return False and any(self.coefficients.get(name"),
    ("audit/identify.py", "return c / on.scale", "return c"),
    ("audit/identify.py", "target = torch.cat([on.vectors[part], off.vectors[part]])", "target = torch.cat([off.vectors[part], off.vectors[part]])"),
    ("audit/identify.py", "remarks = (*report.remarks, *probed.remarks)\n    return replace(report, remarks", "remarks = report.remarks\n    return replace(report, remarks"),
    ("audit/population.py", "if not torch.equal(first, second):", "if False:"),
    ("audit/population.py", "if not bool(first.isfinite()):", "if False:"),
    ("audit/population.py", "if not bool(gradient.isfinite().all()):", "if False:"),
    ("audit/population.py", "lambda A, mask: A[:, None].expand(mask.shape).clone(),\n", ""),
    ("audit/population.py", "(Tensor.clone, Tensor.double, Tensor.long, Tensor.float)", "(Tensor.clone, Tensor.double)"),
    ("audit/population.py", "loss_fn(*(x.clone() for x in logps), given", "loss_fn(*logps, given"),
    ("audit/forms.py", "lambda log_y: k3(-log_y)", "lambda log_y: k3(log_y)"),
    ("audit/forms.py", "lambda p, q: (p - q).detach().exp(),", "lambda p, q: (p - q).exp(),"),
    ("audit/forms.py", "lambda p, q: (2 * (p - q)).exp(),", "lambda p, q: (3 * (p - q)).exp(),"),
    ("audit/probes.py", "columns = torch.stack([A, torch.ones_like(A)], 1)", "columns = torch.stack([A, torch.zeros_like(A)], 1)"),
    ("audit/probes.py", '(-2.0, "length_twice")', "(-2.0, None)"),
    ("audit/probes.py", "if (used - used.mean()).abs().max() < same * used.abs().max():", "if False:"),
    ("audit/probes.py", "if by_itself and not by_others:", "if True:"),
    ("audit/probes.py", "if good and bad:", "if good or bad:"),
    ("audit/probes.py", "except Exception as error:", "except RuntimeError as error:"),
    ("audit/probes.py", "if subject.differ(total, parts / 2) and subject.differ(total, parts):", "if subject.differ(total, parts / 2):"),
    ("audit/probes.py", "if bool((pull * ~rows.mask).any()):\n        yield", "if False:\n        yield"),
    ("audit/probes.py", "if moves and not subject.differ(subject.pull(one), subject.pull(other)):", "if moves:"),
    ("audit/probes.py", "stopped = bool(pull[-1] == 0) and", "stopped ="),
    ("audit/identify.py", "if off.flees else", "if not off.flees else"),
    ("audit/identify.py", "if all(unknown) and not explained:", "if all(unknown):"),
    ("audit/identify.py", "descend(drift, 0.0 if reward_is_right else 1.0)", "descend(drift, 1.0)"),
    ("audit/identify.py", "< distance else (low, middle)", "> distance else (low, middle)"),
    ("audit/present.py", "SEVERITIES.index(found) <=", "SEVERITIES.index(found) >="),
    ("audit/present.py", 'cell.replace("|", "\\\\|")', "cell"),
    ("audit/identify.py", "and _is_as_large(finding, farthest))", ")"),
    ("audit/identify.py", "rel_tol=1e-5, abs_tol=1e-9", "rel_tol=0.0"),
    ("audit/identify.py", "batch = balanced(seed)", "pass"),
    ("audit/population.py", "(other - one).abs().max() <= 1e-5", "(other - one).abs().max() <= 1e5"),
    ("audit/probes.py", "down_high <= min(_WIDEST,", "down_high <= max(9.0,"),
    ("audit/probes.py", "and down_low is None", "and True"),
    ("audit/probes.py", "dead = torch.minimum(pull.abs(), whole.abs())", "dead = pull.abs()"),
    ("audit/probes.py", "bad == 0 and weighs_alike", "bad == 0"),
    ("audit/probes.py", "if hit and torch.equal(live, moved):", "if hit:"),
    ("audit/probes.py", "abs(factor / round(factor) - 1) <= 4 * subject.same:\n            unit", "True:\n            unit"),
    ("audit/probes.py", 'return Normaliser("token sums" if', 'return Normaliser("sequences" if'),
    ("audit/probes.py", "for copies in (1, count):", "for copies in (8, count):"),
    ("audit/probes.py", "if coupling is not None and coupling.size < _MANY:", "if coupling is not None:"),
    ("audit/probes.py", "if not signed and not bool(", "if False and not bool("),
    ("audit/probes.py", 'remark.kind == "uneven_tokens" and _follows_values(subject)', 'remark.kind == "uneven_tokens"'),
    ("audit/probes.py", "*(_EXACT if dtype else ())", "*()"),
    ("audit/probes.py", "_HALVES.get(dtype, _SAME) if dtype else _SAME", "_SAME"),
    ("audit/probes.py", "if moved and 0 not in moved:", "if False:"),
    ("audit/probes.py", "if unmoved(list(range(n)), 1.0, 1.0)", "if False"),
    ("audit/population.py", "_COPIES = (1, 8)", "_COPIES = (1,)"),
    ("audit/identify.py", "if torch.equal(leaf, population.old):", "if False:"),
    ("audit/probes.py", "for shift, when in ((1, \"late\"), (-1, \"early\")):", "for shift, when in ((1, \"late\"),):"),
    ("audit/probes.py", "max(abs(of_old + 1), abs(of_sampler - 1)) < _READ", "False"),
    ("audit/probes.py", "temperature=-1 / of_sampler", "temperature=-of_sampler"),
    ("audit/population.py", "return \"named\" if \"logp_sampler\" in parameters else", "return '' if False else"),
    ("audit/scripted.py", "bool(strayed.any()) and bool(strayed.isfinite().all())", "False"),
    ("audit/scripted.py", "torch.where(mask.bool() | ~x.isfinite(), x, 0.0)", "x"),
    ("audit/assertion.py", "found.kind not in kinds or", ""),
    ("audit/assertion.py", "for batch in (rows, far, holes)]", "for batch in (rows,)]"),
    ("audit/scripted.py", "return self.temperature * torch.where", "return torch.where"),
    ("audit/scripted.py", "(-logp.exp()).log1p() - math.log", "(-logp.exp()).log1p() + math.log"),
    ("audit/scripted.py", "ids.where(mask, -100)", "ids"),
    ("audit/scripted.py", "prompt_mask, inside.long()", "prompt_mask, kept"),
    ("audit/model.py", "for pad in (PAD, EOS)", "for pad in (PAD, PAD)"),
    ("audit/model.py", "of_a_step=True", "of_a_step=False"),
    ("audit/prefix_lm.py", "and not displaced", ""),
    ("audit/tokens.py", "if 0 < len(coupled) < len(A):", "if False:"),
    ("audit/tokens.py", "remarks = _by_the_models_choice(", "remarks = remarks or _by_the_models_choice("),
    ("audit/prefix_lm.py", "ordinary = visible and gaps <= {1} and not displaced", "ordinary = visible and not displaced"),
    ("audit/prefix_lm.py", "ordinary = visible and gaps <= {1} and not displaced", "ordinary = gaps <= {1} and not displaced"),
    ("audit/prefix_lm.py", "self.rows[:, FIRST:] = temperature * logits", "self.rows[:, FIRST:] = logits"),
    ("audit/prefix_lm.py", "if bool(loss.isnan()) and not may_be_nan:", "if False:"),
    ("audit/model.py", "return Descent(-temperature * gradient[:, FIRST:]", "return Descent(-gradient[:, FIRST:]"),
    ("audit/model.py", 'if any("temperature is missing" in remark for remark in remarks):', "if False:"),
    ("audit/tokens.py", "for x in (A, A, -A, 2 * A, A + 1, 0 * A)", "for x in (A, A, A, 2 * A, A + 1, 0 * A)"),
    ("audit/tokens.py", "if penalised:", "if False:"),
    ("audit/tokens.py", "cuts = [0, *starts[1:], len(ids)]", "cuts = [0, len(ids)]"),
    ("audit/tokens.py", "for side in reversed(read) for s in side}", "for side in read[:1] for s in side}"),
    ("audit/tokens.py", "if found.keys() != wanted and _takes", "if _takes"),
    ("audit/tokens.py", "at = None if ids[place] == PAD else", "at ="),
    ("audit/tokens.py", "softmax = (logits[used] * slope).softmax(-1)", "softmax = logits[used].softmax(-1)"),
    ("audit/assertion.py", "if not any(differences.values()) and not report.faults and not others:", "if not any(differences.values()) and not others:"),
    ("audit/assertion.py", "if difference > tolerance * largest:", "if difference > tolerance * 1e9:"),
    ("audit/assertion.py", "if (got[yardstick] > 0) != (asked[yardstick] > 0):", "if False:"),
    ("audit/assertion.py", "{(G - 1) / G: f", "{(G - 2) / G: f"),
    ("audit/run.py", "or self.report.faults:", "or False:"),
    ("audit/run.py", "return a is b", "return True"),
    ("audit/run.py", "if a.level != b.level:", "if False:"),
    ("audit/table.py", "if not same_objective(old, new):\n                lines.append(f\"{where}: {old or 'none'} is published, ", "if False:\n                lines.append(f\"{where}: {old or 'none'} is published, "),
    ("audit/table.py", 'Objective(terms, case["level"])', "Objective(terms)"),
    ("audit/verify.py", "all(_agrees(*regime) for regime in regimes) and worst", "worst"),
    ("audit/verify.py", "and worst < FIT and", "and"),
    ("audit/verify.py", "return _largest(errors)", "return max(errors)"),
    ("audit/verify.py", "torch.tensor([0.0, *errors], dtype=torch.float64).max()", "max([0.0, *errors])"),
    ("audit/verify.py", "bias(recipe, seed=seed),", "None,"),
    ("audit/statements.py", 'return "itself" if statement_of(recipe) is None else "Algorithm 2"', 'return "statement"'),
    ("audit/identify.py", "float(len(batch.rows)) if loss_fn.needs_denominator else None", "None"),
    ("audit/denominator.py", 'group = batch if baseline.startswith("batch") else group', "group = group"),
    ("audit/denominator.py", "torch.ones_like(total) if constant else batch / total", "batch / total"),
    ("audit/denominator.py", "_sum_of(one, group - 1), _others(", "_sum_of(one, group), _others("),
    ("audit/denominator.py", "_sum_of(one.sum(0, keepdim=True), batch - group)", "_sum_of(one.sum(0, keepdim=True), batch)"),
    ("audit/denominator.py", "_sum_of(spread, batch // group - 1)", "_sum_of(spread, 0)"),
    ("audit/denominator.py", "old, ref, c / h, tree.mask", "old, ref, c, tree.mask"),
    ("recipe.py", "if self.needs_denominator and denominator is None:", "if False:"),
    ("fused.py", " and not recipe.needs_denominator", ""),
    # the rows of the tables, one by one
    ("divergences.py", "return -d\n", "return d\n"),
    ("divergences.py", "lambda d: -torch.ones_like(d)", "lambda d: torch.ones_like(d)"),
    ("divergences.py", "phi,                          v_minus_1)", "phi,                          torch.exp)"),
    ("divergences.py", "{_REFERENCE: phi},    phi,", "{_REFERENCE: phi},    torch.expm1,"),
    ("divergences.py", "return d * d.exp()\n", "return d * d.exp() - 1\n"),
    ("divergences.py", "lambda d: d * d.exp()),          # Prop 3.6", "lambda d: (d + 1) * d.exp()),    # Prop 3.6"),
    ("divergences.py", "{_CURRENT: f_urkl},   f_urkl,", "{_CURRENT: f_urkl},   f_rkl,"),
    ("divergences.py", "lambda d: d * d.exp() + v_minus_1(d)", "lambda d: d * d.exp()"),
    ("divergences.py", "return v_minus_1(d) ** 2", "return v_minus_1(d) ** 2 / 2"),
    ("divergences.py", "return v_minus_1(d) ** 2", "return d.expm1() ** 2"),
    ("divergences.py", "lambda d: d * v_minus_1(d)", "lambda d: d * d.expm1()"),
    ("divergences.py", "{_CURRENT: f_rkl},    f_rkl", "{_REFERENCE: f_rkl},  f_rkl"),
    ("divergences.py", "{_REFERENCE: phi},", "{_CURRENT: phi},"),
    ("divergences.py", "(1, 0), (0, 1), (2, -1)", "(1, 0), (0, 1), (2, 0)"),
    ("divergences.py", "{_CURRENT: f_rkl, _REFERENCE: f_fkl}", "{_CURRENT: f_rkl}"),
    ("divergences.py", "{_CURRENT: f_rkl, _REFERENCE: f_fkl}", "{_CURRENT: f_fkl, _REFERENCE: f_rkl}"),
    ("divergences.py", '"js",       None,                 f_js', '"js",       {_CURRENT: f_js},     f_js'),
    ("divergences.py", "lambda d: f(at_least_float32(d)),", "f,"),
    ("divergences.py", "lambda d: slope(at_least_float32(d)), chain", "slope, chain"),
    ("divergences.py", "Divergence(name, lambda", "Divergence(name.upper(), lambda"),
    ("ratios.py", '"clamp": lambda log_w, low, high: log_w.clamp(low, high)', '"clamp": lambda log_w, low, high: log_w.clamp(max=high)'),
    ("ratios.py", "(low <= log_w) & (log_w <= high), log_w, -torch.inf", "(low <= log_w) | (log_w <= high), log_w, -torch.inf"),
    ("ratios.py", "(low <= log_w) & (log_w <= high), log_w, -torch.inf", "(low < log_w) & (log_w <= high), log_w, -torch.inf"),
    ("ratios.py", "(low <= log_w) & (log_w <= high), log_w, -torch.inf", "(low <= log_w) & (log_w < high), log_w, -torch.inf"),
    ("ratios.py", "log_w, -torch.inf)", "log_w, 0.0)"),
    ("ratios.py", 'rule: str = "clamp"', 'rule: str = "mask"'),
    ("ratios.py", "low: float = 0.0", "low: float = 0.5"),
    ("ratios.py", "high: float = math.inf", "high: float = 10.0"),
    ("ratios.py", "lambda x, keep: x,  ", "lambda x, keep: x / keep.sum(),  "),
    ("ratios.py", "x.cumsum(1),            _each, _at_the_end", "x,                      _each, _at_the_end"),
    ("ratios.py", "x.cumsum(1),            _each, _at_the_end", "x.cumsum(1),            _each, _everywhere"),
    ("ratios.py", '_each, _at_the_end, "sequence"', '_each, _at_the_end, "token"'),
    ("ratios.py", 'Level(_mean,                                  _any,  _everywhere, "sequence")', 'Level(_mean,                                  _any,  _everywhere, "token")'),
    ("ratios.py", "lambda x, keep: x.sum(1, keepdim=True), _any,  ", "_mean, _any,  "),
    ("advantages.py", "Baseline(lambda r, g: r,    ", "Baseline(lambda r, g: -r,    "),
    ("advantages.py", "_standardised(r, _batch(r))", "_standardised(r, g)"),
    ("advantages.py", "lambda r, g: r - g.mean,  ", "lambda r, g: r - _batch(r).mean,  "),
    ("advantages.py", "_standardised(r - g.mean, _batch(r - g.mean))", "_standardised(r - g.mean, _batch(r))"),
    ("advantages.py", "_standardised,                                                 2", "_standardised,                                                 1"),
    ("advantages.py", "(r - g.mean) * g.size / (g.size - 1),             2", "(r - g.mean) * g.size / (g.size - 1),             1"),
    ("advantages.py", "(r - g.mean) * g.size / (g.size - 1),             2", "(r - g.mean) * g.size / (g.size - 1),             3"),
    ("aggregation.py", 'lambda total, length: total / length.clamp(min=1), lambda length: length > 0', 'lambda total, length: total / length.clamp(min=1), lambda length: length'),
    ("aggregation.py", 'total / length.clamp(min=1)', 'total / length.clamp(min=2)'),
    ("clipping.py", "low: float = 0.2", "low: float = 0.28"),
    ("clipping.py", "high: float = 0.28", "high: float = 0.2"),
    ("clipping.py", "dual: float = 10.0", "dual: float = 3.0"),
    ("recipes.py", '"ufkl": FORWARD', '"ufkl": REVERSE'),
    ("recipes.py", 'PENALTY | {"fkl": NONE, "ufkl": NONE}', "PENALTY"),
    ("recipes.py", '"reverse_kl_old": -1.0', '"reverse_kl_old": 1.0'),
    ("recipes.py", "DualClip(low=0.2, high=0.2, dual=math.inf), clips_penalty=False", "DualClip(low=0.2, high=0.2, dual=math.inf), clips_penalty=True"),
    ("recipes.py", "DualClip(low=0.2, high=0.2, dual=math.inf)", "DualClip(low=0.2, high=0.2)"),
    ("recipes.py", "beta=0.04", "beta=0.4"),
    ("recipes.py", "DualClip(low=0.2, high=0.28, dual=math.inf)", "DualClip(low=0.28, high=0.2, dual=math.inf)"),
    ("recipes.py", "low=3e-4, high=4e-4", "low=4e-4, high=3e-4"),
    ("recipes.py", 'level="geometric", off_policy_reward=False', 'level="geometric"'),
    ("recipes.py", "WeightBound(high=5.0)", "WeightBound(high=2.0)"),
    ("recipes.py", 'baseline="batch_std", objective_level="sequence"', 'baseline="batch_std"'),
    ("recipes.py", "beta=0.05", "beta=0.01"),
    ("recipe.py", "beta: float = 1e-4", "beta: float = 1e-3"),
    ("recipe.py", 'baseline: str = "group_mean"', 'baseline: str = "none"'),
    ("recipe.py", 'aggregation: str = "token-mean"', 'aggregation: str = "seq-mean-token-mean"'),
    ("recipes.py", 'style.format(x), loss, y, y, x', 'style.format(x), loss, y, y, "urkl"'),
    ("recipes.py", 'f"rpg-{x}-clip": f"rpg-reinforce-{x}-clip"', 'f"rpg-{x}-clip": f"rpg-reinforce-{x}"'),
    ("recipes.py", '"chi2": {"chi2": 1.0}', '"chi2": {"chi2": 2.0}'),
    ("recipes.py", "FORWARD | REVERSE", "FORWARD"),
    ("reference.py", "decay: float = 0.9", "decay: float = 0.99"),
    ("reference.py", "kappa: float = math.inf", "kappa: float = 10.0"),
    ("checks.py", "_LARGEST_LOG_RATIO = 350.0", "_LARGEST_LOG_RATIO = 700.0"),
    ("checks.py", "super().__init__(rows)", "super().__init__()"),
    ("checks.py", "self.what, self.aliases = what", 'self.what, self.aliases = "row"'),
    ("objective.py", 'GAINS = ("reward", "entropy")', 'GAINS = ("reward",)'),
    ("objective.py", 'level: str = "token"', 'level: str = "sequence"'),
    # whole losses
    ("prefix.py", "_shifted(t.log_w), _shifted(log_u)", "_shifted(t.log_w.detach()), _shifted(log_u)"),
    ("prefix.py", "_shifted(t.log_w), _shifted(log_u)", "_shifted(log_u), _shifted(t.log_w)"),
    ("prefix.py", "(a * w_before + b * u_before + step_u)", "step_u"),
    ("prefix.py", "(t.log_w - t.log_v).detach()", "(t.log_v - t.log_w).detach()"),
    ("clipping.py", "(log_w - t.log_v).exp()", "log_w.exp()"),
    ("clipping.py", "return log_w.exp() * t.advantage", "return t.advantage"),
    ("clipping.py", "bound), beta).detach() * t.logp", "bound), beta) * t.logp"),
    ("clipping.py", "1 - self.low < 1", "True"),
    ("clipping.py", "1 < 1 + self.high", "True"),
    ("numerics.py", "x.to(torch.promote_types(like.dtype, torch.float32))", "x.to(like.dtype)"),
    ("checks.py", "if name in self.aliases:", "if False:"),
    ("checks.py", "        self[name]\n", "        pass\n"),
    ("ppo.py", "(t.log_v - t.log_w).detach().flip(-1).cumsum(-1).flip(-1)", "(t.log_v - t.log_w).detach()"),
    ("ppo.py", "(t.log_v - t.log_w).detach().flip(-1).cumsum(-1).flip(-1)", "(t.log_v - t.log_w).flip(-1).cumsum(-1).flip(-1)"),
    ("ppo.py", "(t.log_v - t.log_w).detach().flip(-1).cumsum(-1).flip(-1)", "(t.log_v - t.log_w).detach().cumsum(-1)"),
    ("ppo.py", "(t.log_v - t.log_w).detach().flip(-1)", "t.log_v.detach().flip(-1)"),
    # other methods' gates, and the names of their curves
    ("gates.py", "self.tau_pos * (w - 1), self.tau_neg * (w - 1)", "self.tau_neg * (w - 1), self.tau_pos * (w - 1)"),
    ("gates.py", "moved > self.delta_high, moved > self.delta_low", "moved > self.delta_low, moved > self.delta_high"),
    ("gates.py", "(log_old - log_new) + tails, 0.0)", "(log_old - log_new) - tails, 0.0)"),
    ("gates.py", "seen.log_w.clamp(max=math.log(self.cap)).exp()", "seen.log_w.exp()"),
    ("gates.py", "(-_mean(seen.log_w, seen.alive) <= self.delta)", "(_mean(seen.log_w, seen.alive) <= self.delta)"),
    ("gates.py", "_mean(clipped, seen.alive).exp()", "_mean(seen.log_w, seen.alive).exp()"),
    ("gates.py", "rate * (1 - w)", "rate * (w - 1)"),
    ("gates.py", "stays[order] = means < self.budget", "stays[order] = squares[order] < self.budget"),
    ("gates.py", "alive.sum(-1, keepdim=True).clamp(min=1)", "alive.shape[-1]"),
    ("audit/curves.py", "[1.0, -1.0, 2.0, -2.0]", "[1.0, -1.0, 1.0, -1.0]"),
    ("audit/curves.py", "_ratios(rest_edges, _LENGTH if level == \"geometric\" else 1)", "_ratios(rest_edges, 1)"),
    ("audit/curves.py", "else _CANCELS**2", "else _CANCELS"),
    ("audit/curves.py", 'if by == "weight" and _in_the_reward(', 'if by == "weight" and not _in_the_reward('),
    ("audit/curves.py", "if all(_same_where_seen(first, edges, old) for old, edges in seen[1:]):", "if True:"),
    ("audit/curves.py", "if mirrored:", "if False:"),
    ("audit/curves.py", "if abs(rate) > 1e-6 and _close(", "if _close("),
    ("audit/curves.py", "keep[i:j] = False", "pass"),
    ("cpgd_pmd.py", "clamped_w.log()", "clamped_w"),
    ("surrogates.py", "(w * t.logp - w + 1)", "(t.logp - w + 1)"),
    ("surrogates.py", "(w * t.logp - w + 1)", "(w.detach() * t.logp - w + 1)"),
    ("ratios.py", "_everywhere, \"sequence\", _over_length)", "_everywhere, \"sequence\")"),
    ("recipe.py", "* batch.share", ""),
    ("recipe.py", '{"entropy": self.entropy}', '{"entropy": -self.entropy}'),
    ("recipes.py", "critic=True", "critic=False"),
    ("recipes.py", "entropy=0.01", "entropy=0.1"),
    ("cpgd_pmd.py", "beta * k3(t.log_w)", "beta * k3(-t.log_w)"),
]
# fmt: on

TESTS_OF = {
    "divergences.py": ["numerics"],
    "numerics.py": ["numerics", "recipes", "precision"],
    "estimators.py": ["numerics"],
    "ratios.py": ["recipes", "gradient_equivalence"],
    "surrogates.py": ["bad_input", "gradient_equivalence"],
    "prefix.py": ["levels", "gradient_equivalence"],
    "clipping.py": ["clipping", "recipes", "bad_input"],
    "ppo.py": ["verify"],
    "cpgd_pmd.py": ["verify"],
    "gates.py": ["gates"],
    "audit/curves.py": ["curves"],
    "aggregation.py": ["recipes"],
    "reference.py": ["reference"],
    "advantages.py": ["advantages"],
    "logprobs.py": ["logprobs"],
    "recipe.py": ["recipes", "denominator"],
    "recipes.py": ["recipes"],
    "checks.py": ["bad_input"],
    "objective.py": ["recipes", "verify"],
    "audit/oracle.py": ["gradient_equivalence"],
    "audit/identify.py": ["identify", "audit_cases", "audit_report", "identify_model", "verify"],
    "audit/population.py": ["identify", "audit_cases"],
    "audit/forms.py": ["identify"],
    "audit/probes.py": ["identify", "audit_cases", "identify_model"],
    "audit/assertion.py": ["identify", "audit_report"],
    "audit/present.py": ["audit_report"],
    "audit/remarks.py": ["audit_report", "audit_cases"],
    "audit/prefix_lm.py": ["identify_model"],
    "audit/tokens.py": ["identify_model", "audit_cases"],
    "audit/model.py": ["identify_model"],
    "audit/scripted.py": ["identify_model"],
    "audit/run.py": ["audit"],
    "audit/table.py": ["audit"],
    "audit/verify.py": ["verify"],
    "audit/statements.py": ["verify"],
    "audit/denominator.py": ["denominator"],
    "fused.py": ["fused"],
}
EVERY = ["bad_input", "advantages", "recipes", "clipping", "reference", "verify", "errata", "gradient_equivalence"]
EVERY += [
    "logprobs",
    "numerics",
    "k3_is_unnormalised_kl",
    "groups",
    "laws",
    "identify",
    "identify_model",
    "audit_cases",
    "audit_report",
    "audit",
    "proofs",
]

# mutmut switches a mutant on after the import: these run during it. HAND has their mistakes.
AT_IMPORT = ("divergences.x__row__", "recipes.x__rpg__", "checks.xǁTableǁ__init__")

DEAD = "it fills the places where the other branch is taken"
ROUNDING = "both forms are right to rounding in between, by the same bounds"
EQUIVALENT = {
    # (function, the mutated line): why no input can tell it from the original
    ("logprobs.x_with_rest", "half = -math.log(3)"): ROUNDING,
    ("logprobs.x_with_rest", "if (kept >= 1e-3).any():"): "whether rounding may be a thousandth itself is arbitrary",
    (
        "logprobs.x_with_rest",
        "return torch.cat([logp, torch.where(kept >= half, (-many.expm1()).log(), (-few.exp()).log1p())], -1)",
    ): ROUNDING,
    ("divergences.x_v_minus_1", "return torch.where(d >= -1, d.expm1(), d.clamp(max=-1.0).exp() - 1)"): ROUNDING,
    ("divergences.x_v_minus_1", "return torch.where(d > -1, d.expm1(), d.clamp(max=+1.0).exp() - 1)"): DEAD,
    ("divergences.x_v_minus_1", "return torch.where(d > -2, d.expm1(), d.clamp(max=-1.0).exp() - 1)"): ROUNDING,
    ("divergences.x_f_js", "near = d.abs() <= 2"): ROUNDING,
    ("divergences.x_f_js", "near = d.abs() < 3"): ROUNDING,
    ("divergences.x_f_js", "h, far = torch.where(near, d / 2, 1.0), torch.where(near, 2.0, d).abs()"): DEAD,
    ("divergences.x_f_js", "h, far = torch.where(near, d / 2, 0.0), torch.where(near, 3.0, d).abs()"): DEAD,
    ("divergences.x_slope_js", "near = d.abs() <= 1"): ROUNDING,
    ("divergences.x_slope_js", "near = d.abs() < 2"): ROUNDING,
    ("divergences.x_slope_js", "small = torch.where(near, d, 1.0)"): DEAD,
    ("clipping.x_clipped_ratio", "return torch.where(inside, torch.where(inside, log_w, 1.0).exp(), clamped_w)"): DEAD,
    ("advantages.x__standardised", "return (r - g.mean) / torch.where(g.std > 0, g.std, 2.0)"): "0/1 = 0/2",
    (
        "objective.xǁObjectiveǁ__str__",
        'sign = "+" if (c >= 0) == (name in GAINS) else "−"',
    ): "zero was skipped before",
}


def sources() -> str:
    """A hash of all that a result depends on."""
    files = sorted(path for folder in COPIED[:3] for path in (ROOT / folder).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, ROOT / "pyproject.toml"])).hexdigest()


def environment(checkout: Path) -> dict[str, str]:
    """Derandomised, and the tests' own record of what failed."""
    killers = {"HYPOTHESIS_PROFILE": "default", "KILLERS": str(WORK / "killers.txt")}
    return {**os.environ, **killers, "PYTHONPATH": str(checkout)}


def copy_to(checkout: Path) -> Path:
    """A fresh copy of what the tests need."""
    checkout.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    return checkout


@cache
def check_control(checkout: Path, file: str) -> None:
    """Refuse a test file that fails without a mutant too: it would count as the killer of every mutant."""
    found = failure(checkout, [file])
    if found:
        raise SystemExit(f"{found} fails in {checkout} without a mutant; mend the copy or the test first")


def killer(checkout: Path, file: str, before: str, after: str) -> str | None:
    """The first test that fails on a mutant of HAND, or None."""
    path = checkout / "rpg_ref" / file
    original = path.read_text()
    path.write_text(original.replace(before, after))
    own = TESTS_OF[file]
    try:
        found = failure(checkout, own) or failure(checkout, [name for name in EVERY if name not in own])
    finally:
        path.write_text(original)
    if found:
        check_control(checkout, found.partition(".py")[0].removeprefix("test_"))
    return found


def named(mutant: tuple[str, str, str]) -> str:
    """A mutant of HAND in one line."""
    file, before, after = mutant
    return f"{file}: {before.strip()}  →  {after.strip()}"


def failure(checkout: Path, names: list[str]) -> str | None:
    """The first of these tests that fails, or None."""
    tests = [f"tests/test_{name}.py" for name in names]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return None
    failed = [line.split()[1] for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].removeprefix("tests/") if failed else f"exit status {run.returncode}"


def by_hand() -> dict[str, str | None]:
    """The killer of each mutant of HAND, two at a time."""
    results_file = WORK / "hand.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    checkouts = queue.SimpleQueue[Path]()
    for name in ("first", "second"):
        shutil.rmtree(WORK / name, ignore_errors=True)
        checkouts.put(copy_to(WORK / name))

    def judge(mutant: tuple[str, str, str]) -> None:
        key = named(mutant)
        if key not in results:
            checkout = checkouts.get()
            results[key] = killer(checkout, *mutant)
            checkouts.put(checkout)
            results_file.write_text(json.dumps(results, indent=1))
            print(f"{key}\n    {results[key] or 'SURVIVED'}", flush=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(judge, HAND))
    return results


def by_mutmut() -> dict[str, str | None]:
    """The killer of each of mutmut's mutants; mutmut itself goes on where it stopped."""
    checkout = WORK / "mutmut"
    if not checkout.exists():
        copy_to(checkout)
    mutmut = [str(Path(sys.executable).with_name("mutmut"))]
    run = {"cwd": checkout, "env": environment(checkout), "check": True}
    subprocess.run([*mutmut, "run", "--max-children", "2"], **run)
    listed = subprocess.run([*mutmut, "results", "--all", "true"], capture_output=True, text=True, **run).stdout
    lines = (WORK / "killers.txt").read_text().splitlines() if (WORK / "killers.txt").exists() else []
    killers = {mutant: test.removeprefix("tests/") for mutant, _, test in (line.partition(" ") for line in lines)}
    fates = dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", listed, re.MULTILINE))
    results: dict[str, str | None] = {}
    for name, fate in fates.items():
        if any(part in name for part in AT_IMPORT):
            continue
        if fate in ("survived", "no tests", "not checked"):
            shown = subprocess.run([*mutmut, "show", name], capture_output=True, text=True, **run).stdout
            change = [line[1:].strip() for line in shown.splitlines() if re.match(r"[-+](?![-+])", line)]
            function = name.partition("__mutmut_")[0].removeprefix("rpg_ref.")
            reason = EQUIVALENT.get((function, change[-1]))
            results[f"{name}: {'  →  '.join(change)}"] = reason and f"equivalent: {reason}"
        else:
            results[name] = killers.get(name, fate)
    return results


def some_by_hand(text: str) -> int:
    """Judge the rows of HAND that contain a text; print their killers."""
    rows = [mutant for mutant in HAND if text in named(mutant)]
    alive = not rows
    with tempfile.TemporaryDirectory() as folder:
        checkout = copy_to(Path(folder) / "only")
        for mutant in rows:
            found = killer(checkout, *mutant)
            print(f"{named(mutant)}\n    {found or 'SURVIVED'}", flush=True)
            alive |= found is None
    print(f"{len(rows)} mutants contain {text!r}")
    return int(alive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every mutant that has no result for these sources yet, and report all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="judge the rows of HAND that contain this text")
    only = parser.parse_args(arguments).only
    if only:
        return some_by_hand(only)
    stamp = WORK / "sources"
    if not stamp.exists() or stamp.read_text() != sources():
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        stamp.write_text(sources())
    results = {**by_hand(), **by_mutmut()}
    report = "\n".join(f"{mutant}\n    {fate or 'SURVIVED'}" for mutant, fate in results.items())
    (WORK / "report.txt").write_text(report + "\n")
    alive = [mutant for mutant, fate in results.items() if fate is None]
    equivalent = sum(fate is not None and fate.startswith("equivalent") for fate in results.values())
    killed = len(results) - len(alive) - equivalent
    print("\n".join(f"SURVIVED {mutant}" for mutant in alive))
    print(
        f"{len(results)} mutants: {killed} killed, {equivalent} equivalent, {len(alive)} alive; {WORK / 'report.txt'}"
    )
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main())
