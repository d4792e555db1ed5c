"""``python -m rpg_ref`` is ``rpg-ref``."""

import sys

from rpg_ref.cli import main

sys.exit(main())
