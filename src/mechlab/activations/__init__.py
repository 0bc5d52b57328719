"""Activations: capture in memory, stores on disk.

The room and the function share a name: ``ml.activations(subject, texts, sites)`` calls
``mechlab.activations.capture.activations``, so this module can be called.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _CallableRoom(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from mechlab.activations.capture import activations

        return activations(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
