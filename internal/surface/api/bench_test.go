package api_test

import (
	"testing"

	"chancery/client"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// BenchmarkCall is the cost of a call that does nothing: TLS, authentication, limits, routing, encoding, the event.
func BenchmarkCall(b *testing.B) {
	a := newAuthority(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, db.SQLite)}))
	c, err := client.New(client.Options{Address: a.server.URL, Roots: a.roots(), Token: a.people[access.Admin].token})
	must(b, err)
	defer c.Close()
	b.SetParallelism(16)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := c.Caller(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
