package main

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"
)

// TestFindsWhatEndsOtherGoroutines fails for each line of testdata that says "want" and is not found, and for each found that does
// not say it.
func TestFindsWhatEndsOtherGoroutines(t *testing.T) {
	if results := analysistest.Run(t, analysistest.TestData(), analyzer(), "a"); len(results) != 1 || len(results[0].Diagnostics) < 12 {
		t.Fatalf("only these packages were looked at, or too little was found: %v", results)
	}
}
