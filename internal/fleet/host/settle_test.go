package host_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestDesiredShowsWhatWasRevokedBefore revokes, and asks at once: the CRL that is told of is one that was signed since.
func TestDesiredShowsWhatWasRevokedBefore(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		m := a.join(client.AddHostRequest{Name: "one"})
		run, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.Revocation.Run(run) }()
		defer func() { stop(); <-ended }()
		follow(t, a)
		number := func() int64 {
			now := must[*client.Desired](t)(a.Hosts.Desired(t.Context(), m.principal, "", 0))
			for _, i := range now.Trust.Issuers {
				if i.Name == "default" && i.CRLNumber != "" {
					return must[int64](t)(strconv.ParseInt(i.CRLNumber, 10, 64))
				}
			}
			return 0
		}
		last := number()
		for begun := time.Now(); last == 0 && time.Since(begun) < time.Minute; last = number() {
			time.Sleep(10 * time.Millisecond) // until the first list is signed
		}
		for range 4 {
			held := must[*ca.Certificate](t)(a.issue(m, ca.Order{}, "one"))
			must[*ca.Certificate](t)(a.CA.Revoke(t.Context(), access.System("n1"), ca.Ref{Issuer: held.Issuer.ID, Serial: held.Serial}, ca.RevokeOrder{}))
			begun, next := time.Now(), number()
			// It waits three seconds for the signer. Where that one had no processor for so long, the next call tells of its list.
			for asked := begun; next <= last && time.Since(asked) >= 3*time.Second && time.Since(begun) < time.Minute; {
				asked = time.Now()
				next = number()
			}
			if next <= last {
				t.Fatalf("after a revocation CRL %d is told of, which was signed before it", next)
			}
			last = next
		}
	})
}
