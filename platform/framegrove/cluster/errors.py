"""What can go wrong between a job and its cluster."""

from __future__ import annotations

from framegrove.errors import UserError


class NoCluster(UserError):
    """There is no Ray cluster at the given address, or none can be started here."""


class NoRoom(UserError):
    """The cluster does not have the resources that a job needs, or not now."""


class ActorLost(Exception):
    """An actor died during a call and has been replaced: the call can be made again, on any actor."""


class CrashLoop(Exception):
    """An actor died several times in a row without finishing anything: calling it again is of no use."""
