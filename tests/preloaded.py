"""What the process that the workers of workers.py are forked from has imported.

The libraries import parts of themselves only when a model, an optimizer or an engine is made: seconds for each worker.
"""

from __future__ import annotations

import atexit
import gc
from importlib import import_module

from tests.tiny import tiny_pipeline

for name in (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "framegrove.training.engine",
    "framegrove.training.setup",
    "torch.utils.cpp_extension",
):
    import_module(name)
tiny_pipeline()
gc.collect()
gc.freeze()  # what is there by now need not be looked through again and again
atexit.register(gc.unfreeze)  # or libraries complain of what is left at the end
