package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/fault"
)

func TestConfigSurvivesTheFile(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.Load(); !fault.Is(err, fault.NotFound) {
		t.Fatalf("an empty directory: %v", err)
	}
	want := Config{Name: "n1", Address: "https://pki.example:8443", TrustedProxies: []string{"192.0.2.0/24", "::1"}}
	if err := d.Create(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if got.Listen.API != DefaultAPI || got.Name != "n1" || len(got.Proxies()) != 2 || got.ShutdownGrace == 0 {
		t.Fatalf("got %+v", got)
	}
	if err := d.Create(want); err == nil {
		t.Fatal("an existing node.yaml was overwritten")
	}
	write, read, err := got.DatabaseURLs(d)
	if err != nil || write != "sqlite:"+d.Database() || read != "" {
		t.Fatalf("%q %q %v", write, read, err)
	}
}

func TestEveryProblemIsNamed(t *testing.T) {
	_, err := Parse([]byte("name: 'a b'\naddress: http://x\nlisten: {api: here}\ntrusted_proxies: [nobody]\nlog_level: loud\ndatabase_read: f\nread_database_file: f\n"))
	if !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	for _, path := range []string{"name:", "address:", "listen.api:", "trusted_proxies[0]:", "log_level:", "database_read:", "read_database_file:"} {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%s is not in %q", path, err)
		}
	}
	if _, err := Parse([]byte("name: n\naddress: https://x:1\nlisten: {apj: x}\n")); !fault.Is(err, fault.Invalid) ||
		!strings.Contains(err.Error(), "apj") {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestFormerNameOfDatabaseRead(t *testing.T) {
	for _, key := range []string{"database_read", "read_database_file"} {
		c, err := Parse([]byte("name: n\naddress: https://x:1\ndatabase_file: w\n" + key + ": r\n"))
		if err != nil || c.ReadDatabaseFile != "r" || c.FormerReadDatabaseFile != "" {
			t.Errorf("%s: %+v, %v", key, c, err)
		}
	}
}

func TestDatabaseURLComesFromAPrivateFile(t *testing.T) {
	d := Dir(t.TempDir())
	path := filepath.Join(string(d), "url")
	if err := os.WriteFile(path, []byte("postgres://u:p@h/db\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := Config{DatabaseFile: "url"}
	if _, _, err := c.DatabaseURLs(d); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "u:p") {
		t.Fatalf("a file that others may read: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if write, _, err := c.DatabaseURLs(d); err != nil || write != "postgres://u:p@h/db" {
		t.Fatalf("%q, %v", write, err)
	}
}

// TestSeveralStandbys: what is read is one server, and the configuration that says otherwise is refused.
func TestSeveralStandbys(t *testing.T) {
	dir := Dir(t.TempDir())
	for name, hosts := range map[string]string{"write": "db1,db2,db3", "one": "db1", "several": "db1,db2"} {
		if err := os.WriteFile(dir.Within(name), []byte("postgres://chancery@"+hosts+"/chancery?sslmode=prefer\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := Config{DatabaseFile: "write", ReadDatabaseFile: "one"}
	if _, read, err := c.DatabaseURLs(dir); err != nil || read == "" {
		t.Errorf("%q, %v", read, err)
	}
	c.ReadDatabaseFile = "several"
	if _, _, err := c.DatabaseURLs(dir); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "db1:5432 and db2:5432") {
		t.Errorf("several servers to read: %v", err)
	}
}
