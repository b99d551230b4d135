#!/usr/bin/env bash
# Prints a PrometheusRule for each file of rules in docker/prometheus: prometheus-rules.sh | kubectl apply -n hw -f -
set -euo pipefail
for file in $(grep -l '^groups:' "$(dirname "$0")"/../../../../docker/prometheus/*.yml); do
  name=$(basename "$file" .yml)
  printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: hw-server-%s\nspec:\n' "$name"
  sed 's/^/  /' "$file"
done
