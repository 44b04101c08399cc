package datadir_test

import (
	"os"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/upkeep/datadir"
)

func TestSetDatabaseFile(t *testing.T) {
	for name, text := range map[string]string{
		"plain":      "# mine\nname: node1\naddress: https://a:1 # here\n",
		"no newline": "# mine\nname: node1\naddress: https://a:1 # here",
		"empty":      "# mine\nname: node1\ndatabase_file: \"\" # SQLite\naddress: https://a:1 # here\n",
		"in between": "# mine\nname: node1\ndatabase_file:\naddress: https://a:1 # here\nlisten:\n  api: 127.0.0.1:2\n",
	} {
		dir := datadir.Dir(t.TempDir())
		if err := os.WriteFile(dir.Config(), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := dir.SetDatabaseFile("/a b/ü: #url"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c, err := dir.Load()
		if err != nil || c.DatabaseFile != "/a b/ü: #url" || c.Address != "https://a:1" {
			t.Fatalf("%s: %+v, %v", name, c, err)
		}
		written, err := os.ReadFile(dir.Config())
		if err != nil || !strings.HasPrefix(string(written), "# mine\n") || !strings.Contains(string(written), "# here") {
			t.Errorf("%s: %v\n%s", name, err, written)
		}
		if st, err := os.Stat(dir.Config()); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
		if err := dir.SetDatabaseFile("/other"); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: a second time: %v", name, err)
		}
	}
	dir := datadir.Dir(t.TempDir())
	flow := "{name: node1, address: 'https://a:1'}\n"
	if err := os.WriteFile(dir.Config(), []byte(flow), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := dir.SetDatabaseFile("/x"); err == nil {
		t.Error("a line was added to a flow mapping")
	}
	if text, err := os.ReadFile(dir.Config()); err != nil || string(text) != flow {
		t.Errorf("%s, %v", text, err)
	}
}
