"""the first partitions of the audit trail"""

from alembic import op

revision = "202611240011"
down_revision = "202611240010"


def upgrade() -> None:
    # What the server's service does later on. Here, because a change whose audit row was on its way to the default partition
    # while the first start attached the month's own was refused.
    op.execute("""
        DO $$
        DECLARE
            month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
            partition text;
            bounds text[];
            holder oid;
        BEGIN
            FOR ahead IN 0..2 LOOP
                partition := to_char(month, '"user_actions_y"YYYY"m"MM');
                bounds := ARRAY[to_char(month, 'YYYY-MM-DD'), to_char(month + interval '1 month', 'YYYY-MM-DD')];
                IF to_regclass(partition) IS NULL THEN
                    EXECUTE format('CREATE TABLE %I (LIKE user_actions INCLUDING ALL)', partition);
                    EXECUTE format(
                        'WITH moved AS (DELETE FROM user_actions_default
                                        WHERE occurred_at >= %1$L AND occurred_at < %2$L RETURNING *)
                         INSERT INTO %3$I SELECT * FROM moved',
                        bounds[1] || '+00', bounds[2] || '+00', partition);
                    EXECUTE format('ALTER TABLE user_actions ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                        partition, bounds[1] || '+00', bounds[2] || '+00');
                    -- What the owner's default privileges give must not be a way around the parent.
                    FOR holder IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a
                                  WHERE c.oid = to_regclass(partition) AND a.grantee <> c.relowner LOOP
                        EXECUTE format('REVOKE ALL ON %I FROM %s', partition,
                            CASE WHEN holder = 0 THEN 'PUBLIC' ELSE holder::regrole::text END);
                    END LOOP;
                END IF;
                month := month + interval '1 month';
            END LOOP;
        END $$
    """)


def downgrade() -> None:
    # The service would create them again.
    pass
