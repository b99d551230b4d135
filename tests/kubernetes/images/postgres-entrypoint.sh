#!/usr/bin/env bash
# What the official image's entrypoint does for a user other than root, as far as the local overlay uses it.
set -euo pipefail
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb -U "$POSTGRES_USER" --auth-local=trust --auth-host=scram-sha-256 --pwfile="$POSTGRES_PASSWORD_FILE" -E UTF8 >/dev/null
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  export PGHOST=/run/postgresql
  pg_ctl -w -o "-c listen_addresses='' -k $PGHOST" start >/dev/null
  psql -U "$POSTGRES_USER" -d postgres -c "CREATE DATABASE $POSTGRES_DB"
  for script in /docker-entrypoint-initdb.d/*.sh; do bash "$script"; done
  pg_ctl -m fast -w stop >/dev/null
fi
exec postgres -c listen_addresses='*' -k /run/postgresql
