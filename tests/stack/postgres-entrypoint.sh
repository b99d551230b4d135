#!/usr/bin/env bash
# What the official image's entrypoint does, as far as the shipped Compose file uses it.
set -euo pipefail
export PATH=/opt/postgres/bin:$PATH
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
chown postgres "$PGDATA" /run/postgresql && chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  POSTGRES_PASSWORD="${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:-/dev/null}")}"
  printf '%s' "$POSTGRES_PASSWORD" > /tmp/password && chown postgres /tmp/password
  as_postgres initdb -U "$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password -E UTF8 >/dev/null
  rm /tmp/password
  as_postgres sh -c 'echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"'
  export PGPASSWORD="$POSTGRES_PASSWORD" PGHOST=/run/postgresql
  as_postgres pg_ctl -w -o "-c listen_addresses='' -k /run/postgresql" start >/dev/null
  psql -U "$POSTGRES_USER" -d postgres -c "CREATE DATABASE $POSTGRES_DB"
  for script in /docker-entrypoint-initdb.d/*.sh; do bash "$script"; done
  as_postgres pg_ctl -m fast -w stop >/dev/null
fi
exec setpriv --reuid=postgres --regid=postgres --clear-groups postgres -c listen_addresses='*' -k /run/postgresql
