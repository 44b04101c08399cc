package settings_test

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"chancery/internal/fault"
	"chancery/internal/store/settings"
)

func valid() settings.Settings {
	s := settings.Defaults()
	s.Authority, s.Organization = "0190-authority", "Example Ltd"
	s.Address, s.PublicURL = "https://ca.example.org:8443", "http://pki.example.org"
	return s
}

func TestDefaultsAreValidAndSurviveTheirDocument(t *testing.T) {
	want := valid()
	document, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := settings.Decode(document)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Fatal(diff)
	}
	for _, text := range []string{`"validity":"7d"`, `"gather":"200ms"`, `"idempotency":"7d"`, `"validity":"12h"`} {
		if !strings.Contains(string(document), text) {
			t.Errorf("the document %s lacks %s", document, text)
		}
	}
}

func TestAbsentFieldsHaveDefaults(t *testing.T) {
	got, err := settings.Decode([]byte(`{"authority": "x", "crl": {"validity": "14d"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := settings.Defaults()
	want.Authority, want.CRL.Validity = "x", settings.Duration(14*24*time.Hour)
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Fatal(diff)
	}
	if got, err = settings.Decode([]byte(`{"authority": "x", "expiry": {"thresholds": [9]}}`)); err != nil || !slices.Equal(got.Expiry.Thresholds, []int64{9}) {
		t.Fatalf("thresholds [9] became %v, %v", got, err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for name, c := range map[string]struct{ document, pointer, says string }{
		"unknown":         {`{"authority":"x","crl":{"validty":"7d"}}`, "crl.validty", "is not a setting; here there are: delta_validity"},
		"other case":      {`{"Authority":"x"}`, "Authority", "is not a setting"},
		"twice":           {`{"authority":"x","authority":"y"}`, "authority", "twice"},
		"twice below":     {`{"authority":"x","crl":{"validity":"7d","validity":"8d"}}`, "crl.validity", "twice"},
		"trailing":        {`{"authority":"x"}{}`, "", "follows"},
		"trailing text":   {`{"authority":"x"} y`, "", "follows"},
		"array":           {`[]`, "", "not an object"},
		"scalar section":  {`{"authority":"x","crl":"7d"}`, "crl", "not an object"},
		"object value":    {`{"authority":{"a":1}}`, "authority", "a value is wanted"},
		"number for text": {`{"authority":"x","crl":{"validity":7}}`, "crl.validity", "a string such as 7d"},
		"text for number": {`{"authority":"x","limits":{"names":"many"}}`, "limits.names", "a whole number is wanted"},
		"bad duration":    {`{"authority":"x","crl":{"validity":"a week"}}`, "", "write 90d, 12h"},
		"cut":             {`{"authority":"x"`, "", "not JSON"},
		"empty":           {``, "", "not JSON"},
		"fraction":        {`{"authority":"x","limits":{"names":1.5}}`, "limits.names", "whole number"},
	} {
		_, err := settings.Decode([]byte(c.document))
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.Invalid || !strings.Contains(e.Message, c.says) || c.pointer != "" && e.Pointer != c.pointer {
			t.Errorf("%s: got %v (%+v); want %q at %q", name, err, e, c.says, c.pointer)
		}
	}
	if _, err := settings.Decode(make([]byte, 1<<20)); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a document of 1 MiB: %v", err)
	}
}

// Every rule, one broken at a time; and then all together, each reported.
func TestValidateReportsEveryProblem(t *testing.T) {
	breaks := map[string]func(*settings.Settings){
		"authority":                        func(s *settings.Settings) { s.Authority = "" },
		"organization":                     func(s *settings.Settings) { s.Organization = "a\x00b" },
		"address":                          func(s *settings.Settings) { s.Address = "http://x" },
		"public_url":                       func(s *settings.Settings) { s.PublicURL = "https://x" },
		"durability":                       func(s *settings.Settings) { s.Durability = "some" },
		"crl.validity":                     func(s *settings.Settings) { s.CRL.Validity = 0 },
		"crl.refresh":                      func(s *settings.Settings) { s.CRL.Refresh = 1 },
		"crl.delta_validity":               func(s *settings.Settings) { s.CRL.DeltaValidity = 1 },
		"crl.whole_up_to":                  func(s *settings.Settings) { s.CRL.WholeUpTo = -1 },
		"crl.gather":                       func(s *settings.Settings) { s.CRL.Gather = -1 },
		"crl.offline_validity":             func(s *settings.Settings) { s.CRL.OfflineValidity = math.MaxInt64 },
		"crl.offline_warning":              func(s *settings.Settings) { s.CRL.OfflineWarning = -1 },
		"ocsp.validity":                    func(s *settings.Settings) { s.OCSP.Validity = 0 },
		"ocsp.responder_validity":          func(s *settings.Settings) { s.OCSP.ResponderValidity = 1 },
		"ocsp.cache_entries":               func(s *settings.Settings) { s.OCSP.CacheEntries = -1 },
		"expiry.thresholds":                func(s *settings.Settings) { s.Expiry.Thresholds = []int64{7, 14} },
		"limits.host_rate.per_second":      func(s *settings.Settings) { s.Limits.HostRate.PerSecond = math.NaN() },
		"limits.operator_rate.per_second":  func(s *settings.Settings) { s.Limits.OperatorRate.PerSecond = math.Inf(1) },
		"limits.host_rate.burst":           func(s *settings.Settings) { s.Limits.HostRate.Burst = 0 },
		"limits.public_rate.per_second":    func(s *settings.Settings) { s.Limits.PublicRate.PerSecond = -1 },
		"limits.public_rate.burst":         func(s *settings.Settings) { s.Limits.PublicRate.Burst = 0 },
		"limits.signature_rate.per_second": func(s *settings.Settings) { s.Limits.SignatureRate.PerSecond = 0 },
		"limits.signature_rate.burst":      func(s *settings.Settings) { s.Limits.SignatureRate.Burst = 0 },
		"limits.operator_rate.burst":       func(s *settings.Settings) { s.Limits.OperatorRate.Burst = -5 },
		"limits.duplicates":                func(s *settings.Settings) { s.Limits.Duplicates = 0 },
		"limits.operator_duplicates":       func(s *settings.Settings) { s.Limits.OperatorDuplicates = 0 },
		"limits.duplicate_window":          func(s *settings.Settings) { s.Limits.DuplicateWindow = 0 },
		"limits.pending_requests":          func(s *settings.Settings) { s.Limits.PendingRequests = 0 },
		"limits.csr_bytes":                 func(s *settings.Settings) { s.Limits.CSRBytes = 2 << 20 },
		"limits.names":                     func(s *settings.Settings) { s.Limits.Names = 0 },
		"limits.ocsp_bytes":                func(s *settings.Settings) { s.Limits.OCSPBytes = 0 },
		"retention.idempotency":            func(s *settings.Settings) { s.Retention.Idempotency = 0 },
		"retention.requests":               func(s *settings.Settings) { s.Retention.Requests = 1 },
		"retention.certificates":           func(s *settings.Settings) { s.Retention.Certificates = -1 },
		"retention.crls":                   func(s *settings.Settings) { s.Retention.CRLs = 1 },
		"backup.drill":                     func(s *settings.Settings) { s.Backup.Drill = 1 },
		"retention.audit":                  func(s *settings.Settings) { s.Retention.Audit = 1 },
	}
	fields, err := valid().Fields()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		if breaks[f.Path] == nil {
			t.Errorf("nothing tests the rule of %s", f.Path)
		}
	}
	all := valid()
	for path, change := range breaks {
		s := valid()
		change(&s)
		problems, ok := errors.AsType[settings.Problems](s.Validate())
		if !ok || !slices.ContainsFunc(problems, func(p settings.Problem) bool { return p.Path == path }) {
			t.Errorf("%s broken: %v", path, s.Validate())
		}
		change(&all)
	}
	err = all.Validate()
	problems, _ := errors.AsType[settings.Problems](err)
	for path := range breaks {
		if !slices.ContainsFunc(problems, func(p settings.Problem) bool { return p.Path == path }) {
			t.Errorf("all broken: %s is not reported in %v", path, err)
		}
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("kind of %v", err)
	}
}

// Fields that are each within their bounds and do not fit together.
func TestFieldsMustFitTogether(t *testing.T) {
	for path, change := range map[string]func(*settings.Settings){
		"crl.refresh":             func(s *settings.Settings) { s.CRL.Refresh = s.CRL.Validity },
		"crl.delta_validity":      func(s *settings.Settings) { s.CRL.DeltaValidity = s.CRL.Validity + 1 },
		"crl.offline_warning":     func(s *settings.Settings) { s.CRL.OfflineValidity = s.CRL.OfflineWarning },
		"ocsp.responder_validity": func(s *settings.Settings) { s.OCSP.ResponderValidity = 2*s.OCSP.Validity - 1 },
	} {
		s := valid()
		change(&s)
		problems, _ := errors.AsType[settings.Problems](s.Validate())
		if len(problems) != 1 || problems[0].Path != path {
			t.Errorf("%s: got %v", path, problems)
		}
	}
}

func TestURLs(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://pki.example.org": true, "http://pki.example.org:8080/ca": true, "http://192.0.2.1": true, "http://[2001:db8::1]:80": true,
		"http://xn--bcher-kva.example": true,
		"http://pki.example.org/":      false, "http://u:p@pki.example.org": false, "http://x?": false, "http://x#": false, "http://x?a=b": false,
		"ftp://x": false, "http://": false, "http://x:0": false, "http://x:": false, "http://x:70000": false, "http://bücher.example": false,
		"http://a b": false, "http://-x": false, "http://x/../y": false, "http://x//y": false, "//x": false, "pki.example.org": false,
		"http://x/\x00": false, "http://x/\"": false, "http://" + strings.Repeat("a", 300): false,
	} {
		s := valid()
		s.PublicURL = url
		if err := s.Validate(); (err == nil) != ok {
			t.Errorf("public_url %q: %v", url, err)
		}
	}
	for url, ok := range map[string]bool{
		"https://ca.example.org": true, "https://ca.example.org:8443/": true, "https://[::1]:8443": true,
		"http://ca": false, "https://ca/api": false, "https://": false,
	} {
		s := valid()
		s.Address = url
		if err := s.Validate(); (err == nil) != ok {
			t.Errorf("address %q: %v", url, err)
		}
	}
}

func TestWith(t *testing.T) {
	s := valid()
	s.Version = 4
	next, err := s.With("crl.validity", "14d")
	if err != nil || next.CRL.Validity.String() != "14d" || next.Version != 4 || s.CRL.Validity.String() != "7d" {
		t.Fatalf("got %+v, %v", next, err)
	}
	if next, err = s.With("expiry.thresholds", "60, 30,0"); err != nil || !slices.Equal(next.Expiry.Thresholds, []int64{60, 30, 0}) {
		t.Fatalf("got %+v, %v", next, err)
	}
	if next, err = s.With("limits.host_rate.per_second", "0.5"); err != nil || next.Limits.HostRate.PerSecond != 0.5 {
		t.Fatalf("got %+v, %v", next, err)
	}
	if next, err = s.With("public_url", ""); err != nil || next.PublicURL != "" {
		t.Fatalf("got %+v, %v", next, err)
	}
	for path, text := range map[string]string{
		"": "x", "crl": "x", "crl.": "x", "crl.validity.days": "1", "nothing": "1", "CRL.validity": "7d",
		"crl.validity": "soon", "limits.names": "many", "limits.burst": "1", "expiry.thresholds": "", "version": "9", "durability": "fast",
	} {
		if _, err := s.With(path, text); !fault.Is(err, fault.Invalid) {
			t.Errorf("With(%q, %q): %v", path, text, err)
		}
	}
}

func TestDurationText(t *testing.T) {
	for text, want := range map[string]string{
		"7d": "7d", "1d12h": "1d12h", "36h": "1d12h", "1y": "365d", "2w": "14d", "90m": "1h30m", "0s": "0s", "0d": "0s", "200ms": "200ms", "1d0s": "1d", "10m": "10m", "20h": "20h",
	} {
		d, err := settings.ParseDuration(text)
		if err != nil || d.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, d, err, want)
		}
	}
	for _, text := range []string{"", "d", "-1d", "+7d", "1.5d", "7", "7 d", "1d-2h", "-5m", "99999999999d", "1000000d", "9999999h", "1d1d", "7d7"} {
		if d, err := settings.ParseDuration(text); err == nil {
			t.Errorf("%q was read as %s", text, d)
		}
	}
}

func FuzzDecode(f *testing.F) {
	document, err := json.Marshal(valid())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(document)
	for _, seed := range []string{`{}`, `{"authority":"x","expiry":{"thresholds":null}}`, `{"crl":{"validity":"1d1h"}}`, `[[[[`, `{"a":{"a":{"a":`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		s, err := settings.Decode(document)
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.TooLarge {
				t.Fatalf("a document was refused as %s: %v", kind, err)
			}
			return
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		same, err := settings.Decode(again)
		if err != nil {
			t.Fatalf("what was read is not valid when it is written: %v\n%s", err, again)
		}
		if diff := cmp.Diff(s, same); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestCorpusIsThere(t *testing.T) {
	files, err := os.ReadDir("testdata/fuzz/FuzzDecode")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files of corpus, %v", len(files), err)
	}
}
