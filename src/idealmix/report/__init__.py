"""The HTML report of a run: `build` makes the page from a result, `write` puts it into the run folder."""

from idealmix.report.page import build, write

__all__ = ["build", "write"]
