#!/usr/bin/env bash
# Prints a PrometheusRule for each file of rules in docker/prometheus: prometheus-rules.sh [--with-traefik] | kubectl apply -n hw -f -
# Alerts on what only the container stack has are left out: without it they would fire for ever. docs/deployment/kubernetes.md says
# what takes their place.
set -euo pipefail
left_out=" BackupTooOld MonitoringDown ReplicaMissing "
case "${1-}" in
  --with-traefik) ;;
  "") left_out+="TraefikDown CertificateExpires " ;;
  *) echo "usage: $0 [--with-traefik]" >&2; exit 2 ;;
esac
for file in $(grep -l '^groups:' "$(dirname "$0")"/../../../../docker/prometheus/*.yml); do
  name=$(basename "$file" .yml)
  printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: hw-server-%s\nspec:\n' "$name"
  # An alert ends where the next one, the next group or the file does.
  awk -v left_out="$left_out" '
    /^  - name: /       { skipped = 0 }
    /^      - alert: /  { skipped = index(left_out, " " $3 " ") }
    !skipped            { print "  " $0 }
  ' "$file"
done
