package demo

import (
	"bytes"
	"strings"
	"testing"
)

func TestStory(t *testing.T) {
	var out bytes.Buffer
	if err := Run(t.Context(), Options{Out: &out, Version: "test"}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, sentence := range []string{"says: good.", "does not list it", "OCSP says: revoked, keyCompromise", "lists it, ", "verify: audit:", "All was as told."} {
		if !strings.Contains(out.String(), sentence) {
			t.Errorf("the story lacks %q:\n%s", sentence, out.String())
		}
	}
}
