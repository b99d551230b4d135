#!/usr/bin/env bash
# Process 1 of the node.
set -euo pipefail
work="$1" address=10.250.0.2
here=$(cd "$(dirname "$0")" && pwd)
bin="$work/bin" pki="$work/pki" log="$work/log" state="$work/state"
until [ -e "$state/connected" ]; do sleep 0.05; done
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/containerd /run/lock
# What the kubelet wants to write it finds as it wants it; the machine keeps its own.
for pair in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
  echo "${pair#*=}" >"/run/${pair//[\/=]/_}"
  mount --bind "/run/${pair//[\/=]/_}" "/proc/sys/${pair%=*}"
done
for folder in /var/lib/kubelet /var/lib/cni /var/log/pods /var/log/containers; do
  mkdir -p "$folder" "$state$folder"
  mount --bind "$state$folder" "$folder"
done
mount --make-rshared /var/lib/kubelet
ip link set lo up
ip address add $address/24 dev node
ip link set node up
ip route add default via 10.250.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
echo "nameserver 10.96.0.10" >/run/resolv.conf
for file in containerd.toml bridge.conflist kubelet.yaml proxy.yaml; do
  sed "s|@WORK@|$work|g" "$here/conf/$file" >"$state/$file"
done
mkdir -p "$state/cni" && mv "$state/bridge.conflist" "$state/cni/"

run() { "$@" >"$log/$(basename "$1").log" 2>&1 & }
run containerd -c "$state/containerd.toml"
run "$bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
run "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --advertise-address=$address --service-cluster-ip-range=10.96.0.0/16 \
  --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/accounts.pub" \
  --service-account-signing-key-file="$pki/accounts.key" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
  --kubelet-client-certificate="$pki/apiserver-kubelet.crt" --kubelet-client-key="$pki/apiserver-kubelet.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true \
  --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
  --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
  --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \
  --requestheader-username-headers=X-Remote-User
until ctr version >/dev/null 2>&1; do sleep 0.1; done
ctr -n k8s.io images import "$work/images.tar" >"$log/images.log" 2>&1
until kubectl --kubeconfig "$pki/admin.kubeconfig" get --raw /readyz >/dev/null 2>&1; do sleep 0.2; done
kubectl --kubeconfig "$pki/admin.kubeconfig" apply --server-side -f "$here/addons.yaml"
as() { echo --kubeconfig="$pki/$1.kubeconfig" --authentication-kubeconfig="$pki/$1.kubeconfig" --authorization-kubeconfig="$pki/$1.kubeconfig"; }
# shellcheck disable=SC2046  # three arguments
run "$bin/kube-controller-manager" $(as controllers) --leader-elect=false --use-service-account-credentials=true \
  --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" \
  --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
  --allocate-node-cidrs=true --cluster-cidr=10.244.0.0/16 --service-cluster-ip-range=10.96.0.0/16 \
  --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-cpu-initialization-period=15s \
  --horizontal-pod-autoscaler-initial-readiness-delay=5s
# shellcheck disable=SC2046
run "$bin/kube-scheduler" $(as scheduler) --leader-elect=false
run "$bin/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$pki/kubelet.kubeconfig" --hostname-override=node \
  --node-ip=$address --root-dir=/var/lib/kubelet
run "$bin/kube-proxy" --config="$state/proxy.yaml" --hostname-override=node
# shellcheck disable=SC2046
run "$bin/metrics-server" $(as metrics) --secure-port=4443 --tls-cert-file="$pki/node.crt" --tls-private-key-file="$pki/node.key" \
  --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
  --metric-resolution=10s --kubelet-request-timeout=5s
run "$bin/dns" "$pki/admin.kubeconfig" $address:53
wait -n || true
echo "a part of the node has ended: its log is beside this one"
