#!/usr/bin/env bash
# Starts a node of Kubernetes in namespaces of its own (network, mounts, processes), joined to this machine by a pair of
# virtual interfaces. Ends when it is killed, and everything in it with it. Before: build.sh and images/build.sh.
set -euo pipefail
work="${1:?the folder of build.sh}"
here=$(cd "$(dirname "$0")" && pwd)
packages=()
for pair in containerd:containerd runc:runc iptables:iptables conntrack:conntrack /usr/lib/cni/bridge:containernetworking-plugins; do
  command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if [ ${#packages[@]} -gt 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
rm -rf "$work/log" "$work/pki" "$work/state"
mkdir -p "$work/state" "$work/log"
bash "$here/certificates.sh" "$work" 10.250.0.2
# The pods' control group; version 1 has one tree for each controller.
groups=(/sys/fs/cgroup)
[ -e /sys/fs/cgroup/cgroup.controllers ] || groups=(/sys/fs/cgroup/{cpu,cpuacct,cpuset,memory,pids,freezer,blkio,devices,systemd})
for group in "${groups[@]}"; do mkdir -p "$group/hw-kubernetes"; done
for file in cpus mems; do
  if [ -e /sys/fs/cgroup/cpuset ]; then
    cat /sys/fs/cgroup/cpuset/cpuset.$file >/sys/fs/cgroup/cpuset/hw-kubernetes/cpuset.$file
  fi
done
unshare --net --mount --pid --fork --kill-child=KILL --mount-proc bash "$here/inside.sh" "$work" >"$work/log/node.log" 2>&1 </dev/null &
outside=$!
finish() {
  kill -KILL "$outside" 2>/dev/null || true
  wait "$outside" 2>/dev/null || true
  ip link delete hw-k8s 2>/dev/null || true
  for _ in 1 2 3 4 5; do
    find /sys/fs/cgroup/hw-kubernetes /sys/fs/cgroup/*/hw-kubernetes -depth -type d -exec rmdir {} + 2>/dev/null || true
    sleep 0.5
  done
}
trap finish EXIT
trap exit TERM INT
until inside=$(pgrep -P "$outside"); do sleep 0.05; done
ip link add hw-k8s type veth peer name node
ip link set node netns "$inside"
ip address add 10.250.0.1/24 dev hw-k8s
ip link set hw-k8s up
touch "$work/state/connected"
wait "$outside"
