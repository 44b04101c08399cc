package ca

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/settings"
)

// TestIssue issues a certificate, and has OpenSSL and GnuTLS verify its path.
func TestIssue(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		c := a.server("dns:host1.example.com", "ip:192.0.2.1")
		leaf, chain, roots := a.path(c)
		if out := run(t, "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "host1.example.com",
			"-CAfile", roots, "-untrusted", chain, leaf); !strings.Contains(out, "OK") {
			t.Errorf("openssl: %s", out)
		}
		bundle := t.TempDir() + "/bundle.pem"
		run(t, "sh", "-c", `cat "$1" "$2" > "$3"`, "sh", leaf, chain, bundle)
		if out := run(t, "certtool", "--verify", "--verify-hostname", "host1.example.com", "--load-ca-certificate", roots, "--infile", bundle); !strings.Contains(out, "Verified.") {
			t.Errorf("certtool: %s", out)
		}
		parsed := must[*x509.Certificate](t)(c.Parsed())
		if !slices.Equal(parsed.CRLDistributionPoints, []string{publicURL + "/crl/issuing.crl"}) || !slices.Equal(parsed.OCSPServer, []string{publicURL + "/ocsp"}) ||
			!slices.Equal(parsed.IssuingCertificateURL, []string{publicURL + "/ca/issuing.cer"}) {
			t.Errorf("pointers: %v %v %v", parsed.CRLDistributionPoints, parsed.OCSPServer, parsed.IssuingCertificateURL)
		}
		found := must[*Certificate](t)(a.Find(context.Background(), admin(), Ref{Serial: c.Serial}))
		if found.Subject != "CN=host1.example.com" || found.State != Valid || found.Profile != "server" || string(found.DER) != string(c.DER) ||
			!found.NotAfter.Equal(parsed.NotAfter) || len(found.Names()) != 2 || found.Issuer.Name != "issuing" || found.Requester != admin().ID {
			t.Errorf("found %+v", found)
		}
		if age := time.Since(found.IssuedAt()); age < 0 || age > time.Minute {
			t.Errorf("issued at %v", found.IssuedAt())
		}
	})
}

// TestIdempotencyKey repeats calls with their key.
func TestIdempotencyKey(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		order := Order{IdempotencyKey: "k1", Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")}
		first := must[*Certificate](t)(a.Issue(ctx, admin(), order))
		again := must[*Certificate](t)(a.Issue(ctx, admin(), order))
		if again.ID != first.ID || string(again.DER) != string(first.DER) {
			t.Errorf("the repeated call got %d, the first %d", again.ID, first.ID)
		}
		other := order
		other.CSR = csr(t, newKey(t), "dns:b.example.com")
		_, err := a.Issue(ctx, admin(), other)
		refusedAs(t, err, fault.Conflict)
		if c := must[*Certificate](t)(a.Issue(ctx, operator("bob", access.Operator), order)); c.ID == first.ID {
			t.Error("another caller's key is another key")
		}
		renewed := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: first.Serial}, RenewOrder{IdempotencyKey: "k2"}))
		renewedAgain := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: first.Serial}, RenewOrder{IdempotencyKey: "k2"}))
		if renewed.ID != renewedAgain.ID {
			t.Error("a repeated renewal issued another certificate")
		}
		revoked := must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Serial: first.Serial}, RevokeOrder{IdempotencyKey: "k3", Reason: 4}))
		revokedAgain := must[*Certificate](t)(a.Revoke(ctx, admin(), Ref{Serial: first.Serial}, RevokeOrder{IdempotencyKey: "k3", Reason: 4}))
		if late := must[*Certificate](t)(a.Renew(ctx, admin(), Ref{Serial: first.Serial}, RenewOrder{IdempotencyKey: "k2"})); late.ID != renewed.ID {
			t.Error("a renewal repeated after the old certificate was revoked is another one")
		}
		_, err = a.Renew(ctx, admin(), Ref{Serial: first.Serial}, RenewOrder{IdempotencyKey: "k4"})
		refusedAs(t, err, fault.Conflict)
		if revoked.State != Revoked || revokedAgain.State != Revoked || !revoked.Revocation.RevokedAt.Equal(revokedAgain.Revocation.RevokedAt) {
			t.Errorf("revoked %+v, again %+v", revoked.Revocation, revokedAgain.Revocation)
		}
	})
}

// TestAtOnce issues from 32 goroutines: serials and IDs are unique, and a key shared by all gives one certificate.
func TestAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		a.settingsWith(func(s *settings.Settings) { s.Limits.OperatorDuplicates = 10_000 })
		ctx := context.Background()
		shared := csr(t, newKey(t), "dns:shared.example.com")
		before := a.count(`SELECT COUNT(*) FROM certificate`)
		var (
			wg      sync.WaitGroup
			mu      sync.Mutex
			serials = map[string]bool{}
			ids     = map[int64]bool{}
			one     = map[int64]bool{}
		)
		for range 32 {
			wg.Go(func() {
				for range 8 {
					c, err := a.Issue(ctx, admin(), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:many.example.com")})
					if err != nil {
						t.Error(err)
						return
					}
					s, err := a.Issue(ctx, admin(), Order{IdempotencyKey: "shared", Profile: "server", CSR: shared})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					serials[c.Serial.String()], ids[c.ID], one[s.ID] = true, true, true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(serials) != 256 || len(ids) != 256 || len(one) != 1 {
			t.Errorf("%d serials, %d ids, %d certificates for one key", len(serials), len(ids), len(one))
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate`) - before; n != 257 {
			t.Errorf("%d rows", n)
		}
	})
}

// TestEntitlements asks for names that the caller may not have, in every place where a name can hide.
func TestEntitlements(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		a.entitlements = func(_ context.Context, by access.Principal) (map[string][]string, error) {
			return map[string][]string{"host.names": {by.Name}, "host.addresses": {"192.0.2.7"}}, nil
		}
		h := host("h1.example.com")
		refused := 0
		for _, name := range []string{
			"dns:h2.example.com", "dns:*.example.com", "dns:*.h1.example.com", "ip:192.0.2.8", "ip:2001:db8::1", "email:root@h1.example.com",
			"uri:spiffe://example.com/admin", "othername:1.3.6.1.4.1.311.20.2.3;utf8:admin@example.com", "dirname:CN=h1.example.com", "rid:1.2.3.4",
			"dns:h1.example.com.evil.example", "dns:H2.example.com",
		} {
			_, err := a.Issue(ctx, h, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com", name)})
			if !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if value := name[strings.Index(name, ":")+1:]; name != "dirname:CN=h1.example.com" && !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(strings.SplitN(value, ";", 2)[0])) {
				t.Errorf("the refusal of %s does not name it: %v", name, err)
			}
			refused++
		}
		smuggled := map[string]cert.CSRTemplate{
			"a second subject attribute": {Subject: must[cert.Name](t)(cert.ParseName("CN=h1.example.com,O=Admins"))},
			"a common name":              {Subject: cert.CommonName("h2.example.com")},
			"CA:TRUE":                    {BasicConstraints: &cert.BasicConstraints{CA: true, PathLen: -1}},
			"keyCertSign":                {KeyUsage: x509.KeyUsageCertSign},
			"a purpose":                  {ExtKeyUsage: []asn1.ObjectIdentifier{cert.OIDOCSPSigning}},
			"an unknown extension":       {Extra: []cert.Extension{{ID: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2}, Value: []byte{5, 0}}}},
		}
		for what, template := range smuggled {
			template.SAN = []cert.GeneralName{cert.DNSName("h1.example.com")}
			der := must[[]byte](t)(cert.CreateCSR(&template, newKey(t)))
			if _, err := a.Issue(ctx, h, Order{Profile: "server", CSR: der}); !fault.Is(err, fault.Denied) {
				t.Errorf("%s: %v", what, err)
				continue
			}
			refused++
		}
		if refused < 18 {
			t.Errorf("%d orders were refused; 18 were expected", refused)
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE requester = $1`, h.ID); n != 0 {
			t.Errorf("%d certificates were issued all the same", n)
		}
		c := must[*Certificate](t)(a.Issue(ctx, h, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com", "ip:192.0.2.7")}))
		if len(c.Names()) != 2 {
			t.Errorf("names %v", c.Names())
		}
		_, err := a.Issue(ctx, operator("eve", access.Auditor), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com")})
		refusedAs(t, err, fault.Denied)
	})
}

// TestBadOrders are refused before anything is stored.
func TestBadOrders(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	ctx := context.Background()
	before, keys := a.count(`SELECT COUNT(*) FROM certificate`), a.count(`SELECT COUNT(*) FROM once`)
	key := newKey(t)
	good := csr(t, key, "dns:a.example.com")
	for what, c := range map[string]struct {
		order Order
		kind  fault.Kind
	}{
		"no key":               {Order{Profile: "server"}, fault.Invalid},
		"two keys":             {Order{Profile: "server", CSR: good, PublicKey: spkiOf(t, key)}, fault.Invalid},
		"garbage":              {Order{Profile: "server", CSR: []byte("garbage")}, fault.Invalid},
		"truncated":            {Order{Profile: "server", CSR: good[:len(good)-3]}, fault.Invalid},
		"10 MB":                {Order{Profile: "server", CSR: make([]byte, 10<<20)}, fault.TooLarge},
		"no profile":           {Order{CSR: good}, fault.Invalid},
		"unknown profile":      {Order{Profile: "nothing", CSR: good}, fault.NotFound},
		"unknown issuer":       {Order{Profile: "server", Issuer: "nothing", CSR: good}, fault.NotFound},
		"unknown pool":         {Order{Profile: "server", Pool: "nothing", CSR: good}, fault.NotFound},
		"another pool":         {Order{Profile: "server", Issuer: "issuing", Pool: "p2", CSR: good}, fault.Conflict},
		"end before beginning": {Order{Profile: "server", CSR: good, NotBefore: time.Now().Add(48 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}, fault.Invalid},
		"end in the past":      {Order{Profile: "server", CSR: good, NotAfter: time.Now().Add(-time.Hour)}, fault.Invalid},
		"beyond the profile":   {Order{Profile: "server", CSR: good, Validity: 1000 * 24 * time.Hour}, fault.Invalid},
		"negative validity":    {Order{Profile: "server", CSR: good, Validity: -time.Hour}, fault.Invalid},
		"two ends":             {Order{Profile: "server", CSR: good, Validity: time.Hour, NotAfter: time.Now().Add(time.Hour)}, fault.Invalid},
		"a CA profile":         {Order{Profile: "ca", CSR: must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{Subject: cert.CommonName("x")}, key))}, fault.Denied},
		"NUL in a name":        {Order{Profile: "server", CSR: good, Names: []string{"dns:a\x00b.example.com"}}, fault.Invalid},
		"a name of 300 octets": {Order{Profile: "server", CSR: good, Names: []string{"dns:" + strings.Repeat("a.", 150) + "com"}}, fault.Invalid},
		"10,000 names":         {Order{Profile: "server", CSR: good, Names: slices.Repeat([]string{"dns:a.example.com"}, 10_000)}, fault.Invalid},
		"a bad subject":        {Order{Profile: "server", CSR: good, Subject: "CN"}, fault.Invalid},
	} {
		_, err := a.Issue(ctx, admin(), c.order)
		if !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %s", what, err, c.kind)
		}
		if _, err := a.DryRun(ctx, admin(), c.order); !fault.Is(err, c.kind) {
			t.Errorf("%s, dry: %v, want %s", what, err, c.kind)
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM certificate`); n != before {
		t.Errorf("%d certificates were issued", n-before)
	}
	if n := a.count(`SELECT COUNT(*) FROM once`); n != keys {
		t.Errorf("%d idempotency keys were kept", n-keys)
	}
}

// TestDryRun says what would be issued, and issues nothing.
func TestDryRun(t *testing.T) {
	a := newAuthority(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}))
	before := a.count(`SELECT COUNT(*) FROM certificate`)
	p := must[*Preview](t)(a.DryRun(context.Background(), admin(), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")}))
	if p.Subject != "CN=a.example.com" || !slices.Equal(p.Names, []string{"dns:a.example.com"}) || !p.AtOnce || p.Issuer.Name != "issuing" {
		t.Errorf("preview %+v", p)
	}
	if parsed, err := x509.ParseCertificate(p.Unsigned); err != nil || len(parsed.Signature) != 0 {
		t.Errorf("the unsigned certificate: %v", err)
	}
	if n := a.count(`SELECT COUNT(*) FROM certificate`); n != before {
		t.Error("a dry run issued a certificate")
	}
}

// TestClockSetBack refuses to issue while the clock is behind what the store has seen.
func TestClockSetBack(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		check(t, d.Heartbeat(context.Background(), time.Now().Add(time.Hour)))
		_, err := a.Issue(context.Background(), admin(), Order{Profile: "server", CSR: csr(t, newKey(t), "dns:a.example.com")})
		refusedAs(t, err, fault.Unavailable)
		_, err = a.Revoke(context.Background(), admin(), Ref{Serial: a.issuer.Certificate.SerialNumber}, RevokeOrder{})
		refusedAs(t, err, fault.Unavailable)
	})
}

// TestGuards keeps a client in a loop from filling the store.
func TestGuards(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		h := host("h1.example.com")
		a.settingsWith(func(s *settings.Settings) { s.Limits.Duplicates = 3 })
		request := csr(t, newKey(t), "dns:h1.example.com")
		first := must[*Certificate](t)(a.Issue(ctx, h, Order{Profile: "server", CSR: request}))
		_, err := a.Issue(ctx, h, Order{Profile: "server", PublicKey: spkiOf(t, newKey(t)), Names: []string{"dns:h1.example.com"}})
		refusedAs(t, err, fault.Denied)
		if again := must[*Certificate](t)(a.Issue(ctx, h, Order{IdempotencyKey: "g", Profile: "server", CSR: request})); again.ID != first.ID {
			t.Error("the same key and names got another certificate")
		}
		for range 2 {
			must[*Certificate](t)(a.Issue(ctx, h, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com")}))
		}
		_, err = a.Issue(ctx, h, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h1.example.com")})
		refusedAs(t, err, fault.RateLimited)
		if c := must[*Certificate](t)(a.Issue(ctx, h, Order{Profile: "client", CSR: csr(t, newKey(t), "dns:h1.example.com")})); c.Profile != "client" {
			t.Error("another profile is another certificate")
		}
		a.settingsWith(func(s *settings.Settings) { s.Limits.HostRate = settings.Rate{PerSecond: 0.001, Burst: 2} })
		other := host("h2.example.com")
		for range 2 {
			must[*Certificate](t)(a.Issue(ctx, other, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h2.example.com")}))
		}
		_, err = a.Issue(ctx, other, Order{Profile: "server", CSR: csr(t, newKey(t), "dns:h2.example.com")})
		refusedAs(t, err, fault.RateLimited)
	})
}

// TestDuplicateSerial gives a serial by template twice.
func TestDuplicateSerial(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		ctx := context.Background()
		order := Order{Template: "cn = a\nserial = 7\nexpiration_days = 30\n", PublicKey: spkiOf(t, newKey(t))}
		if c := must[*Certificate](t)(a.Issue(ctx, admin(), order)); c.Serial.Cmp(big.NewInt(7)) != 0 {
			t.Errorf("serial %v", c.Serial)
		}
		_, err := a.Issue(ctx, admin(), order)
		refusedAs(t, err, fault.Conflict)
		order.Issuer = "root"
		must[*Certificate](t)(a.Issue(ctx, admin(), order))
		_, err = a.Find(ctx, admin(), Ref{Serial: big.NewInt(7)})
		refusedAs(t, err, fault.Conflict)
		must[*Certificate](t)(a.Find(ctx, admin(), Ref{Issuer: "root", Serial: big.NewInt(7)}))
	})
}
