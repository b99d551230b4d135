"""indexes for every filter of the audit trail"""

from alembic import op

revision = "202611240001"
down_revision = "202611230002"


def upgrade() -> None:
    op.execute("DROP INDEX user_actions_user")
    op.execute("CREATE INDEX user_actions_user_id ON user_actions (user_id)")
    op.execute("CREATE INDEX user_actions_username ON user_actions (username)")
    op.execute("CREATE INDEX user_actions_action ON user_actions (action)")
    # By bytes: what is below a resource is a range of them.
    op.execute('CREATE INDEX user_actions_resource ON user_actions (resource COLLATE "C")')
    # Rare, looked for often, and without cost for the others.
    op.execute("CREATE INDEX user_actions_refused ON user_actions (occurred_at, id) WHERE outcome <> 'success'")


def downgrade() -> None:
    for name in ("user_id", "username", "action", "resource", "refused"):
        op.execute(f"DROP INDEX user_actions_{name}")
    op.execute("CREATE INDEX user_actions_user ON user_actions (user_id, id DESC)")
