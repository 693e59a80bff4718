"""What can go wrong between a job and its cluster, each as one sentence for the user."""

from __future__ import annotations

from framegrove.errors import UserError


class ClusterError(UserError):
    """The cluster cannot do what a job asks of it."""


class NoCluster(ClusterError):
    """There is no Ray cluster at the given address, or none can be started here."""


class NoRoom(ClusterError):
    """The cluster has not, or not now, the resources a job needs."""


class ActorLost(ClusterError):
    """An actor died during a call and has been replaced: the call can be made again, on any actor."""


class CrashLoop(ClusterError):
    """An actor died several times in a row without finishing anything: calling it again is no use."""
