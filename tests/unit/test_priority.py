"""Who goes first where processes share a machine."""

import subprocess
import sys
from typing import Any, get_args

import cloudpickle
import pytest

from actors import verifier_kinds
from framegrove.config.verifier import Kind, VerifierConfig

SCRIPT = """
import os, subprocess, sys, threading
from framegrove.cluster.priority import give_way

ready, going = threading.Event(), threading.Event()
found = []

def wait():
    ready.set()
    going.wait()
    found.append(os.getpriority(os.PRIO_PROCESS, 0))

early = threading.Thread(target=wait)
early.start()
ready.wait()
give_way()
going.set()
early.join()
child = subprocess.run([sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"],
                       capture_output=True, text=True, check=True)
print(os.getpriority(os.PRIO_PROCESS, 0), *found, int(child.stdout))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_a_process_gives_way_with_all_its_threads_and_children() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["19", "19", "19"]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_verifiers_of_all_kinds_give_way_in_processes_of_their_own(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(verifier_kinds, "give_way", lambda: given.append(kind))
    sections: dict[str, Any] = {
        "callable": {"function": "os.path:join"},
        "frames": {"frames": {"model": "a"}},
        "latent": {"latent": {"model": "a"}},
        "endpoint": {"endpoint": {"url": "http://a/v1", "model": "b"}},
        "reward": {"score": {"kind": "reward", "outputs": {"a": {}}}},
    }
    plain = verifier_kinds.verifier_class(kind)
    verifier = verifier_kinds.giving_way(plain)(VerifierConfig.model_validate({"kind": kind, **sections.get(kind, {})}))
    assert given == [kind]
    assert isinstance(verifier, plain)
    assert cloudpickle.loads(cloudpickle.dumps(type(verifier))).__name__ == plain.__name__
