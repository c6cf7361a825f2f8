"""HTML pages from the Jinja templates in motionanim/assets. All values are escaped."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("motionanim", "assets"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Fill in a template, such as "report/page.html"."""
    return _ENVIRONMENT.get_template(template).render(values)
