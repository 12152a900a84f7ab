"""What holds for every test."""

import os

# Small models gain nothing from a second thread, and threads that wait for each other on a busy machine lose a lot.
# Must be set before torch is imported; the engine under test sets its own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
