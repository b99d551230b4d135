#!/usr/bin/env bash
# Runs once, on an empty volume: the role that owns and migrates the application's database, the one that serves from it,
# Keycloak's own database, a role for Grafana that can only read (what, a migration says).
set -euo pipefail
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set hw="$HW_DB_PASSWORD" --set owner="$HW_DB_OWNER_PASSWORD" --set keycloak="$KEYCLOAK_DB_PASSWORD" --set grafana="$GRAFANA_DB_PASSWORD" <<'SQL'
CREATE ROLE hw_owner LOGIN PASSWORD :'owner';
CREATE ROLE hw LOGIN PASSWORD :'hw';
CREATE ROLE keycloak LOGIN PASSWORD :'keycloak';
CREATE ROLE grafana LOGIN PASSWORD :'grafana' CONNECTION LIMIT 10;
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '15s';
CREATE DATABASE keycloak OWNER keycloak;
REVOKE ALL ON DATABASE keycloak FROM PUBLIC;
ALTER DATABASE hw_db OWNER TO hw_owner;
REVOKE ALL ON DATABASE hw_db FROM PUBLIC;
GRANT CONNECT ON DATABASE hw_db TO hw, grafana;
ALTER SCHEMA public OWNER TO hw_owner;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO hw, grafana;
SQL
