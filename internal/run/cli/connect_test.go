package cli

import (
	"os"
	"path/filepath"
	"testing"

	"chancery/internal/fault"
)

func TestSecretsThatOthersMayReadAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for mode, refused := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true, 0o644: true} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := ownerOnly(path, "a token"); fault.Is(err, fault.Invalid) != refused {
			t.Errorf("mode %04o: error %v", mode, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := ownerOnly(os.DevNull, "a token"); err != nil {
		t.Errorf("no regular file: %v", err)
	}
}
