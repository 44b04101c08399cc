package crl

import (
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// FuzzParse: whatever is read as a CRL has entries that can be looked up, and that survive being encoded again.
func FuzzParse(f *testing.F) {
	if seeds, err := filepath.Glob("testdata/fuzz/FuzzParse/*"); err != nil || len(seeds) < 4 {
		f.Fatalf("the corpus has %d seeds, %v", len(seeds), err)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		list, err := Parse(der)
		if err != nil {
			return
		}
		n := 0
		for e, err := range list.Entries() {
			if err != nil {
				t.Fatalf("Parse passed and an entry does not: %v", err)
			}
			n++
			encoded, err := EncodeEntry(e)
			if err != nil {
				continue // a negative or very long serial, which is read and not made
			}
			if back, err := ParseEntry(encoded); err != nil || !sameEntry(back, e) {
				t.Fatalf("%+v became %+v, %v", e, back, err)
			}
			if _, ok := list.Lookup(e.Serial); !ok {
				t.Fatalf("serial %x is not found", e.Serial)
			}
		}
		if n != list.Count {
			t.Fatalf("%d entries, and Count is %d", n, list.Count)
		}
		if list.CheckSuccessor(list) == nil {
			t.Fatal("a list follows itself")
		}
		list.Lookup(big.NewInt(1))
	})
}

// TestFuzzSeedsAreRead keeps the corpus worth something: a fuzzer whose seeds are all refused starts from nothing.
func TestFuzzSeedsAreRead(t *testing.T) {
	seeds, err := filepath.Glob("testdata/*.crl")
	if err != nil || len(seeds) < 3 {
		t.Fatalf("%d lists in testdata, %v", len(seeds), err)
	}
	for _, name := range seeds {
		der, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(der); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		seed := filepath.Join("testdata/fuzz/FuzzParse", strings.TrimSuffix(filepath.Base(name), ".crl"))
		if text, err := os.ReadFile(seed); err != nil || string(text) != "go test fuzz v1\n[]byte("+strconv.Quote(string(der))+")\n" {
			t.Errorf("%s is not the seed of %s: %v", seed, name, err)
		}
	}
}
