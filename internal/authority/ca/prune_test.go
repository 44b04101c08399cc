package ca

import (
	"context"
	"math/big"
	"testing"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// TestPrune removes what ended long ago, with its names and revocations, and nothing else.
func TestPrune(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newStores(t, d)
		ctx, now := context.Background(), time.Now()
		const day = 24 * time.Hour
		above := must[*root.Root](t)(root.New(root.Options{Subject: cert.CommonName("Old"), PathLen: -1}, newKey(t), now))
		spec := ImportSpec{Name: "old", Certificate: above.Certificate}
		for i := range 450 { // more than two batches
			r := Record{Serial: big.NewInt(int64(i + 1)), Subject: "CN=gone.example.com", NotBefore: now.Add(-400 * day), NotAfter: now.Add(-31 * day)}
			if i%3 == 0 {
				r.Revocation = &Revocation{Reason: crl.Superseded, RevokedAt: now.Add(-40 * day)}
			}
			spec.Records = append(spec.Records, r)
		}
		spec.Records = append(spec.Records, Record{Serial: big.NewInt(1000), Subject: "CN=here.example.com", NotAfter: now.Add(-29 * day),
			Revocation: &Revocation{Reason: crl.Superseded, RevokedAt: now.Add(-40 * day)}})
		must[*Issuer](t)(a.ImportIssuer(ctx, admin(), spec))
		if done := must[Pruned](t)(a.Prune(ctx)); done != (Pruned{}) {
			t.Errorf("pruned %+v although certificates are kept for ever", done)
		}
		a.settingsWith(func(s *settings.Settings) { s.Retention.Certificates = settings.Duration(30 * day) })
		if done := must[Pruned](t)(a.Prune(ctx)); done.Certificates != 450 {
			t.Errorf("pruned %+v", done)
		}
		if certificates, revocations := a.count(`SELECT COUNT(*) FROM certificate`), a.count(`SELECT COUNT(*) FROM revocation`); certificates != 2 || revocations != 1 {
			t.Errorf("%d certificates and %d revocations are left", certificates, revocations)
		}
	})
}
