"""What does not fit into memory is done again with fewer samples per run.

Libraries say in many ways that an allocation has failed; all of them are one case here. The work
begins anew, since no part of it is known to be whole, and the samples and models that it works on
are read already.
"""

from __future__ import annotations

import errno
import gc
import logging
import re
from collections.abc import Callable
from typing import TypeVar

from fskd_onnx.errors import FskdError, OutOfMemoryError
from fskd_onnx.runtime.providers import release_memory
from fskd_onnx.samples.batches import limited_batches

logger = logging.getLogger(__name__)

T = TypeVar("T")

# ONNX Runtime's arena, the allocator of C++, the libraries of CUDA, PyTorch.
_SAID = re.compile(
    r"failed to allocate memory|bad[_ ]alloc|out of memory|ALLOC(?:ATION)?_FAILED|"
    r"cannot allocate memory",
    re.IGNORECASE,
)


def with_enough_memory(work: Callable[[], T], batch_size: int | None) -> T:
    """Do work; where it does not fit into memory, do it again with half as many samples per run.

    Args:
        work: may be called several times.
        batch_size: how many samples run together by the wish of the user, which stands; None leaves
            that to us.

    Returns:
        What the work returns.

    Raises:
        OutOfMemoryError: it does not fit with one sample per run, or with as many as the user or a
            model states.
    """
    first = most = None
    while True:
        with limited_batches(most) as limit:
            try:
                done = work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                logger.debug("out of memory", exc_info=error)
                size = limit.largest or most or 0
                if size <= 1:
                    raise OutOfMemoryError(_no_remedy(error, batch_size)) from error
            else:
                if first is not None:
                    logger.warning(
                        "the machine has not enough memory to run %d samples at once, so the work "
                        "began anew, with %d at most (--batch-size sets how many)",
                        first,
                        most,
                    )
                return done
        first, most = first or size, size // 2
        logger.info("out of memory: samples that run at once are %d at most", most)
        gc.collect()  # what the error has kept alive
        release_memory()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, is that of a failed allocation."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    # Our own sentences hold names of files, which may say anything.
    if not isinstance(error, FskdError) and _SAID.search(str(error)):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _no_remedy(error: BaseException, batch_size: int | None) -> str:
    network = error.network if isinstance(error, OutOfMemoryError) else ""
    prefix = f"{network}: " if network else ""
    if batch_size is not None and batch_size > 1:
        return (
            f"{prefix}the machine has not enough memory to run {batch_size} samples at once; give "
            "a smaller --batch-size"
        )
    return (
        f"{prefix}the machine has not enough memory, however few samples run at once; give fewer "
        "samples (--max-samples) or, to fit and to match, a --memory-limit"
    )
