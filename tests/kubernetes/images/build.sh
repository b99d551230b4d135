#!/usr/bin/env bash
# Makes the images of the local overlay and saves them in one archive. As root, on Debian. The argument is the folder that
# takes it.
set -euo pipefail
work="${1:?the folder for the images}"
cd "$(dirname "$0")"
export PATH=/usr/bin:$PATH DOCKER_BUILDKIT=1
packages=()
for pair in dockerd:docker.io debootstrap:debootstrap; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if [ ${#packages[@]} -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi
mkdir -p "$work"
if ! docker info >/dev/null 2>&1; then
  dockerd >"$work/dockerd.log" 2>&1 </dev/null &
  trap 'kill %1; wait' EXIT
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
fi
if ! docker image inspect hw-test/base >/dev/null 2>&1; then
  rm -rf "$work/base"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates trixie "$work/base" >"$work/debootstrap.log"
  # The programs inside reach the package registries as this machine does.
  cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
  tar -C "$work/base" -c . | docker import -c "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" - hw-test/base >/dev/null
  rm -rf "$work/base"
fi
build() { docker build -q --network host "$@" >/dev/null; }
build --build-arg PYTHON_IMAGE=hw-test/base -t hw-kubernetes/hw-server:1 ../../..
# The next release: one more migration.
mkdir -p "$work/next"
last=$(find ../../../migrations/versions -name '[0-9]*.py' -printf '%f\n' | sort | tail -1)
cat >"$work/next/299912310000_next.py" <<EOF
"""next"""

from alembic import op

revision = "299912310000"
down_revision = "${last%%_*}"


def upgrade() -> None:
    op.execute("ALTER TABLE authors ADD COLUMN next text")


def downgrade() -> None:
    op.execute("ALTER TABLE authors DROP COLUMN next")
EOF
printf 'FROM hw-kubernetes/hw-server:1\nCOPY *.py /app/migrations/versions/\n' >"$work/next/Dockerfile"
build -t hw-kubernetes/hw-server:2 "$work/next"
build --build-arg PYTHON_IMAGE=hw-test/base -t hw-kubernetes/nanoidp:1 ../../../deploy/kubernetes/overlays/local/nanoidp
images=(hw-kubernetes/hw-server:1 hw-kubernetes/hw-server:2 hw-kubernetes/nanoidp:1)
for target in postgres valkey pause; do
  build --build-arg BASE=hw-test/base --target $target -t hw-kubernetes/$target:1 .
  images+=("hw-kubernetes/$target:1")
done
docker save -o "$work/images.tar" "${images[@]}"
