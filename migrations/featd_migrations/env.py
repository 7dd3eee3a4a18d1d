"""Alembic's entry: runs on the connection that featd hands over, in featd's transaction and under its lock."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("run migrations with `featd db upgrade`: it holds the lock that they need")

context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite")
context.run_migrations()
