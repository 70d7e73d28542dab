"""IDEAL: the rounds of this project, as a method among others.

Ming et al., arXiv 2505.12762, with the corrections and additions of docs/method.md. Flows in: nothing but the request
for the rounds. Flows out: the row counts that they choose. The loop itself is `rounds.loop`, with `allocation`, `decision`
and `influence_stage`; it is asked as one request so that a comparison and `idealmix run` cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from idealmix.methods.protocol import Problem, Rounds, Search


@dataclass(frozen=True)
class Ideal:
    """The rounds as ``allocation`` and ``influence`` configure them, at a held budget."""

    def search(self, problem: Problem) -> Search:
        """The rounds; their exact counts."""
        counts, _ = yield Rounds()
        return [counts]


@dataclass(frozen=True)
class IdealPaper:
    """The paper's rule to the letter (``method: ideal-paper``). Its volume is free: the shares that it ends with are
    trained at the comparison's budget."""

    def search(self, problem: Problem) -> Search:
        """The rounds; their shares."""
        _, shares = yield Rounds(paper=True)
        return [shares]
