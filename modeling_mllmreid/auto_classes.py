"""Registration with transformers' auto classes, as soon as transformers itself is imported.

`AutoModel` has to know the models after `import modeling_mllmreid` alone. The classes need torch and transformers,
which take seconds to import, and transformers has no table where a package can enter its classes by name. Where
transformers is not imported yet, the registration waits until it is.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODELS = f"{__package__}.model"


def register_auto_classes() -> None:
    """Registers the models now, or when transformers is imported."""
    if "transformers" in sys.modules:
        importlib.import_module(MODELS)
    else:
        sys.meta_path.insert(0, _AfterTransformers())


class _AfterTransformers(importlib.abc.MetaPathFinder):
    """Imports the models after the first import of transformers, then leaves the path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader imports the models after the module."""
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            loader.exec_module(module)
            # With a version that the models refuse, transformers itself works; the models report it when they are used.
            with contextlib.suppress(ImportError):
                importlib.import_module(MODELS)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
