"""Requests for several videos, and clips that videos go on from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    op.add_column("videos", sa.Column("batch", sa.String))
    op.add_column("videos", sa.Column("clip", sa.String))
