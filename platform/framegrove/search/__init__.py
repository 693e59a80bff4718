"""Test-time search: a tree of branches, grown by generators, judged by verifiers, decided by a policy. No torch, no ray.

In reading order: tree (the nouns), ranks (a panel's scores and what is certain of a cut), rounds and budget (how wide
a tree may be), policies (what to do for given scores), protocols (who does it), pool and dispatch (the state machine),
conductor (its asynchronous shell), journal (what survives), outcome (what is left to show).
"""
