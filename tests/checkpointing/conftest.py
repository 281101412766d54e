"""What inductor generates on a CPU is scalar here: its header of vectors takes half of the C++ compiler's time."""

from __future__ import annotations

import torch._inductor.config

torch._inductor.config.cpp.simdlen = 1  # a kernel compiles in 0.6 s, with AVX-512 in 1.1; no test is about vectors
