"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE, and one torch thread in each test process.

- default: the same examples every time, so that a test never fails by luck.
- seeded: fresh examples; choose them with ``--hypothesis-seed``.
- nightly: 5,000 fresh examples of each property. What it finds is pinned with ``@example``.
"""

import os

import torch
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=25, derandomize=True, **COMMON)
settings.register_profile("seeded", max_examples=25, database=None, **COMMON)
settings.register_profile("nightly", max_examples=int(os.environ.get("EXAMPLES") or 5000), **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)


def pytest_runtest_logreport(report) -> None:
    """Under mutmut, which does not keep it: write down which test killed the mutant."""
    mutant, killers = os.environ.get("MUTANT_UNDER_TEST", ""), os.environ.get("KILLERS")
    if killers and report.failed and "__mutmut_" in mutant:
        with open(killers, "a") as file:
            file.write(f"{mutant} {report.nodeid}\n")
