"""For all tests: one thread a process, since pytest-xdist already has a process a core, and no deadlines.

Small convolutions are ten times slower where the threads of several processes wait for one another.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

settings.register_profile("remapkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remapkit")
