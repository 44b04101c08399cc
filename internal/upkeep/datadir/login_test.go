package datadir

import (
	"crypto/rand"
	"crypto/x509"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
)

// TestURLIsCompletedByTheNodesLogin: what the operator wrote stands, and the rest comes from the node's own files.
func TestURLIsCompletedByTheNodesLogin(t *testing.T) {
	d := Dir(t.TempDir())
	for what, c := range map[string]struct{ url, want string }{
		"bare":             {"postgres://db1,db2/chancery?target_session_attrs=read-write", "user=chancery_two cert root sslmode=verify-full"},
		"named":            {"postgres://other@db1/chancery", "user=other cert root"},
		"several":          {"postgres://db1:5432,db2:5433/chancery", "db1:5432,db2:5433 user=chancery_two cert root"},
		"named aside":      {"postgres:///chancery?host=db1,db2&user=other", "user=other cert root"},
		"with a password":  {"postgres://other:secret@db1/chancery", "user=other"},
		"own certificate":  {"postgres://db1/chancery?sslcert=/x&sslkey=/y&sslmode=require", "user=chancery_two root sslmode=require"},
		"over its socket":  {"postgres:///chancery?host=/run/postgresql", "user=chancery_two"},
		"no URL of theirs": {"host=db1 dbname=x", ""},
	} {
		for _, has := range []bool{false, true} {
			if has {
				if err := os.MkdirAll(filepath.Dir(d.DatabaseLogin()), 0o700); err != nil {
					t.Fatal(err)
				}
				for _, f := range []string{d.DatabaseLogin(), d.DatabaseRoots()} {
					if err := os.WriteFile(f, nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(d.databaseRole(), []byte("chancery_two\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := withLogin(d, c.url)
			if err != nil {
				t.Fatal(err)
			}
			if !has || c.want == "" {
				if got != c.url {
					t.Errorf("%s: without a login: %s", what, got)
				}
				continue
			}
			for _, want := range strings.Fields(c.want) {
				want = strings.NewReplacer("user=", "", "cert", "sslcert="+strings.ReplaceAll(d.DatabaseLogin(), "/", "%2F"),
					"root", "sslrootcert="+strings.ReplaceAll(d.DatabaseRoots(), "/", "%2F")).Replace(want)
				if !strings.Contains(got, want) {
					t.Errorf("%s: %s lacks %s", what, got, want)
				}
			}
			if n := strings.Count(got, "sslcert="); n > 1 || strings.Contains(c.url, "sslcert") && strings.Contains(got, "login.pem") {
				t.Errorf("%s: %s", what, got)
			}
			if strings.Contains(c.url, ":secret@") && strings.Contains(got, "sslcert") {
				t.Errorf("%s: a certificate beside a password: %s", what, got)
			}
		}
		if err := os.RemoveAll(filepath.Dir(d.DatabaseLogin())); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoginIsTheServices: what root's command keeps is whose the data directory is, with the directory that it makes for it.
func TestLoginIsTheServices(t *testing.T) {
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	certificate := string(keyfile.EncodeCertificates(made))
	for what, keep := range map[string]func(d Dir) error{
		"kept": func(d Dir) error {
			return d.KeepDatabaseLogin("chancery_two", text, []string{certificate}, certificate)
		},
		"taken": func(d Dir) error {
			if err := d.NextDatabaseLogin().KeepDatabaseLogin("chancery_two", text, []string{certificate}, certificate); err != nil {
				return err
			}
			return d.TakeDatabaseLogin()
		},
		"copied": func(d Dir) error {
			from := Dir(t.TempDir())
			if err := from.KeepDatabaseLogin("chancery_two", text, []string{certificate}, certificate); err != nil {
				return err
			}
			return d.CopyDatabaseLogin(from)
		},
	} {
		d := Dir(t.TempDir())
		pkitest.Leave(t, string(d))
		home, err := os.Stat(string(d))
		if err != nil {
			t.Fatal(err)
		}
		service := home.Sys().(*syscall.Stat_t)
		if err := keep(d); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		all := 0
		err = filepath.WalkDir(string(d), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := os.Lstat(path)
			if err != nil {
				return err
			}
			all++
			if owner := st.Sys().(*syscall.Stat_t); owner.Uid != service.Uid || owner.Gid != service.Gid {
				t.Errorf("%s: %s is of %d:%d, and the directory of %d:%d", what, path, owner.Uid, owner.Gid, service.Uid, service.Gid)
			}
			return nil
		})
		if err != nil || all < 4 {
			t.Errorf("%s: the directory has %d files, %v", what, all, err)
		}
		pkitest.IsLeft(t, d.DatabaseLogin())
	}
}
