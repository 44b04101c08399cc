package keys_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/keys"
)

var passphrase = []byte("correct horse battery staple")

func generate(t testing.TB, a keyfile.Algorithm) crypto.Signer {
	t.Helper()
	key, err := keyfile.Generate(a, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestNodeKeyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "node.key")
	if _, err := keys.LoadNodeKey(path); !fault.Is(err, fault.NotFound) {
		t.Fatalf("no file: %v", err)
	}
	made, err := keys.CreateNodeKey(path)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Stat(path)
	if err != nil || stat.Mode() != 0o600 {
		t.Fatalf("mode %v, %v", stat.Mode(), err)
	}
	if _, err := keys.CreateNodeKey(path); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a key was overwritten: %v", err)
	}
	read, err := keys.LoadNodeKey(path)
	if err != nil || read.Public() != made.Public() || !strings.HasPrefix(read.Public(), "age1") {
		t.Fatalf("read %v, %v", read, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if identities, err := age.ParseIdentities(f); err != nil || len(identities) != 1 {
		t.Fatalf("the file is no age identity file: %v", err)
	}
}

func TestNodeKeyFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	key, err := keys.CreateNodeKey(good)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		write("group", text, 0o640), write("world", text, 0o604), write("writable", text, 0o620), link, dir,
		write("empty", nil, 0o600), write("two", append(text, text...), 0o600), write("cut", text[:len(text)-10], 0o600),
		write("public", []byte(key.Public()), 0o600), write("large", bytes.Repeat([]byte("#\n"), 100_000), 0o600),
	} {
		_, err := keys.LoadNodeKey(path)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
		if err != nil && strings.Contains(err.Error(), "AGE-SECRET-KEY-1"+key.Secret()[16:24]) {
			t.Errorf("%s: the refusal has the key in it", path)
		}
	}
}

func TestRecoveryFile(t *testing.T) {
	t.Parallel()
	made, err := keys.GenerateRecovery()
	if err != nil {
		t.Fatal(err)
	}
	file, err := made.Seal(passphrase) // once at its full cost
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(file, []byte("-----BEGIN AGE ENCRYPTED FILE-----\n")) || bytes.Contains(file, []byte("SECRET")) {
		t.Fatalf("the file is %s", file)
	}
	read, err := keys.OpenRecovery(file, passphrase)
	if err != nil || read.Public() != made.Public() || read.Secret() != made.Secret() {
		t.Fatalf("read %v, %v", read, err)
	}
	cheap, err := made.SealAt(passphrase, 10)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, passphrase []byte }{
		"wrong passphrase": {cheap, []byte("correct horse battery stapler")},
		"no passphrase":    {cheap, nil},
		"no file":          {nil, passphrase},
		"cut":              {cheap[:len(cheap)-60], passphrase},
		"damaged":          {bytes.Replace(cheap, []byte("A"), []byte("B"), 1), passphrase},
		"garbage":          {[]byte("-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n-----END AGE ENCRYPTED FILE-----\n"), passphrase},
	} {
		if _, err := keys.OpenRecovery(c.file, c.passphrase); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, weak := range []string{"", "elevenchars", "line one of\ntwo lines", "not \xff utf-8 at all", "nul \x00 in the middle"} {
		if _, err := made.SealAt([]byte(weak), 10); !fault.Is(err, fault.Invalid) {
			t.Errorf("passphrase %q: %v", weak, err)
		}
	}
}

// The recovery key opens what was encrypted to it, as a backup is, and does not show itself where age's own type would.
func TestRecoveryKeyIsAnIdentity(t *testing.T) {
	t.Parallel()
	made, err := keys.GenerateRecovery()
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := age.ParseX25519Recipient(made.Public())
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("backup")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(&sealed, made.Identity())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "backup" {
		t.Fatalf("got %q, %v", got, err)
	}
	if printed := fmt.Sprintf("%v %+v %s %#v", made.Identity(), made.Identity(), made.Identity(), made.Identity()); strings.Contains(printed, "SECRET") {
		t.Fatalf("printed %s", printed)
	}
}

// An operator who has lost everything but the file and the passphrase needs no program of ours.
func TestOfflineKeyIsReadByOpenSSL(t *testing.T) {
	t.Parallel()
	for _, algorithm := range []keyfile.Algorithm{keyfile.ECDSAP384, keyfile.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) {
			key := generate(t, algorithm)
			file, err := keys.SealOffline(key, passphrase)
			if err != nil {
				t.Fatal(err)
			}
			if block, _ := pem.Decode(file); block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
				t.Fatalf("the file is %s", file)
			}
			dir := t.TempDir()
			path, pass := filepath.Join(dir, "root.key"), filepath.Join(dir, "pass")
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(pass, append(passphrase, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := exec.Command("openssl", "pkey", "-in", path, "-passin", "file:"+pass, "-pubout", "-outform", "DER").Output()
			if err != nil {
				t.Fatalf("openssl: %v", err)
			}
			want, err := x509.MarshalPKIXPublicKey(key.Public())
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("openssl reads the key %x, want %x", got, want)
			}
			opened, err := keys.OpenOffline(file, passphrase)
			if err != nil {
				t.Fatal(err)
			}
			if spki, err := x509.MarshalPKIXPublicKey(opened.Public()); err != nil || !bytes.Equal(spki, want) {
				t.Fatalf("opened another key: %v", err)
			}
		})
	}
	key := generate(t, keyfile.ECDSAP256)
	if _, err := keys.SealOffline(key, []byte("short")); !fault.Is(err, fault.Invalid) {
		t.Fatalf("a short passphrase: %v", err)
	}
	for work, good := range map[int]bool{0: false, 8: false, 9: true, 21: false} {
		file, err := keys.SealOfflineAt(key, passphrase, work)
		if good != (err == nil) || !good && !fault.Is(err, fault.Invalid) {
			t.Errorf("work %d: %v", work, err)
		}
		if good {
			if _, err := keys.OpenOffline(file, passphrase); err != nil {
				t.Errorf("sealed at work %d: %v", work, err)
			}
		}
	}
}

// TestNodeKeyOfTheServicesUser: root, who runs a command on a node's machine, takes the key of the user to whom the data directory belongs, and
// nobody else's.
func TestNodeKeyOfTheServicesUser(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "node.key")
	if _, err := keys.CreateNodeKey(path); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // then there is none but its own
		if _, err := keys.LoadNodeKey(path); err != nil {
			t.Error(err)
		}
		return
	}
	for _, owners := range []struct {
		dir, key int
		refused  bool
	}{{0, 0, false}, {65534, 65534, false}, {65534, 0, false}, {0, 65534, true}, {65534, 65533, true}} {
		if err := errors.Join(os.Chown(dir, owners.dir, -1), os.Chown(path, owners.key, -1)); err != nil {
			t.Fatal(err)
		}
		_, err := keys.LoadNodeKey(path)
		if owners.refused != (err != nil) || owners.refused && !strings.Contains(err.Error(), "belongs to user") {
			t.Errorf("the directory is of %d, and the key of %d: %v", owners.dir, owners.key, err)
		}
	}
}
