"""Owners, metadata, prices and idempotency keys; several files for each video, and those that belong to none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    for column in (
        sa.Column("owner", sa.String, nullable=False, server_default=""),
        sa.Column("user", sa.String),
        sa.Column("metadata", sa.String, nullable=False, server_default="{}"),
        sa.Column("remixed_from", sa.String),
        sa.Column("extends", sa.String),
        sa.Column("started_at", sa.Float),
        sa.Column("expires_at", sa.Float),
        sa.Column("price", sa.Float, nullable=False, server_default="0"),
        sa.Column("idempotency_key", sa.String),
        sa.Column("idempotency_digest", sa.String),
        sa.Column("files", sa.String),
        sa.Column("size", sa.BigInteger, nullable=False, server_default="0"),
    ):
        op.add_column("videos", column)
    op.create_index("ix_videos_owner", "videos", ["owner", "number"])
    op.create_index("ix_videos_idempotency", "videos", ["owner", "idempotency_key"], unique=True)
    op.create_table("loose_files", sa.Column("id", sa.String, primary_key=True))
