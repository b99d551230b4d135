#!/usr/bin/env bash
# One authority for the node, a certificate for each of its parts, and their kubeconfig files. EC keys are quick to make.
set -euo pipefail
work="$1" address="$2"
mkdir -p "$work/pki" && cd "$work/pki"
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=hw-kubernetes -days 30 -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
openssl genrsa -out accounts.key 2048 2>/dev/null
openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
certify() {  # name, subject, alternative names
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" |
    openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile <(
      echo extendedKeyUsage=serverAuth,clientAuth
      if [ -n "${3:-}" ]; then echo "subjectAltName=$3"; fi
    ) 2>/dev/null
}
certify apiserver /CN=kube-apiserver "IP:$address,IP:10.96.0.1,DNS:kubernetes.default.svc"
certify node /CN=node "IP:$address,DNS:node,DNS:metrics-server.kube-system.svc"
certify apiserver-kubelet /O=system:masters/CN=kube-apiserver
certify front-proxy /CN=front-proxy
certify admin /O=system:masters/CN=admin
certify kubelet /O=system:nodes/CN=system:node:node
certify controllers /CN=system:kube-controller-manager
certify scheduler /CN=system:kube-scheduler
certify proxy /CN=system:kube-proxy
certify metrics /CN=system:metrics-server
for name in admin kubelet controllers scheduler proxy metrics; do
  cat >$name.kubeconfig <<YAML
{apiVersion: v1, kind: Config, current-context: c,
 clusters: [{name: k, cluster: {server: "https://$address:6443", certificate-authority: $work/pki/ca.crt}}],
 contexts: [{name: c, context: {cluster: k, user: u}}],
 users: [{name: u, user: {client-certificate: $work/pki/$name.crt, client-key: $work/pki/$name.key}}]}
YAML
done
