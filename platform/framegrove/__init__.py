"""Framegrove: train pyramidal video generators and search them at test time, on a Ray cluster."""

__version__ = "0.2.0"
