"""How every page is rendered: names and texts of a run are escaped, and what a template misses is an error.

Flows in: a template's name, the package that holds it, its views. Flows out: HTML. The report's own templates (the head, the style
sheet) are found from every package.
"""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

_REPORT = "idealmix.report"


def render(template: str, package: str = _REPORT, **views: Any) -> str:
    """The page."""
    packages = dict.fromkeys((package, _REPORT))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "") for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**views)
