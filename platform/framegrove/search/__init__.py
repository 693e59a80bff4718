"""Test-time search: generators grow a tree of branches, verifiers judge them, a policy decides. No torch, no ray.

In reading order: tree (the types, and what a policy is), policies (a file each, and their registry), fusion (a panel's
scores made one number, and a path's), ranks and cohorts (what is certain of a cut, by fused ranks and by path scores;
bounds and points do the arithmetic of ranks), prices, rounds and budget (what works cost, and how wide a tree may be),
protocols (who samples and scores), dispatcher (the state machine; commands, queue, attempts, holdings, panel and
workers are its parts), conductor (its asynchronous shell), sharing (workers that several searches have in common),
journal (what survives), snapshot (what a search looks like while it runs), result (what it leaves).
"""
