"""What was done until each minute, for the page's picture of throughput.

Only a table is made: no row of any other is read, however many there are.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    big = sa.BigInteger
    op.create_table(
        "samples",
        sa.Column("minute", big().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("done", big(), nullable=False),
        sa.Column("failed", big(), nullable=False),
        sa.Column("open", big(), nullable=False),
        sa.PrimaryKeyConstraint("minute", name="pk_samples"),
    )
