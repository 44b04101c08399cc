package loop

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// aPair is a key and its certificate, as PEM.
func aPair(t *testing.T) (key, certificate []byte, signer crypto.Signer) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = keyfile.EncodePKCS8(private); err != nil {
		t.Fatal(err)
	}
	return key, keyfile.EncodeCertificates(c), private
}

// TestMatchPairs: what lies on disk is held together, whichever file holds what.
func TestMatchPairs(t *testing.T) {
	key, certificate, signer := aPair(t)
	other, otherCertificate, _ := aPair(t)
	sec1, err := keyfile.EncodeTraditional(signer)
	if err != nil {
		t.Fatal(err)
	}
	file := func(path string, content ...string) recipe.PlannedFile {
		return recipe.PlannedFile{Path: path, Of: "main", Content: content, Format: "pem"}
	}
	two := []recipe.PlannedFile{file("/key", "key"), file("/cert", "path"), file("/trust", "anchors", "crls")}
	one := []recipe.PlannedFile{file("/all", "path", "key")}
	for what, c := range map[string]struct {
		files []recipe.PlannedFile
		disk  map[string][]byte
		says  string
	}{
		"a pair":                     {two, map[string][]byte{"key": key, "cert": certificate}, ""},
		"a pair, the key as SEC 1":   {two, map[string][]byte{"key": sec1, "cert": certificate}, ""},
		"with its issuer":            {two, map[string][]byte{"key": key, "cert": slices.Concat(certificate, otherCertificate)}, ""},
		"one file":                   {one, map[string][]byte{"all": slices.Concat(certificate, otherCertificate, key)}, ""},
		"another key":                {two, map[string][]byte{"key": other, "cert": certificate}, "the key in /key and the certificate in /cert do not belong together"},
		"another certificate":        {two, map[string][]byte{"key": key, "cert": otherCertificate}, "do not belong together"},
		"the issuer first":           {two, map[string][]byte{"key": key, "cert": slices.Concat(otherCertificate, certificate)}, "do not belong together"},
		"another key in one file":    {one, map[string][]byte{"all": slices.Concat(certificate, other)}, "do not belong together"},
		"two keys in one file":       {one, map[string][]byte{"all": slices.Concat(certificate, key, other)}, "/all: "},
		"an empty key":               {two, map[string][]byte{"key": nil, "cert": certificate}, "/key: "},
		"half a key":                 {two, map[string][]byte{"key": key[:len(key)/2], "cert": certificate}, "/key: "},
		"no certificate":             {two, map[string][]byte{"key": key, "cert": key}, "/cert: "},
		"nothing there":              {two, map[string][]byte{"key": key}, "no such file"},
		"a recipe without a PEM key": {[]recipe.PlannedFile{file("/cert", "path")}, map[string][]byte{"cert": certificate}, "nothing to match"},
	} {
		t.Run(what, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range c.disk {
				if err := os.WriteFile(filepath.Join(root, name), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			plan := &recipe.Plan{Certificates: []recipe.PlannedCertificate{{ID: "main"}}, Files: c.files}
			err := (&consumer{system: probe.System{Root: root}, plan: plan}).matchPairs()
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, where %q is expected", err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), strings.Split(string(key), "\n")[1]) {
				t.Errorf("it shows a key: %v", err)
			}
		})
	}
}
