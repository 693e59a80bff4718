"""Test-time search: generators grow a tree of branches, verifiers judge them, a policy decides. No torch, no ray.

In reading order: tree (the types, and what a policy is), policies (a file each, and their registry), ranks (a panel's
scores fused, and what is certain of a cut; bounds and points do its arithmetic), rounds and budget (how wide a tree may
be), protocols (who samples and scores), dispatcher (the state machine; queue and workers are its parts), conductor (its
asynchronous shell), journal (what survives), result (what a search leaves).
"""
