"""FLOPs of a model that is not ours to count in closed form: PyTorch counts them while it runs once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Which kernel attention takes is a setting of the process. Two who count at the same time would each put back what
# they have found, and the later one leaves it as the other had set it.
_ONE_AT_A_TIME = threading.Lock()


def counted_flops(run: Callable[[], Any]) -> int:
    """FLOPs of all matrix products and convolutions of what ``run`` does; a multiply-add counts as two."""
    # Of attention in one kernel the counter knows only some devices' kernels; in plain products it knows all of it.
    with _ONE_AT_A_TIME, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
