"""A Griffe extension: `ssjax.train` in the reference is the function, not the verb of its name.

Griffe puts the submodules of a package over its functions. In Python it is the other way round,
since nothing imports a verb.
"""

from typing import Any

import griffe


class PublicFunctions(griffe.Extension):
    """Keeps the functions of a package's `__init__` where a submodule has the same name."""

    def __init__(self) -> None:
        self._functions: dict[str, griffe.Function] = {}

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Griffe calls this with every function when its module has been read."""
        if func.parent is not None and func.parent.path == "ssjax":
            self._functions[func.name] = func

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Griffe calls this with a package when all of its submodules have been read."""
        if pkg.path == "ssjax":
            pkg.members.update(self._functions)
