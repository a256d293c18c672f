"""What notebooks must not take from the machine around them: another interpreter, another job's processes."""

from __future__ import annotations

import os
import sys
from typing import Any

# What a launcher of several processes tells each of them. A notebook is never one of them: where these are set, they
# leaked out of a job's shell, and training would wait for processes that nobody starts.
GROUP = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def leave_group() -> None:
    """Take a launcher's variables out of this process's environment, and say so."""
    if found := [name for name in GROUP if os.environ.pop(name, None) is not None]:
        print(f"note: {', '.join(found)} in the environment belongs to another job and is passed over here", flush=True)


def own_kernel() -> type[Any]:
    """A kernel manager whose ``python3`` is this interpreter, whatever JUPYTER_PATH has by that name."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class OwnKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=words, display_name="Python 3", language="python")

    return OwnKernel
