#!/usr/bin/env bash
# Builds Kubernetes for a single node from its Go modules into one static binary: 7 minutes on two cores, seconds when
# nothing has changed. The argument is the folder that takes it.
set -euo pipefail
work="${1:?the folder to build in}"
kubernetes=1.36.3
staging=v0.${kubernetes#1.}
command -v go >/dev/null || { echo "go is missing: apt-get install golang-go, 1.26 or newer" >&2; exit 3; }
mkdir -p "$work/build" "$work/bin"
cp "$(dirname "$0")"/*.go "$work/build/"
cd "$work/build"
export GOFLAGS='-mod=mod -buildvcs=false' CGO_ENABLED=0
if [ ! -e go.mod ]; then
  # The modules of Kubernetes at the versions of its own go.mod, which replaces its staging modules by folders.
  upstream=$(go mod download -json "k8s.io/kubernetes@v$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
  sed -e 's/^module .*/module example.test\/node/' -e '/^replace (/,/^)/d' -e "s/ v0\.0\.0$/ $staging/" "$upstream" >go.mod
  go mod edit -require "k8s.io/kubernetes@v$kubernetes" -require go.etcd.io/etcd/server/v3@v3.6.11 \
    -require sigs.k8s.io/metrics-server@v0.9.0 -require github.com/miekg/dns@v1.1.72
fi
# The resource definitions that the production overlay needs.
mkdir -p "$work/definitions"
module() { GOFLAGS='' go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'; }
cp -f "$(module sigs.k8s.io/gateway-api@v1.4.1)"/config/crd/standard/*_httproutes.yaml \
  "$(module github.com/prometheus-operator/prometheus-operator@v0.85.0)"/example/prometheus-operator-crd/*_{servicemonitors,prometheusrules}.yaml \
  "$work/definitions/"
version="-X k8s.io/component-base/version.gitVersion=v$kubernetes"
go build -trimpath -tags notest,grpcnotrace -ldflags "-s -w $version" -o "$work/bin/kube" .
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy metrics-server dns; do
  ln -sf kube "$work/bin/$name"
done
