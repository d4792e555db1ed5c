"""`python -m proofs [NAME ...]`: print one line a claim; exit 0 only if every line is proved.

With names the statements and what they hold for are printed too, in LaTeX. `python -m proofs --ledger` prints both of
every claim as TOML, for `rpg_ref/statements.toml`.

Source: `proofs.certificate`.
"""

import sys
from difflib import get_close_matches

from proofs import CLAIMS
from proofs.certificate import check


def ledger() -> str:
    """Return every claim's headline and quantifiers as TOML. Source: ours."""
    lines = ["# Written by `make ledger` from proofs/: the statements are printed from the equations that are proved."]
    for claim in CLAIMS.values():
        lines += ["", f"[{claim.id}]", f"statement = '''{claim.statement}'''", f"[{claim.id}.quantifiers]"]
        lines += [f"'{kind}' = '{text}'" for kind, text in claim.quantifiers.items()]
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Check the named claims, or all of them, and return the exit code: 0 proved, 1 failed, 2 unknown name.

    Source: `proofs.certificate.check`.
    """
    if names == ["--ledger"]:
        print(ledger())
        return 0
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
            for statement in claim.statements:
                print(f"  {statement}")
            for kind, text in claim.quantifiers.items():
                print(f"  {kind}: {text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
