"""Test-time search: generators grow a tree of branches, verifiers judge them, a policy decides. No torch, no ray.

In reading order: tree (the nouns), ranks (a panel's scores and what is certain of a cut), rounds and budget (how wide
a tree may be), policies (what to do for given scores), protocols (who does it), pool and dispatch (the state machine),
conductor (its asynchronous shell), journal (what survives), outcome (what is left to show).
"""
