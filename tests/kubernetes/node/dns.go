package main

import (
	"context"
	"net"
	"strings"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const zone = ".svc.cluster.local."

// serveDNS answers A queries for SERVICE.NAMESPACE.svc.cluster.local with the cluster address of the service.
func serveDNS(kubeconfig, address string) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		panic(err)
	}
	config.QPS = -1 // no limit: each answer is a request
	services := kubernetes.NewForConfigOrDie(config).CoreV1()
	dns.HandleFunc(".", func(w dns.ResponseWriter, query *dns.Msg) {
		answer := new(dns.Msg)
		answer.SetReply(query)
		answer.Authoritative = true
		answer.Rcode = dns.RcodeNameError
		question := query.Question[0]
		name, inZone := strings.CutSuffix(strings.ToLower(question.Name), zone)
		service, namespace, _ := strings.Cut(name, ".")
		if inZone && !strings.Contains(namespace, ".") {
			found, err := services.Services(namespace).Get(context.Background(), service, metav1.GetOptions{})
			if err == nil {
				answer.Rcode = dns.RcodeSuccess
				if ip := net.ParseIP(found.Spec.ClusterIP).To4(); ip != nil && question.Qtype == dns.TypeA {
					header := dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}
					answer.Answer = append(answer.Answer, &dns.A{Hdr: header, A: ip})
				}
			}
		}
		_ = w.WriteMsg(answer)
	})
	go func() { panic((&dns.Server{Addr: address, Net: "tcp"}).ListenAndServe()) }()
	panic((&dns.Server{Addr: address, Net: "udp"}).ListenAndServe())
}
