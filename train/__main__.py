"""``python -m train``."""

import os
import sys

# Threads that wait by spinning halve the speed of a machine shared with other work; this is read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from train.cli import main

sys.exit(main(sys.argv[1:]))
