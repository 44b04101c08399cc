package proof_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

// TestWhoMayHaveTwins: a twin is for hosts with a consumer that has a port and is given CRLs, and of a certificate that was
// revoked for a compromise, or where the officer asks for twins. Who would get one can be looked at before, and that changes
// nothing.
func TestWhoMayHaveTwins(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a := newAuthority(t, d)
		soon := time.Now().Add(time.Hour)
		a.join("both1", "")
		a.reports(a.joins("deaf1", ""), client.Observation{Placement: "nginx", Address: "localhost:443"})
		a.reports(a.joins("files1", ""), client.Observation{Placement: "plain", CRLEnds: soon})
		split := a.reports(a.joins("split1", ""), client.Observation{Placement: "nginx", Address: "localhost:443"})
		a.reports(split, client.Observation{Placement: "plain", CRLEnds: soon})
		quiet := a.joins("quiet1", "")
		for _, s := range []struct {
			name   string
			reason crl.Reason // of its revocation; on hold where it is certificateHold
			asked  bool
			twins  []string
			told   string
		}{
			{"stolen", crl.KeyCompromise, false, []string{"both1"}, "nothing on it has a port and is given CRLs"},
			{"superseded", crl.Superseded, false, nil, "is revoked as superseded and not for a compromise"},
			{"no reason", crl.Unspecified, false, nil, "and not for a compromise"},
			{"decommissioned, and asked for", crl.CessationOfOperation, true, []string{"both1"}, "nothing on it has a port and is given CRLs"},
			{"held", crl.CertificateHold, false, nil, "is on hold and not for a compromise"},
			{"held, and asked for", crl.CertificateHold, true, []string{"both1"}, "nothing on it has a port and is given CRLs"},
		} {
			c := a.certificate("", newKey(t))
			var err error
			if s.reason == crl.CertificateHold {
				_, err = a.CA.Hold(t.Context(), officer, refOf(c), "")
			} else {
				_, err = a.CA.Revoke(t.Context(), officer, refOf(c), ca.RevokeOrder{Reason: s.reason})
			}
			check(t, err)
			before := a.count(`SELECT COUNT(*) FROM proof`)
			preview := must[*client.ProofResult](t)(a.Proofs.Preview(t.Context(), officer, refOf(c), client.ProveRequest{Twins: s.asked}))
			if preview.ID != "" || len(preview.Trials) != 10 || !slices.Equal(preview.Twins, s.twins) || a.count(`SELECT COUNT(*) FROM proof`) != before {
				t.Errorf("%s: %+v", s.name, preview)
			}
			p := a.start(c, client.ProveRequest{Twins: s.asked})
			if !slices.Equal(p.Twins, s.twins) {
				t.Errorf("%s: twins are for %v", s.name, p.Twins)
			}
			told := desired(t, a, quiet).Proofs
			if last := told[len(told)-1]; last.ID != p.ID || !strings.Contains(last.NoTwin, s.told) {
				t.Errorf("%s: quiet1 is told %q", s.name, last.NoTwin)
			}
			_, err = a.twin(quiet, p.ID, bare(t, newKey(t)))
			refused(t, err, fault.Denied, s.told)
			// What a host says after the proof began gets it no twin: the officer was told who would.
			a.reports(quiet, client.Observation{Placement: "nginx", Address: "localhost:443", CRLEnds: soon})
			_, err = a.twin(quiet, p.ID, bare(t, newKey(t)))
			refused(t, err, fault.Denied, s.told)
			a.reports(quiet, client.Observation{Placement: "nginx"})
		}
		_, err := a.Proofs.Preview(t.Context(), operator, ca.Ref{}, client.ProveRequest{})
		refused(t, err, fault.Denied, "")
		if n := a.count(`SELECT COUNT(*) FROM certificate WHERE profile LIKE 'proof-%'`); n != 0 {
			t.Errorf("%d certificates were issued", n)
		}
	})
}

// TestListsOfBigIssuers: where a delta or partitions show revocations, the complete list is signed rarely. A proof has it signed
// when it begins and when a twin is issued, since hosts place complete lists.
func TestListsOfBigIssuers(t *testing.T) {
	t.Parallel()
	for name, mode := range map[string]ca.CRLMode{"delta": {Delta: true}, "partitions": {Partitions: 2}, "neither": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pkitest.EachDB(t, func(t *testing.T, d *db.DB) { listsTwins(t, newAuthority(t, d), mode) })
		})
	}
}

func listsTwins(t *testing.T, a *authority, mode ca.CRLMode) {
	set := *must[*settings.Settings](t)(a.Settings.Get(t.Context()))
	set.CRL.WholeUpTo, set.PublicURL = 1, "http://pki.example.com"
	must[*settings.Settings](t)(a.Settings.Set(t.Context(), "test", set, once.Call{}))
	issuer := must[*ca.Issuer](t)(a.CA.Issuer(t.Context(), "default"))
	must[*ca.Issuer](t)(a.CA.SetCRLMode(t.Context(), admin, issuer.ID, mode, once.Call{}))
	web := a.join("web1", "")
	c := a.certificate("", newKey(t))
	a.revoke(c)
	a.revoke(a.certificate("", newKey(t)))
	run, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Revocation.Run(run) }()
	defer func() { stop(); <-ended }()
	a.until("the revocations are on the first complete list", func(l *revocation.List) bool { return l.Entries == 2 })
	third := a.certificate("", newKey(t))
	a.revoke(third)
	p := a.start(c, client.ProveRequest{})
	a.until("the list is complete once the proof begins", func(l *revocation.List) bool { return l.Entries == 3 })
	twin := must[*client.ProofCertificate](t)(a.twin(web, p.ID, bare(t, newKey(t))))
	a.until("the twin is listed", func(l *revocation.List) bool { return l.Entries == 4 })
	number, err := cert.ParseSerial(twin.Serial)
	check(t, err)
	list := must[*crl.List](t)(crl.Parse(a.list()))
	if _, listed := list.Lookup(number); !listed {
		t.Errorf("CRL %v does not list the twin %s", list.Number, twin.Serial)
	}
}

// until waits for the complete list in force to be as it should.
func (a *authority) until(what string, is func(*revocation.List) bool) *revocation.List {
	a.t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		l, err := a.Revocation.Current(a.t.Context(), "default", revocation.Complete)
		if err == nil && is(l) {
			return l
		}
		if time.Now().After(end) {
			a.t.Fatalf("%s: not within three minutes: %+v %v", what, l, err)
		}
	}
}

// list is the complete list in force, in DER.
func (a *authority) list() []byte {
	a.t.Helper()
	l := must[*revocation.List](a.t)(a.Revocation.Current(a.t.Context(), "default", revocation.Complete))
	var out bytes.Buffer
	check(a.t, a.Revocation.WriteTo(a.t.Context(), &out, l))
	return out.Bytes()
}
