"""`python -m proofs [NAME ...]`: print one line a claim; exit 0 only if every line is proved.

Source: `proofs.certificate`.
"""

import sys
from difflib import get_close_matches

from proofs import CLAIMS
from proofs.certificate import check


def main(names: list[str]) -> int:
    """Check the named claims, or all of them, and return the exit code: 0 proved, 1 failed, 2 unknown name.

    Source: `proofs.certificate.check`.
    """
    for name in names:
        if name not in CLAIMS:
            nearest = get_close_matches(name, CLAIMS, cutoff=0)
            print(f"No claim is called {name!r}; the nearest names are {', '.join(nearest)}.", file=sys.stderr)
            return 2
    claims = [CLAIMS[name] for name in names or CLAIMS]
    width = max(len(claim.id) for claim in claims)
    failed = False
    for claim in claims:
        verdict = check(claim)
        failed |= bool(verdict.failures)
        print(f"{claim.id:<{width}}  {verdict!s:<30}  {claim.source}", flush=True)
        if names:
            print(f"  {claim.statement}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
