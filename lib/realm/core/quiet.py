"""Messages of libraries that a reader can do nothing about, silenced by name: among them a real warning was missed.

Imported by ``realm`` itself, so before the libraries that speak.
"""

from __future__ import annotations

import logging
import warnings

# bitsandbytes looks for an optional package of kernels at every start, and says that it is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Bars are text bars everywhere, on purpose; no widget is missing.
warnings.filterwarnings("ignore", message="IProgress not found")
# peft asks transformers by an old name; their pinned versions work together.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
