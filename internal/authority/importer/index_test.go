package importer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/crl"
)

func TestMalformedIndexLines(t *testing.T) {
	const v = "V\t301231235959Z\t\t01\tunknown\t/CN=a\n"
	for text, want := range map[string]string{
		"V\t301231235959Z\t\t01\tunknown\n":                                     "line 1: it has 5 fields",
		v + "X\t301231235959Z\t\t02\tunknown\t/CN=a\n":                          `line 2: the status "X"`,
		"V\t3012\t\t01\tunknown\t/CN=a\n":                                       "expiry date",
		"V\t301331235959Z\t\t01\tunknown\t/CN=a\n":                              "expiry date",
		"V\t301231235959Z\t201231235959Z\t01\tunknown\t/CN=a\n":                 "status is V and there is a revocation",
		"R\t301231235959Z\t\t01\tunknown\t/CN=a\n":                              "revocation date",
		"R\t301231235959Z\t201231235959Z,nosuch\t01\tunknown\t/CN=a\n":          `reason "nosuch"`,
		"R\t301231235959Z\t201231235959Z,keyTime\t01\tunknown\t/CN=a\n":         "compromise time",
		"V\t301231235959Z\t\t-1\tunknown\t/CN=a\n":                              "serial",
		"V\t301231235959Z\t\t\tunknown\t/CN=a\n":                                "serial",
		"V\t301231235959Z\t\t" + strings.Repeat("F", 65) + "\tunknown\t/CN=a\n": "serial",
		v + "\n# comment\n" + v:                                                 "line 4: serial 01 is on line 1 as well",
		strings.Repeat("A", maxIndexLine+1):                                     "longer than",
		"V\nV\n":                                                                "line 1: it has 1 fields, not 6; line 2",
	} {
		_, err := parseIndex(strings.NewReader(text))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
	lines, err := parseIndex(strings.NewReader(strings.TrimSuffix(v, "\n") + "\r\n"))
	if err != nil || len(lines) != 1 || lines[0].Subject != "CN=a" {
		t.Errorf("CRLF: %v %v", lines, err)
	}
}

func TestRevocationForms(t *testing.T) {
	for text, want := range map[string]crl.Reason{
		"201231235959Z": crl.Unspecified, "20201231235959Z,unspecified": crl.Unspecified, "201231235959Z,KEYCOMPROMISE": crl.KeyCompromise,
		"201231235959Z,CACompromise": crl.CACompromise, "201231235959Z,affiliationChanged": crl.AffiliationChanged,
		"201231235959Z,superseded": crl.Superseded, "201231235959Z,cessationOfOperation": crl.CessationOfOperation,
		"201231235959Z,certificateHold": crl.CertificateHold, "201231235959Z,holdInstruction,holdInstructionNone": crl.CertificateHold,
		"201231235959Z,keyTime,20200101000000Z": crl.KeyCompromise, "201231235959Z,CAkeyTime,20200101000000Z": crl.CACompromise,
		"201231235959Z,removeFromCRL": crl.Unspecified,
	} {
		r, err := parseRevocation(text)
		if err != nil || r.Reason != want || r.RevokedAt.Year() != 2020 || r.InvalidityDate.IsZero() == strings.Contains(text, "Time,") {
			t.Errorf("%s: %+v %v", text, r, err)
		}
	}
}

func TestOneLineNames(t *testing.T) {
	for line, want := range map[string]string{
		"/C=DE/O=a/b/CN=x":             "CN=x,O=a/b,C=DE",
		`/CN=\xC3\x9Cb, "q"`:           `CN=Üb\, \"q\"`,
		"/CN=a=b":                      "CN=a=b",
		"/1.2.3.4=x":                   "1.2.3.4=#130178",
		"/nosuchtype=x":                "/nosuchtype=x",
		`/CN=\xff`:                     `/CN=\xff`,
		"":                             "",
		"plain":                        "plain",
		"/emailAddress=a@b.test/CN=/x": "CN=/x,emailAddress=a@b.test",
	} {
		if got := rfc4514(line); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// What is read as an index has unique serials and revocations with dates.
func FuzzIndex(f *testing.F) {
	entries, err := os.ReadDir(filepath.Join("testdata", "fuzz", f.Name()))
	if err != nil || len(entries) < 2 {
		f.Fatalf("the corpus has %d files: %v", len(entries), err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines, err := parseIndex(strings.NewReader(text))
		seen := make(map[string]bool)
		for _, l := range lines {
			if seen[l.Serial.String()] || l.Serial.Sign() < 0 || l.NotAfter.IsZero() || l.Revocation != nil && l.Revocation.RevokedAt.IsZero() {
				t.Fatalf("line %d: %+v", l.number, l)
			}
			seen[l.Serial.String()] = true
		}
		if err != nil && len(lines) > 0 {
			t.Fatal("lines beside an error")
		}
	})
}
