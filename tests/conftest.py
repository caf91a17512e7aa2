"""What holds for all tests: those that run side by side get one thread of BLAS each."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # NumPy, SciPy and PyTorch read these as they load, which they have not yet; and so do the
    # processes that tests start.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
