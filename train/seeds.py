"""One run seed, many independent streams: each draw is named, so no random state needs to be carried along."""

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """Return a seed for the stream of that name: the same on every machine, unrelated to any other name's."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:6])
