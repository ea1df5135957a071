"""Two tests run at a time (pytest-xdist), each on a core of its own."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported, which asks for the number of threads once
    os.environ.setdefault("OMP_NUM_THREADS", "1")
