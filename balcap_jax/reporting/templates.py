"""Pages are jinja templates, which lie beside the code that fills them."""

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@functools.cache
def template(package: str, name: str) -> Template:
    """The template of that file name in a package; what it shows is escaped, and a name that it is
    not given is an error.
    """
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)
