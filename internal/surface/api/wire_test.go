package api

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"testing"

	"chancery/internal/fault"
)

func TestEncodePEM(t *testing.T) {
	t.Parallel()
	for n := range 200 {
		der := make([]byte, n)
		rand.Read(der)
		want := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if got := encodePEM("CERTIFICATE", der); !bytes.Equal(got, want) {
			t.Fatalf("%d octets:\n%s\nwant\n%s", n, got, want)
		}
	}
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	offers := []string{"application/json", "application/pkix-crl", "application/x-pem-file"}
	for accept, want := range map[string]string{
		"": "application/json", "*/*": "application/json", "application/*": "application/json", "application/pkix-crl": "application/pkix-crl",
		"application/json;q=0.1, application/x-pem-file;q=0.5": "application/x-pem-file", "*/*;q=0.1, Application/PKIX-CRL": "application/pkix-crl",
		"application/json;q=0, */*": "application/pkix-crl", "text/html": "", "application/json;q=x": "", "application/json;q=7": "",
	} {
		got, err := negotiate(accept, offers...)
		if got != want || (err == nil) == (want == "") || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("Accept %q: %q, %v; want %q", accept, got, err, want)
		}
	}
}

func TestPointersOfWhatHumaFinds(t *testing.T) {
	t.Parallel()
	for location, want := range map[string]string{
		"body": "", "body.names.san[3]": "/names/san/3", "query.limit": "query limit", "header.If-Match": "header If-Match", "path.serial": "path serial",
	} {
		if got := pointer(location); got != want {
			t.Errorf("%s: %q, want %q", location, got, want)
		}
	}
}

func TestLengths(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"0s", "-1d", "90", "y", "d"} {
		if _, err := length(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if d, err := length("1d12h"); err != nil || d.Hours() != 36 {
		t.Errorf("%v, %v", d, err)
	}
}

func TestOnePEMBlockIsWanted(t *testing.T) {
	t.Parallel()
	block := string(encodePEM("CERTIFICATE REQUEST", []byte{1, 2, 3}))
	if der, err := decodeCSR("Subject: CN=x\n" + block); err != nil || len(der) != 3 {
		t.Errorf("text before it: %v, %v", der, err)
	}
	for _, text := range []string{"x", block + block, string(encodePEM("CERTIFICATE", []byte{1}))} {
		if _, err := decodeCSR(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
}
