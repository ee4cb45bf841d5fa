"""Alembic's entry point: hubqueue passes the open connection, under its migration lock."""

from alembic import context

from hubqueue.outbox.database.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
