package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/client"
)

// BenchmarkIssue issues through a whole node: 32 clients with kept connections, mutual TLS, P-256, SQLite with
// synchronous=FULL. The clients' own work is in it.
func BenchmarkIssue(b *testing.B) {
	r := start(b, made(b))
	clients := make([]*client.Client, 32)
	bodies := make([]client.IssueRequest, len(clients))
	for i := range clients {
		clients[i] = r.admin()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{fmt.Sprintf("h%d.test", i)}}, key)
		if err != nil {
			b.Fatal(err)
		}
		bodies[i] = client.IssueRequest{Profile: "server", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
		if _, err := clients[i].Issue(b.Context(), bodies[i]); err != nil {
			b.Fatal(err)
		}
	}
	var next atomic.Int64
	b.SetParallelism(16) // with GOMAXPROCS 2: 32
	b.ReportAllocs()
	before := cpu(b)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		i := int(next.Add(1)-1) % len(clients)
		for p.Next() {
			if _, err := clients[i].Issue(b.Context(), bodies[i]); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "issued/s")
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
}

// cpu is the processor time that this process has used; unlike the clock's it says the same on a busy machine.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
