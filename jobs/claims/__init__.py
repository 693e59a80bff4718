"""The papers' claims, each measured by one command of jobs.evidence; a claim is a module's ``CLAIM`` or ``CLAIMS``."""
