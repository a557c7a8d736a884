"""Whether a package of real parts is installed, and what is needed to read it."""

import importlib.metadata
import importlib.util
from collections.abc import Sequence


def absent_reason(package: str, version: str, *, readers: Sequence[str]) -> str | None:
    """Why the parts of a package cannot be read here, None where they can.

    Args:
      readers: the modules that read them, of the extras test and real-parts.
    """
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"needs pip install --no-deps {package}=={version}"
    if found != version:
        return f"has {package} {found}, needs {version}"
    absent = [name for name in readers if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(absent)}: the extras test and real-parts" if absent else None
