"""``python -m train``."""

import os
import sys

# Threads that wait by spinning halve the speed of a machine shared with other work; this is read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from train.cli import main

code = main(sys.argv[1:])
if "TORCHELASTIC_RUN_ID" in os.environ:
    # A thread of gloo's that lets go of its last tensor while the interpreter ends aborts the process; all is written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
