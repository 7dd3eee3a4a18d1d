"""The view `featd_backlog`: how many images there are to do, for a scaler that knows nothing of featd's tables.

Only a view is made: no row of any table is read.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Due within a minute: a worker takes about as long to start.
SOON = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+60 seconds')",
    "postgresql": "now() + interval '60 seconds'",
}
# Counted up to 100,000, so that a scaler may ask every few seconds however many images wait.
LIMIT = 100_000
VIEW = """
CREATE VIEW featd_backlog (images) AS SELECT count(*) FROM (
    SELECT 1 FROM images WHERE state = 'claimed'
    UNION ALL
    SELECT 1 FROM images WHERE state = 'pending' AND not_before <= {soon}
        AND NOT EXISTS (SELECT 1 FROM settings WHERE name = 'paused')
    LIMIT {limit}
) AS open_images
"""


def upgrade() -> None:
    conn = op.get_bind()
    conn.exec_driver_sql(VIEW.format(soon=SOON[conn.dialect.name], limit=LIMIT))
