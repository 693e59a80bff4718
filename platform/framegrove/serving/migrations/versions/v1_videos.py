"""One table of videos, as it was before schemas had versions: a database of that time has it already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("videos"):
        return
    op.create_table(
        "videos",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("request", sa.String, nullable=False),
        sa.Column("image", sa.LargeBinary),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("seconds", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("completed_at", sa.Float),
        sa.Column("error_code", sa.String),
        sa.Column("error", sa.String),
        sa.Column("report", sa.String),
    )
