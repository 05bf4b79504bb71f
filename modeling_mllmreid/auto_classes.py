"""Registration with transformers' auto classes, as soon as transformers itself is imported.

`AutoModel` has to know the models after `import modeling_mllmreid` alone. The classes need torch and transformers,
which take seconds to import, and transformers has no table where a package can enter its classes by name. Where
transformers is not imported yet, the registration waits until it is.
"""

import contextlib
import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

FILES, MODELS = f"{__package__}.model.", f"{__package__}.model.registered"


def register_auto_classes() -> None:
    """Registers the models now, or when transformers is imported."""
    if "transformers" in sys.modules:
        _import_models()
    else:
        sys.meta_path.insert(0, _AfterTransformers())


class _AfterTransformers(importlib.abc.MetaPathFinder):
    """Imports the models after the first import of transformers, then leaves the path.

    If a file of the model imports transformers, the models wait for the end of that file: they need the whole of it.
    """

    def __init__(self) -> None:
        self.running = 0  # imports of transformers and of files of the model, one inside another

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module with a loader that imports the models after it; a mere search changes nothing."""
        if fullname != "transformers" and not fullname.startswith(FILES):
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTransformers)]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            self.running += 1
            try:
                loader.exec_module(module)
            finally:
                self.running -= 1
            if not self.running and "transformers" in sys.modules:
                sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTransformers)]
                _import_models()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _import_models() -> None:
    """Imports the models. If they refuse the versions, transformers itself works, and they report it at their use."""
    with contextlib.suppress(ImportError):
        importlib.import_module(MODELS)
