package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
