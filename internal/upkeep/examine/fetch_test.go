package examine

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestReach: how far a certificate may lead from where it was seen.
func TestReach(t *testing.T) {
	t.Parallel()
	const public, private, loopback = "198.51.100.7", "10.0.0.7", "127.0.0.1"
	for _, c := range []struct {
		to      string
		from    string // of these the address may be asked
		private bool   // and with --fetch-private
	}{
		{"93.184.216.34", public + " " + private + " " + loopback, true},
		{"2606:2800:220:1::1", public + " " + private + " " + loopback, true},
		{"10.9.9.9", private + " " + loopback, true},
		{"192.168.1.1", private + " " + loopback, true},
		{"100.64.0.1", private + " " + loopback, true},
		{"fd00::1", private + " " + loopback, true},
		{"::ffff:10.9.9.9", private + " " + loopback, true},
		{"64:ff9b::a00:1", private + " " + loopback, true}, // 10.0.0.1 by NAT64
		{"127.0.0.2", loopback, true},
		{"::1", loopback, true},
		{"::ffff:127.0.0.1", loopback, true},
		{"2002:7f00:1::", loopback, true},
		{public, public + " " + private + " " + loopback, true},
		{"169.254.169.254", "", false},
		{"::ffff:169.254.169.254", "", false},
		{"64:ff9b::a9fe:a9fe", "", false},
		{"fe80::1%eth0", "", false},
		{"224.0.0.1", "", false},
		{"ff02::1", "", false},
		{"0.0.0.0", "", false},
		{"::", "", false},
		{"0.1.2.3", "", false},
		{"255.255.255.255", "", false},
	} {
		for _, from := range []string{public, private, loopback} {
			r := reach{at: netip.MustParseAddr(from)}
			err := r.control(net.JoinHostPort(c.to, "80"))
			if wanted := strings.Contains(" "+c.from+" ", " "+from+" "); (err == nil) != wanted || err != nil && !errors.Is(err, errInside) {
				t.Errorf("%s leads to %s: %v", from, c.to, err)
			}
			r.private = true
			if err := r.control(net.JoinHostPort(c.to, "80")); (err == nil) != c.private {
				t.Errorf("%s leads to %s with --fetch-private: %v", from, c.to, err)
			}
		}
	}
	if err := (reach{}).control("localhost:80"); err == nil {
		t.Error("a name passes for an address")
	}
}

// TestLedElsewhere: a port that is not on this machine leads doctor to what is. Nothing there is asked: neither by an address, nor
// by a name that has it.
func TestLedElsewhere(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	var asked atomic.Int32
	list := o.issuer.list(t, time.Hour)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(list)
	}))
	defer web.Close()
	named := strings.Replace(web.URL, "127.0.0.1", "localhost", 1)
	leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) {
		c.CRLDistributionPoints, c.OCSPServer = []string{web.URL + "/crl", named + "/crl"}, []string{web.URL + "/containers/x/kill"}
	})
	look := func(r reach) *report {
		all := &report{where: "wire", object: "web.example.com:443"}
		all.lookAtRevocation(t.Context(), []*x509.Certificate{leaf.cert, o.issuer.cert}, newFetcher(r), time.Now())
		note(t, all.found)
		return all
	}
	far := look(reach{at: netip.MustParseAddr("198.51.100.7")})
	want(t, far.found, "wire.revocation.inside")
	wantOne(t, far.found, "wire.revocation.inside", "is this machine itself", "chancery doctor web.example.com:443 --fetch-private")
	if n := asked.Load(); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	look(reach{at: netip.MustParseAddr("198.51.100.7"), private: true})
	if n := asked.Load(); n != 3 {
		t.Errorf("with --fetch-private it was asked %d times", n)
	}
	metadata := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) {
		c.CRLDistributionPoints = []string{"http://169.254.169.254/latest/meta-data/"}
	})
	found := at(t, metadata.sServer(t, metadata.path), PortOptions{Trust: o.trust(), FetchPrivate: true})
	wantOne(t, found, "wire.revocation.inside", "169.254.169.254 is a link-local address")
	for _, f := range found {
		if strings.Contains(f.Hint, "--fetch-private") {
			t.Errorf("a link-local address may be asked: %s", f.Hint)
		}
	}
}

// TestSentOn: a fetch may be sent on three times, to what it could have named itself; a question is not sent on.
func TestSentOn(t *testing.T) {
	t.Parallel()
	var killed atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next := map[string]string{"/1": "/2", "/2": "/3", "/3": "/end", "/0": "/1", "/metadata": "http://169.254.169.254/latest/meta-data/", "/secret": "http://user:x@127.0.0.1/"}
		switch {
		case r.URL.Path == "/kill":
			killed.Add(1)
		case r.URL.Path == "/307":
			http.Redirect(w, r, "/kill", http.StatusTemporaryRedirect)
		case r.URL.Path == "/302":
			http.Redirect(w, r, "/kill", http.StatusFound)
		case next[r.URL.Path] != "":
			http.Redirect(w, r, next[r.URL.Path], http.StatusFound)
		}
	}))
	defer web.Close()
	f := newFetcher(reach{at: netip.MustParseAddr("127.0.0.1")})
	for _, path := range []string{"/307", "/302"} {
		if _, err := f.do(t.Context(), web.URL+path, []byte("a question"), mostOCSP); err == nil || !strings.Contains(err.Error(), "question on") {
			t.Errorf("a question is sent on by %s: %v", path, err)
		}
	}
	if killed.Load() != 0 {
		t.Error("a question came where it was sent on to")
	}
	if _, err := f.get(t.Context(), web.URL+"/1", mostOCSP); err != nil {
		t.Errorf("three times: %v", err)
	}
	for path, words := range map[string]string{"/0": "more than 3 times", "/metadata": "link-local", "/secret": "only plain http"} {
		if _, err := f.get(t.Context(), web.URL+path, mostOCSP); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestFetchBudget: what one look fetches is bounded altogether, in octets and in time, and none of it is kept.
func TestFetchBudget(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/none" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.CopyN(w, zeros{}, 30<<20)
	}))
	defer web.Close()
	here := reach{at: netip.MustParseAddr("127.0.0.1")}
	f := newFetcher(here)
	for range 2 {
		if got, err := f.get(t.Context(), web.URL, mostCRL); err != nil || len(got) != 30<<20 {
			t.Fatalf("%d octets: %v", len(got), err)
		}
	}
	if _, err := f.get(t.Context(), web.URL, mostCRL); !errors.Is(err, errOctets) {
		t.Errorf("90 MiB are fetched in one look: %v", err)
	}
	f = newFetcher(here)
	for range 2 {
		if _, err := f.get(t.Context(), web.URL+"/none", mostCRL); err == nil || !strings.Contains(err.Error(), "404") {
			t.Error(err)
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("an address that failed is asked again: %d", n)
	}
	f.until = time.Now()
	if _, err := f.get(t.Context(), web.URL, mostCRL); !errors.Is(err, errSpent) {
		t.Errorf("after its time: %v", err)
	}
	if asked.Load() != 4 {
		t.Error("it is asked after its time")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// rawList is a TBSCertList, for lists that no maker of ours would make.
type rawList struct {
	Raw        asn1.RawContent
	Version    int `asn1:"optional,default:0"`
	Signature  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	ThisUpdate time.Time
	NextUpdate time.Time        `asn1:"optional"`
	Revoked    []asn1.RawValue  `asn1:"optional"`
	Extensions []pkix.Extension `asn1:"tag:0,optional,explicit"`
}

// changed signs a CRL as no maker of ours would make it.
func (h *holder) changed(t testing.TB, change func(*rawList)) []byte {
	t.Helper()
	var list struct {
		TBS       rawList
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(h.list(t, time.Hour), &list); err != nil {
		t.Fatal(err)
	}
	change(&list.TBS)
	list.TBS.Raw = nil
	tbs, err := asn1.Marshal(list.TBS)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(tbs)
	signature, err := h.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	list.TBS.Raw, list.Signature = nil, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	der, err := asn1.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestListsThatSayLess: a list for some reasons clears nobody, and one without nextUpdate is not called old.
func TestListsThatSayLess(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	answers := map[string][]byte{
		"/undated": o.issuer.changed(t, func(l *rawList) { l.NextUpdate = time.Time{} }),
		"/some": o.issuer.changed(t, func(l *rawList) { // issuingDistributionPoint with onlySomeReasons: keyCompromise
			l.Extensions = append(l.Extensions, pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 4, 0x83, 2, 6, 0x40}})
		}),
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(answers[r.URL.Path]) }))
	defer web.Close()
	for path, rule := range map[string]string{"/some": "wire.revocation.partial", "/undated": "wire.revocation.forged"} {
		leaf := issue(t, o.issuer, "localhost", server("localhost"), func(c *x509.Certificate) { c.CRLDistributionPoints = []string{web.URL + path} })
		found := at(t, leaf.sServer(t, leaf.path), PortOptions{Trust: o.trust()})
		want(t, found, rule)
		if path == "/undated" {
			wantOne(t, found, rule, "nextUpdate", "RFC 5280")
		}
		for _, f := range found {
			if f.Check == "wire.revocation" {
				t.Errorf("%s clears the certificate: %s", path, f.Message)
			}
		}
	}
}

// TestFindingsHaveCommands: what can be mended by a command names it.
func TestFindingsHaveCommands(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	silent := say(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	wantOne(t, at(t, silent, PortOptions{Offline: true, Timeout: 3 * time.Second}), "wire.tls.slow", "chancery doctor "+silent+" --timeout 1m0s")
	wantOne(t, at(t, "127.0.0.1:1", PortOptions{Offline: true}), "wire.connect.refused", "ss -ltn 'sport = :1'")
	rooted := o.leaf.sServer(t, append(o.leaf.path[:len(o.leaf.path):len(o.leaf.path)], o.root.cert))
	wantOne(t, at(t, rooted, PortOptions{Offline: true, Trust: o.trust()}), "wire.path.root", "openssl s_client -connect "+rooted+" -servername localhost -showcerts </dev/null")
	garbage := say(t, func(c net.Conn) {
		_, _ = c.Write([]byte("\x16\x03\x03\x00\x10garbage-garbage-"))
		_, _ = io.Copy(io.Discard, c)
	})
	wantOne(t, at(t, garbage, PortOptions{Offline: true}), "wire.tls.handshake", "openssl s_client -connect ")
}
