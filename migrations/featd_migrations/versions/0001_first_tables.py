"""The first tables: images, leases, shards, attempts, settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PATH = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
MOMENT = sa.DateTime(timezone=True)
STATES = "'pending', 'claimed', 'done', 'failed', 'gone'"
KINDS = (
    "'decode.corrupt', 'decode.truncated', 'decode.unsupported', 'decode.too_large', 'decode.timeout',"
    " 'read.io', 'read.denied', 'read.missing', 'read.changed', 'extract.error', 'extract.not_finite',"
    " 'crash', 'killed'"
)


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", BIG_ID, sa.Identity(), nullable=False),
        sa.Column("root", PATH, nullable=False),
        sa.Column("path", PATH, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("not_before", MOMENT, nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=True),
        sa.Column("suspect", sa.Boolean(), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("kills", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("error_kind", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("shard_id", sa.BigInteger(), nullable=True),
        sa.Column("shard_row", sa.Integer(), nullable=True),
        sa.Column("shard_version", sa.Integer(), nullable=True),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.CheckConstraint(f"state IN ({STATES})", name="ck_images_state"),
        sa.CheckConstraint(f"error_kind IN ({KINDS})", name="ck_images_error_kind"),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("root", "path", name="uq_images_root_path"),
        sqlite_autoincrement=True,
    )
    _partial_index("ix_images_claim", "images", ["root", "priority", "not_before", "id"], "state = 'pending'")
    _partial_index("ix_images_lease_id", "images", ["lease_id"], "state = 'claimed'")
    _partial_index("ix_images_failed", "images", ["id", "error_kind"], "state = 'failed'")
    op.create_table(
        "leases",
        sa.Column("id", BIG_ID, sa.Identity(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("failed", sa.BigInteger(), nullable=False),
        sa.Column("settles", sa.BigInteger(), nullable=False),
        sa.Column("shares", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sqlite_autoincrement=True,
    )
    _partial_index("ix_leases_open", "leases", ["host"], "ended_at IS NULL")
    op.create_table(
        "shards",
        sa.Column("id", BIG_ID, sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("live_rows", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.Text(), nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shards"),
        sa.UniqueConstraint("name", name="uq_shards_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "attempts",
        sa.Column("id", BIG_ID, sa.Identity(), nullable=False),
        sa.Column("image_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.CheckConstraint(f"kind IN ({KINDS})", name="ck_attempts_kind"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_attempts_image_id", "attempts", ["image_id"])
    op.create_table(
        "settings",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Every image's row is updated at least twice: vacuum long before a fifth of a big table is dead.
        op.execute(
            "ALTER TABLE images SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02,"
            " autovacuum_analyze_scale_factor = 0.02)"
        )
        op.execute("ALTER TABLE settings SET (fillfactor = 50, autovacuum_vacuum_threshold = 1000)")


def _partial_index(name: str, table: str, columns: list[str], predicate: str) -> None:
    where = sa.text(predicate)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
