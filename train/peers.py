"""Which processes of a run are gone: each keeps a port open for as long as it lives, and the others knock."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

PATIENCE = 5.0
"""Seconds that a machine has to answer a knock; one that is down does not."""
MOMENT = 0.5
"""Seconds in which the system lets go of what a killed process had."""


class Peer(NamedTuple):
    """Where a process is reached.

    Attributes:
        node: the name of its machine.
        address: of its port, as the others reach it.
    """

    node: str
    address: tuple[str, int]


@contextmanager
def reachable() -> Iterator[Peer]:
    """Keep a port open, which the system closes when this process ends, however it ends.

    Yields:
        Where it is, by the way that leads to torchrun's MASTER_ADDR.
    """
    master = os.environ["MASTER_ADDR"]
    with socket.create_connection((master, int(os.environ["MASTER_PORT"])), PATIENCE) as way:
        own = str(way.getsockname()[0])
        # On the first node its name may mean an address that only itself knows; all others have reached it by this one.
        address = master if own == way.getpeername()[0] else own
    with socket.create_server(("", 0), family=way.family, backlog=socket.SOMAXCONN) as port:
        yield Peer(socket.gethostname(), (address, port.getsockname()[1]))


def gone(peers: Sequence[Peer]) -> str:
    """Name those that are gone, machine by machine; one that hangs is there.

    Args:
        peers: every process, in the order of ranks.

    Returns:
        Such as ``rank 2, 3 (on node-1)``, or nothing.
    """
    time.sleep(MOMENT)
    with ThreadPoolExecutor(len(peers)) as pool:
        answers = list(pool.map(_answers, peers))
    nodes: dict[str, list[str]] = {}
    for rank, peer in enumerate(peers):
        if not answers[rank]:
            nodes.setdefault(peer.node, []).append(str(rank))
    return " and ".join(f"rank {', '.join(ranks)} (on {node})" for node, ranks in nodes.items())


def _answers(peer: Peer) -> bool:
    try:
        socket.create_connection(peer.address, PATIENCE).close()
    except OSError:
        return False
    return True
