package cert

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFuzzSeeds: the committed seeds are there, so that a plain test run feeds the parsers what fuzzing found.
func TestFuzzSeeds(t *testing.T) {
	for _, target := range []string{"FuzzParseCSR", "FuzzParseGeneralNames", "FuzzParseName", "FuzzParseNameDER", "FuzzParseProfile"} {
		files, err := os.ReadDir(filepath.Join("testdata/fuzz", target))
		if err != nil || len(files) < 5 {
			t.Errorf("%s: %d seeds, %v", target, len(files), err)
		}
	}
}
