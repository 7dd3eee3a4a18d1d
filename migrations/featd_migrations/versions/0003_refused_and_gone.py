"""A kind of failure for files that the catalog cannot hold: `catalog.refused`; and an index of images that are gone,
by their content.

No row changes. All are read once, for the index and for PostgreSQL's check. On SQLite the constraints only get another
text in its schema, as its documentation of ALTER TABLE describes: a copy of the table would take minutes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CHECKED = {"images": "error_kind", "attempts": "kind"}
LAST = "'killed'"
NEW = "'catalog.refused'"
KINDS = (
    "'decode.corrupt', 'decode.truncated', 'decode.unsupported', 'decode.too_large', 'decode.timeout',"
    " 'read.io', 'read.denied', 'read.missing', 'read.changed', 'extract.error', 'extract.not_finite',"
    f" 'crash', {LAST}, {NEW}"
)


def upgrade() -> None:
    gone = sa.text("state = 'gone'")
    op.create_index("ix_images_gone", "images", ["content"], sqlite_where=gone, postgresql_where=gone)
    conn = op.get_bind()
    if conn.dialect.name == "sqlite":
        _edit_schema(conn)
        return
    for table, column in CHECKED.items():
        name = f"ck_{table}_{column}"
        op.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({column} IN ({KINDS}))"
        )


def _edit_schema(conn: sa.Connection) -> None:
    version = conn.exec_driver_sql("PRAGMA schema_version").scalar_one()
    conn.exec_driver_sql("PRAGMA writable_schema = ON")
    for table in CHECKED:
        edited = conn.execute(
            sa.text(
                "UPDATE sqlite_master SET sql = replace(sql, :last, :both)"
                " WHERE type = 'table' AND name = :table AND instr(sql, :last) > 0"
            ),
            {"table": table, "last": f"{LAST})", "both": f"{LAST}, {NEW})"},
        )
        if edited.rowcount != 1:
            raise RuntimeError(f"the table {table} has no list of kinds that ends with {LAST}")
    conn.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    conn.exec_driver_sql("PRAGMA writable_schema = RESET")
