"""From influence to counts: the mixture of round 0, the rules, and the step that holds budget, gate and bounds."""

from idealmix.allocation.outcome import Allocation, Move
from idealmix.allocation.start import start_counts
from idealmix.allocation.step import allocate

__all__ = ["Allocation", "Move", "allocate", "start_counts"]
