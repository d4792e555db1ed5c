"""What the pages are made with: formulas, sources and plots."""

from docs.kit.drawing import COLOURS, drawn, panels
from docs.kit.sources import shown

__all__ = ["COLOURS", "drawn", "panels", "shown"]
