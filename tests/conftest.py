"""What holds for all tests: one thread of BLAS each where they run side by side, and no deadline.

How long an example takes depends on what else the machine does; no test fails for that.
"""

import os

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    # NumPy, SciPy and PyTorch read these as they load, which they have not yet; and so do the
    # processes that tests start.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
