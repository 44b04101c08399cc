package publish_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/ocsp"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
	"chancery/internal/surface/problem"
	"chancery/internal/surface/publish"
)

func TestCRLsAreServedInBothForms(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{Delta: true})
		two, _, err := o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: "parts", Parent: "root", Subject: "CN=Parts,O=Fleet", CRL: ca.CRLMode{Partitions: 2}})
		must(t, err)
		o.ready()
		serve(o, "/crl/one.crl", "/crl/one/delta.crl")
		o.issuer = two
		serve(o, "/crl/parts.crl")
	})
}

// serve revokes a certificate of the office's issuer and looks for it at paths, and where the certificate itself says.
func serve(o *office, paths ...string) {
	o.t.Helper()
	c := o.issue("gone.example")
	o.revoke(c, crl.KeyCompromise)
	named, ok := strings.CutPrefix(c.CRLDistributionPoints[0], o.server.URL)
	if !ok {
		o.t.Fatalf("the certificate names %v", c.CRLDistributionPoints)
	}
	for _, path := range append(paths, named) {
		o.until(path+" has the revocation", func() bool {
			code, _, der := o.get(path, nil)
			if code != http.StatusOK {
				return false
			}
			list, err := crl.Parse(der)
			must(o.t, err)
			must(o.t, list.CheckIssuer(o.issuer.Certificate))
			_, ok := list.Lookup(c.SerialNumber)
			return ok
		})
		_, header, der := o.get(path, nil)
		if header.Get("Content-Type") != "application/pkix-crl" || header.Get("ETag") == "" || !strings.Contains(header.Get("Cache-Control"), "max-age=") {
			o.t.Errorf("%s: header %v", path, header)
		}
		_, header, text := o.get(strings.TrimSuffix(path, ".crl")+".pem", nil)
		block, rest := pem.Decode(text)
		if block == nil || len(rest) > 0 || header.Get("Content-Type") != "application/x-pem-file" || !bytes.Equal(block.Bytes, der) {
			o.t.Errorf("%s as PEM: %v\n%s", path, header, text)
		}
	}
}

func TestConditionalRequests(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	for _, path := range []string{"/crl/one.crl", "/crl/one.pem", "/ca/one.cer", "/ca/one.pem", "/ca/one.p7c", o.ocspPath(o.issue("a.example"))} {
		wrong, replaced := o.conditions(path)
		if replaced { // a new period of OCSP answers began meanwhile, and none does so soon again
			wrong, _ = o.conditions(path)
		}
		for _, text := range wrong {
			t.Errorf("%s, %s", path, text)
		}
	}
}

// conditions tells what is wrong with the answers to requests that say what is known already, and whether what is served was replaced
// meanwhile.
func (o *office) conditions(path string) (wrong []string, replaced bool) {
	o.t.Helper()
	tell := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	code, header, body := o.get(path, nil)
	if code != http.StatusOK || len(body) == 0 {
		o.t.Fatalf("%s: %d %s", path, code, body)
	}
	if header.Get("Last-Modified") == "" {
		o.until("it has settled", func() bool { _, header, body = o.get(path, nil); return header.Get("Last-Modified") != "" })
	}
	tag, modified := header.Get("ETag"), header.Get("Last-Modified")
	for what, c := range map[string]struct {
		method, name, value string
		code                int
	}{
		"same tag":      {"GET", "If-None-Match", tag, 304},
		"weak tag":      {"GET", "If-None-Match", `"x", W/` + tag, 304},
		"other tag":     {"GET", "If-None-Match", `"x"`, 200},
		"not modified":  {"GET", "If-Modified-Since", modified, 304},
		"modified":      {"GET", "If-Modified-Since", "Mon, 01 Jan 2001 00:00:00 GMT", 200},
		"head":          {"HEAD", "Accept", "*/*", 200},
		"head same tag": {"HEAD", "If-None-Match", tag, 304},
		"range":         {"GET", "Range", "bytes=0-3", 200},
	} {
		code, h, got := o.do(c.method, path, http.Header{c.name: {c.value}}, nil)
		if code != c.code || c.method == "GET" && code == 200 && !bytes.Equal(got, body) {
			tell("%s: %d with %d octets", what, code, len(got))
		}
		if code == 304 && (h.Get("ETag") != tag || h.Get("Content-Type") != "") {
			tell("%s: header %v", what, h)
		}
		if c.method == "HEAD" && code == 200 && h.Get("Content-Length") != header.Get("Content-Length") {
			tell("HEAD says %s octets", h.Get("Content-Length"))
		}
	}
	_, header, _ = o.get(path, nil)
	return wrong, header.Get("ETag") != tag
}

// TestAListReplacedWithinItsSecondIsNotTakenForTheOther: If-Modified-Since got 304 for it, since both had the same date.
func TestAListReplacedWithinItsSecondIsNotTakenForTheOther(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.stop()
	dated := func(at time.Time) (code int, header http.Header) {
		must(t, o.db.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE crl SET this_update = $1`, db.Micros(at))
			return err
		}))
		code, header, _ = o.get("/crl/one.crl", http.Header{"If-Modified-Since": {at.UTC().Format(http.TimeFormat)}})
		return code, header
	}
	if code, header := dated(time.Now().Add(time.Minute)); code != http.StatusOK || header.Get("Last-Modified") != "" {
		t.Errorf("a list that may be replaced within the second: %d %v", code, header)
	}
	if code, header := dated(time.Now().Add(-time.Minute)); code != http.StatusNotModified || header.Get("Last-Modified") == "" {
		t.Errorf("a list that has settled: %d %v", code, header)
	}
	own := time.Now().UTC().Format(http.TimeFormat)
	if code, _, _ := o.get("/crl/one.crl", http.Header{"If-Modified-Since": {own}}); code != http.StatusOK {
		t.Errorf("a date of the reader's own clock: %d", code)
	}
}

func (o *office) ocspPath(c *x509.Certificate) string {
	request, err := xocsp.CreateRequest(c, o.issuer.Certificate, nil)
	must(o.t, err)
	return "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(request))
}

func TestWhatIsNotThere(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	for path, want := range map[string]int{
		"/crl/two.crl": 404, "/crl/one.txt": 404, "/crl/one": 404, "/crl/.crl": 404, "/crl/one/0.crl": 404, "/crl/one/delta.crl": 404,
		"/crl/one/complete.crl": 404, "/crl/one/-1.crl": 404, "/crl/one/007.crl": 404, "/ca/two.cer": 404, "/ca/one.key": 404, "/": 404,
		"/crl/../../etc/passwd": 307, "/crl/one%00.crl": 404, "/crl/%2e%2e%2fone.crl": 404,
	} {
		if code, header, body := o.get(path, nil); code != want || bytes.Contains(body, []byte("internal")) {
			t.Errorf("%s: %d %v %s", path, code, header, body)
		}
	}
	for _, method := range []string{"PUT", "DELETE", "POST"} {
		if code, _, _ := o.do(method, "/crl/one.crl", nil, nil); code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, code)
		}
	}
}

func TestCertificates(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	leaf := o.issue("a.example")
	if got := leaf.IssuingCertificateURL; len(got) != 1 || got[0] != o.server.URL+"/ca/one.cer" {
		t.Fatalf("caIssuers %v", got)
	}
	_, header, der := o.get("/ca/one.cer", nil)
	if !bytes.Equal(der, o.issuer.Certificate.Raw) || header.Get("Content-Type") != "application/pkix-cert" {
		t.Errorf("%v: %x", header, der)
	}
	_, header, p7c := o.get("/ca/one.p7c", nil)
	must(t, os.WriteFile(filepath.Join(o.dir, "one.p7c"), p7c, 0o600))
	out, err := o.program("openssl", "pkcs7", "-inform", "DER", "-in", "one.p7c", "-print_certs")
	must(t, err)
	if strings.Count(out, "BEGIN CERTIFICATE") != 2 || !strings.Contains(out, "Issuer one") || !strings.HasPrefix(header.Get("Content-Type"), "application/pkcs7-mime") {
		t.Errorf("%v: openssl reads\n%s", header, out)
	}
	before := o.issuer.Certificate
	renewed, err := o.ca.RenewIssuer(t.Context(), o.by, ca.RenewSpec{Issuer: "one", Validity: 12 * 365 * 24 * time.Hour})
	must(t, err)
	_, _, p7c = o.get("/ca/one.p7c", nil)
	for _, c := range []*x509.Certificate{before, renewed.Certificate, o.root.Certificate} {
		if bytes.Count(p7c, c.Raw) != 1 {
			t.Errorf("after the renewal, one.p7c has certificate %x %d times", c.SerialNumber, bytes.Count(p7c, c.Raw))
		}
	}
	if _, _, der := o.get("/ca/one.cer", nil); !bytes.Equal(der, renewed.Certificate.Raw) {
		t.Error("one.cer is not the new certificate")
	}
}

func TestOCSPOverHTTP(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{})
		o.ready()
		good, bad := o.issue("good.example"), o.issue("bad.example")
		if got := good.OCSPServer; len(got) != 1 || got[0] != o.server.URL+"/ocsp" {
			t.Fatalf("the certificate names %v", got)
		}
		if o.status(bad, crypto.SHA1) != xocsp.Good {
			t.Fatal("a certificate that was just issued is not good")
		}
		o.revoke(bad, crl.Superseded)
		for _, hash := range ocsp.Hashes() {
			o.until("it is revoked by "+hash.String(), func() bool { return o.status(bad, hash) == xocsp.Revoked })
			if o.status(good, hash) != xocsp.Good {
				t.Errorf("the other one is not good by %v", hash)
			}
		}
		bare := "/ocsp/" + strings.TrimRight(base64.StdEncoding.EncodeToString(request(t, good, o.issuer.Certificate)), "=")
		code, header, body := o.get(o.ocspPath(good), nil)
		_, _, again := o.get(bare, nil)
		if !bytes.Equal(again, body) { // a new period of answers may have begun
			code, header, body = o.get(o.ocspPath(good), nil)
			_, _, again = o.get(bare, nil)
		}
		if !bytes.Equal(again, body) {
			t.Error("bare base64 is not understood, or the answer was not kept")
		}
		response, err := xocsp.ParseResponseForCert(body, good, o.issuer.Certificate)
		must(t, err)
		age, _ := time.ParseDuration(strings.Split(strings.TrimPrefix(header.Get("Cache-Control"), "public, max-age="), ",")[0] + "s")
		if left := time.Until(response.NextUpdate); code != 200 || age > left+time.Second || age < left-time.Minute || header.Get("Expires") != response.NextUpdate.Format(http.TimeFormat) {
			t.Errorf("%d %v: nextUpdate %v", code, header, response.NextUpdate)
		}
		never := *good
		never.SerialNumber = response.SerialNumber.Add(response.SerialNumber, response.SerialNumber)
		if o.status(&never, crypto.SHA256) != xocsp.Unknown {
			t.Error("a serial that was never issued is not unknown")
		}
		_, header, _ = o.get(o.ocspPath(&never), nil)
		if header.Get("Cache-Control") != "no-store" {
			t.Errorf("unknown may be kept: %v", header)
		}
	})
}

func request(t testing.TB, c, issuer *x509.Certificate) []byte {
	t.Helper()
	der, err := xocsp.CreateRequest(c, issuer, nil)
	must(t, err)
	return der
}

func TestOCSPErrors(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	c := o.issue("a.example")
	foreign := *o.issuer.Certificate
	foreign.RawSubject = append([]byte{}, foreign.RawSubject...)
	foreign.RawSubject[len(foreign.RawSubject)-1] ^= 1
	for what, try := range map[string]struct {
		body []byte
		want ocsp.ResponseStatus
	}{
		"garbage":        {[]byte("hello"), ocsp.MalformedRequest},
		"empty":          {nil, ocsp.MalformedRequest},
		"cut":            {request(t, c, o.issuer.Certificate)[:40], ocsp.MalformedRequest},
		"too large":      {make([]byte, 1<<20), ocsp.MalformedRequest},
		"another issuer": {request(t, c, &foreign), ocsp.Unauthorized},
	} {
		code, header, body := o.post(try.body)
		if code != 200 || !bytes.Equal(body, ocsp.ErrorResponse(try.want)) || header.Get("Content-Type") != ocsp.ResponseType || header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %x", what, code, header, body)
		}
	}
	for _, path := range []string{"/ocsp/!!!", "/ocsp/AAAA", "/ocsp/" + strings.Repeat("A", 5000)} {
		if _, _, body := o.get(path, nil); !bytes.Equal(body, ocsp.ErrorResponse(ocsp.MalformedRequest)) {
			t.Errorf("%.30s: %x", path, body)
		}
	}
	if code, _, _ := o.get("/ocsp", nil); code != http.StatusMethodNotAllowed {
		t.Errorf("GET without a request: %d", code)
	}
}

// TestAListPastItsEndIsNotServed: nobody may take it for a fresh one, and OCSP goes on.
func TestAListPastItsEndIsNotServed(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{})
		o.ready()
		o.stop()
		must(t, d.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE crl SET next_update = $1`, db.Micros(time.Now().Add(-time.Minute)))
			return err
		}))
		code, header, body := o.get("/crl/one.crl", nil)
		if code != http.StatusServiceUnavailable || header.Get("Content-Type") != problem.ContentType || !strings.Contains(string(body), "ended on") ||
			header.Get("Retry-After") == "" || header.Get("Cache-Control") != "no-store" || header.Get("Expires") != "" {
			t.Errorf("%d %v: %s", code, header, body)
		}
		if o.status(o.issue("late.example"), crypto.SHA1) != xocsp.Good {
			t.Error("OCSP ended with the loops")
		}
	})
}

// TestAListThatIsDamagedIsBrokenOff: the reader must not take a part for the whole.
func TestAListThatIsDamagedIsBrokenOff(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	o.stop()
	must(t, o.db.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(t.Context(), `DELETE FROM crl_chunk`)
		return err
	}))
	response, err := http.Get(o.server.URL + "/crl/one.crl")
	if err != nil {
		return // broken off before the header was out
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err == nil {
		t.Errorf("%d octets were served as if they were all", len(body))
	}
}

// TestOneStrangerCannotTakeAllSignatures: an address that asks with ever new nonces had every one of them signed, and one that
// asks for anything at all was never sent away.
func TestOneStrangerCannotTakeAllSignatures(t *testing.T) {
	o := newOffice(t, pkitest.Open(t, db.Options{URL: pkitest.URL(t, db.SQLite)}), ca.CRLMode{})
	o.ready()
	c := o.issue("a.example")
	o.until("there is an answer", func() bool { return o.status(c, crypto.SHA256) == xocsp.Good })
	cached := request(t, c, o.issuer.Certificate)
	period := func() time.Time { return time.Now().Add(-10 * time.Second).Truncate(5 * time.Minute) } // within which it is signed once
	begun := period()
	if code, _, _ := o.post(cached); code != http.StatusOK {
		t.Fatalf("before: %d", code)
	}
	o.limit(func(l *settings.Limits) { l.SignatureRate = settings.Rate{PerSecond: 0.01, Burst: 3} })
	never, signed := *c, 0
	for i := range 10 {
		never.SerialNumber = big.NewInt(int64(i + 1)) // what was never issued is kept for nobody
		code, header, body := o.post(request(t, &never, o.issuer.Certificate))
		if code == http.StatusOK {
			signed++
			continue
		}
		if code != http.StatusTooManyRequests || header.Get("Retry-After") == "" || !bytes.Equal(body, ocsp.ErrorResponse(ocsp.TryLater)) {
			t.Fatalf("%d %v %x", code, header, body)
		}
	}
	if signed != 3 {
		t.Errorf("%d answers were signed", signed)
	}
	if code, _, body := o.post(cached); period() == begun && (code != http.StatusOK || bytes.Equal(body, ocsp.ErrorResponse(ocsp.TryLater))) {
		t.Errorf("an answer that is at hand: %d %x", code, body)
	}
	o.limit(func(l *settings.Limits) { l.PublicRate = settings.Rate{PerSecond: 0.01, Burst: 4} })
	codes := map[int]int{}
	for range 8 {
		code, header, _ := o.get("/crl/one.crl", nil)
		if codes[code]++; code == http.StatusTooManyRequests && header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	}
	if codes[http.StatusOK] != 4 || codes[http.StatusTooManyRequests] != 4 {
		t.Errorf("statuses %v", codes)
	}
	behind := publish.New(o.service, o.ca, o.config, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")})
	for range 8 {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/ca/one.cer", nil)
		r.RemoteAddr = "127.0.0.1:1"
		if behind.ServeHTTP(w, r); w.Code != http.StatusOK {
			t.Errorf("by way of a trusted proxy: %d", w.Code)
		}
	}
}

// limit changes the limits in the settings.
func (o *office) limit(change func(*settings.Limits)) {
	o.t.Helper()
	set, err := o.config.Get(o.t.Context())
	must(o.t, err)
	next := *set
	change(&next.Limits)
	_, err = o.config.Set(o.t.Context(), "test", next, once.Call{})
	must(o.t, err)
}
