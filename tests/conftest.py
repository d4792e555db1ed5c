"""Hypothesis profiles (dev, ci, nightly; chosen by HYPOTHESIS_PROFILE) and one thread a test process."""

import os

import torch
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("dev", max_examples=25, **COMMON)
settings.register_profile("ci", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("nightly", max_examples=int(os.environ.get("EXAMPLES") or 5000), **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

torch.set_num_threads(1)


def pytest_runtest_logreport(report) -> None:
    """Under mutmut, which does not keep it: write down which test killed the mutant."""
    mutant, killers = os.environ.get("MUTANT_UNDER_TEST", ""), os.environ.get("KILLERS")
    if killers and report.failed and "__mutmut_" in mutant:
        with open(killers, "a") as file:
            file.write(f"{mutant} {report.nodeid}\n")
