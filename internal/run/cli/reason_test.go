package cli

import (
	"strings"
	"testing"
)

// TestReasonAsANumber takes the numbers of RFC 5280 5.3.1, which openssl and others write.
func TestReasonAsANumber(t *testing.T) {
	for text, want := range map[string]string{
		"0": "unspecified", "1": "keyCompromise", "2": "cACompromise", "3": "affiliationChanged", "4": "superseded",
		"5": "cessationOfOperation", "6": "certificateHold", "9": "privilegeWithdrawn", "10": "aACompromise",
		"superseded": "superseded", "7": "7", "8": "8", "": "",
	} {
		if got := reasonName(text); got != want {
			t.Errorf("reason %q is %q, want %q", text, got, want)
		}
	}
	if len(strings.Split(reasons, ",")) != len(strings.Split(reasonNumbers, ",")) {
		t.Error("a reason has no number")
	}
}
