package publish_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// BenchmarkOCSP holds a cached answer by POST against a handler that reads the request and writes as many octets.
func BenchmarkOCSP(b *testing.B) {
	o := newOffice(b, pkitest.Open(b, db.Options{URL: pkitest.URL(b, db.SQLite)}), ca.CRLMode{})
	o.ready()
	asked := request(b, o.issue("a.example"), o.issuer.Certificate)
	_, _, answer := o.post(asked)
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write(answer)
	}))
	defer bare.Close()
	for name, url := range map[string]string{"chancery": o.server.URL + "/ocsp", "bare": bare.URL} {
		b.Run(name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					response, err := client.Post(url, "application/ocsp-request", bytes.NewReader(asked))
					if err != nil {
						b.Error(err)
						return
					}
					if n, _ := io.Copy(io.Discard, response.Body); n != int64(len(answer)) {
						b.Errorf("%d octets", n)
					}
					response.Body.Close()
				}
			})
		})
	}
}
