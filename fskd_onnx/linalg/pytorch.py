"""PyTorch, an extra: loaded where it is used, in one way."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from fskd_onnx.errors import FskdError

# How often a thread of OpenMP looks for work before it sleeps. By the default of GCC's library,
# 300,000, threads wait actively for one that does not run because the processors have other work:
# gradient steps then take several times as long (``python -m tests.benchmarks.host``).
_LOOKS, _OF_LIBRARY, _OF_STANDARD = "2000", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def load_torch(needed_by: str, otherwise: str) -> ModuleType:
    """Import PyTorch.

    Args:
        needed_by: what needs it, with the verb.
        otherwise: what to do without it.

    Raises:
        FskdError: it is not installed.
    """
    # It is read when PyTorch is imported first; what a user has set stays.
    sets = not {_OF_LIBRARY, _OF_STANDARD} & os.environ.keys() and "torch" not in sys.modules
    if sets:
        os.environ[_OF_LIBRARY] = _LOOKS
    try:
        import torch
    except ImportError as error:
        raise FskdError(
            f"{needed_by} PyTorch, which is not installed; run 'python -m pip install torch' (the "
            f"extra 'torch') or {otherwise}"
        ) from error
    finally:
        if sets:
            del os.environ[_OF_LIBRARY]
    return torch
