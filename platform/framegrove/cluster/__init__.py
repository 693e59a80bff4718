"""Ray, and nothing but Ray: connecting to a cluster, finding room on it, replacing actors that die.

The only room of platform/ that imports ray.
"""
