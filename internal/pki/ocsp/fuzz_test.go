package ocsp

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzParseRequest: whatever is read is within the limits, and its CertIDs stand in the request octet for octet.
func FuzzParseRequest(f *testing.F) {
	if seeds, err := filepath.Glob("testdata/fuzz/FuzzParseRequest/*"); err != nil || len(seeds) < 4 {
		f.Fatalf("the corpus has %d seeds, %v", len(seeds), err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		r, err := ParseRequest(der)
		if err != nil {
			return
		}
		if len(r.CertIDs) == 0 || len(r.CertIDs) > MaxCertIDs || len(r.Nonce) > MaxNonce || len(der) > MaxRequest {
			t.Fatalf("over the limits: %d certificates, nonce of %d", len(r.CertIDs), len(r.Nonce))
		}
		for _, id := range r.CertIDs {
			again, err := readCertID(id.Raw)
			if err != nil || !bytes.Contains(der, id.Raw) || again.Serial.Cmp(id.Serial) != 0 {
				t.Fatalf("CertID %x: %v", id.Raw, err)
			}
		}
	})
}

// TestFuzzSeedsAreRead keeps the corpus worth something: a fuzzer whose seeds are all refused starts from nothing.
func TestFuzzSeedsAreRead(t *testing.T) {
	seeds, err := filepath.Glob("testdata/*.req")
	if err != nil || len(seeds) < 3 {
		t.Fatalf("%d requests in testdata, %v", len(seeds), err)
	}
	for _, name := range seeds {
		der, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRequest(der); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
