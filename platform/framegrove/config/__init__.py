"""Typed configuration. Imports neither torch nor ray, so that ``--help`` is instant."""
