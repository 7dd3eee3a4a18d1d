"""What an instance needs to live for years: ctime, seats, retired shards, the feed.

Columns without a value cost nothing, however many rows there are. The nonce that catalog and store share is a row of
`settings`, which the next start writes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("images", sa.Column("ctime_ns", sa.BigInteger(), nullable=True))
    op.add_column("leases", sa.Column("seat", sa.Text(), nullable=True))
    op.add_column("shards", sa.Column("retired", MOMENT, nullable=True))
    op.create_table(
        "feed",
        sa.Column("id", BIG_ID, sa.Identity(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("image_ids", sa.JSON(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feed"),
        sa.UniqueConstraint("seq", name="uq_feed_seq"),
        sqlite_autoincrement=True,
    )
    unnumbered = sa.text("seq IS NULL")
    op.create_index(
        "ix_feed_unnumbered", "feed", ["id"], sqlite_where=unnumbered, postgresql_where=unnumbered
    )
