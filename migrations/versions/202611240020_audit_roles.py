"""partitions of the audit trail come and go by the owner's functions"""

from alembic import op

revision = "202611240020"
down_revision = "202611240011"

CREATE = """
CREATE FUNCTION audit_create_partitions() RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    partition text;
    holder oid;
BEGIN
    FOR ahead IN 0..2 LOOP
        partition := to_char(month, '"user_actions_y"YYYY"m"MM');
        IF to_regclass('public.' || partition) IS NULL THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.user_actions INCLUDING ALL)', partition);
            -- Rows of that month that are in the default partition move to the new one.
            EXECUTE format(
                'WITH moved AS (DELETE FROM public.user_actions_default
                                WHERE occurred_at >= %1$L AND occurred_at < %2$L RETURNING *)
                 INSERT INTO public.%3$I SELECT * FROM moved',
                month || '+00', (month + interval '1 month')::date || '+00', partition);
            EXECUTE format('ALTER TABLE public.user_actions ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                partition, month || '+00', (month + interval '1 month')::date || '+00');
            -- What the owner's default privileges give must not be a way around the parent.
            FOR holder IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a
                          WHERE c.oid = to_regclass('public.' || partition) AND a.grantee <> c.relowner LOOP
                EXECUTE format('REVOKE ALL ON public.%I FROM %s', partition,
                    CASE WHEN holder = 0 THEN 'PUBLIC' ELSE holder::regrole::text END);
            END LOOP;
            RETURN NEXT partition;
        END IF;
        month := month + interval '1 month';
    END LOOP;
END $$
"""
LEAST = "CREATE FUNCTION audit_min_months() RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 1'"
# The months that are kept come from the serving process: the least is the owner's to set, and so is the clock.
DROP = """
CREATE FUNCTION audit_drop_partitions(keep_months integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    least_months integer := public.audit_min_months();
    partition text;
BEGIN
    IF keep_months IS NULL OR keep_months < least_months THEN
        RAISE EXCEPTION 'at least % months of the audit trail are kept', least_months USING
            HINT = 'The owner sets this: CREATE OR REPLACE FUNCTION audit_min_months() RETURNS integer LANGUAGE sql AS ''SELECT ...''';
    END IF;
    FOR partition IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.user_actions'::regclass AND c.relname ~ '^user_actions_y[0-9]{4}m[0-9]{2}$'
          AND c.relname < to_char((now() AT TIME ZONE 'UTC') - make_interval(months => keep_months),
                                  '"user_actions_y"YYYY"m"MM')
        ORDER BY c.relname LOOP
        EXECUTE format('DROP TABLE public.%I', partition);
        RETURN NEXT partition;
    END LOOP;
END $$
"""
FUNCTIONS = ("audit_create_partitions()", "audit_drop_partitions(integer)")


def upgrade() -> None:
    op.execute(CREATE)
    op.execute(LEAST)
    op.execute(DROP)
    for function in FUNCTIONS:
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")


def downgrade() -> None:
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
    op.execute("DROP FUNCTION audit_min_months()")
