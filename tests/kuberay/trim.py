"""Makes pods.json: Kubernetes' schemas of what KubeRay's manifests hold, without the rest and without descriptions.

    pip install kubernetes-validate==1.37.0      # 108 MB, the schemas of Kubernetes 1.25 to 1.37, Apache-2.0
    python tests/kuberay/trim.py

In KubeRay's own schemas of its resources a pod template is written out in full, 8,000 lines at each place. It is
Kubernetes' own, and here it is once. "Strict" means that fields which Kubernetes does not know are refused.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

VERSION = "1.34.0"
WANTED = ("EnvFromSource", "EnvVar", "EnvVarSource", "PersistentVolumeClaim", "PodTemplateSpec", "ResourceRequirements")
WANTED += ("SecurityContext", "Service", "VolumeMount")
CORE = "io.k8s.api.core.v1."


def references(part: Any) -> set[str]:
    """The names of all definitions that a part of a schema refers to."""
    if isinstance(part, list):
        return set().union(*map(references, part))
    if not isinstance(part, dict):
        return set()
    own = {part["$ref"].rpartition("/")[2]} if isinstance(part.get("$ref"), str) else set()
    return own.union(*map(references, part.values()))


def without_descriptions(part: Any) -> Any:
    """The same without the texts; a property that is called "description" stays."""
    if isinstance(part, list):
        return [without_descriptions(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        name: without_descriptions(value)
        for name, value in part.items()
        if name != "description" or not isinstance(value, str)
    }


def main() -> None:
    """Write pods.json beside this file."""
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{VERSION}-local-strict"
    known = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    waiting, kept = [CORE + name for name in WANTED], {}
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = without_descriptions(known[name])
            waiting += references(known[name])
    text = json.dumps(dict(sorted(kept.items())), indent=1) + "\n"
    Path(__file__).with_name("pods.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
