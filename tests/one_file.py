"""One file of an installed package, without what the package imports on its way."""

import importlib.util
import pathlib
import sys


def module(name, site=None):
    """The module `name`, looked for below `site` or where Python looks."""
    roots = [site] if site else [pathlib.Path(p) for p in sys.path if p]
    path = next(p for root in roots if (p := root / (name.replace(".", "/") + ".py")).exists())
    spec = importlib.util.spec_from_file_location(name.replace(".", "_"), path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
