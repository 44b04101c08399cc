package setup_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/upkeep/setup"
)

// TestMemberFile has all that a member of the database needs in one file, which is its owner's alone, says nothing but what is in it, and is
// the same when the rescue is run again. Members whose files would overwrite each other's are refused before anything is made.
func TestMemberFile(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		s := found(t, setup.Options{Dir: dir, Online: true})
		defer s.DB.Close()
		for _, name := range []string{setup.DatabasePool, setup.ControlPool} {
			if _, err := s.Pools.Add(t.Context(), officer, "", pool.Spec{Name: name, Online: true}); err != nil {
				t.Fatal(err)
			}
		}
	})
	out := filepath.Join(t.TempDir(), "db")
	for _, servers := range [][]string{{"db1", "db1/192.0.2.11"}, {"db1", "db1-client"}, {"db1-peer", "db1"}, {"roots"}, {"peer-roots"}, {"peer", "roots"}} {
		if _, err := setup.RescueExpired(t.Context(), setup.ExpiredOptions{Dir: dir, Servers: servers, ServerDir: out}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: %v", servers, err)
		}
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("a refusal made the directory: %v", err)
	}
	o := setup.ExpiredOptions{Dir: dir, Servers: []string{"db1/192.0.2.11", "db2/db2-control/192.0.2.12"}, ServerDir: out}
	done, err := setup.RescueExpired(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"db1", "db2"} {
		file := filepath.Join(out, member+".tar")
		if !slices.Contains(done.Files, file) {
			t.Errorf("%s is not among what was written: %v", file, done.Files)
		}
		if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		holds(t, file, member, out)
	}

	before, err := os.Stat(filepath.Join(out, "db1.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(out, "db2.tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.RescueExpired(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(out, "db1.tar")); err != nil || !os.SameFile(before, after) {
		t.Errorf("run again, it wrote the same once more: %v", err)
	}
	if st, err := os.Stat(filepath.Join(out, "db2.tar")); err != nil || st.Mode() != 0o600 {
		t.Errorf("one that others may read stays so: %v, %v", st, err)
	}
}

// holds wants a member's file to have exactly what is that member's, in the order in which its own side takes it.
func holds(t *testing.T, file, member, out string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(readFile(t, file)))
	for _, want := range []struct{ entry, from string }{
		{"member", ""}, {"server.key", member + ".key"}, {"server.crt", member + ".crt"}, {"client.key", member + "-client.key"}, {"client.crt", member + "-client.crt"},
		{"roots.crt", "roots.crt"}, {"peer.key", member + "-peer.key"}, {"peer.crt", member + "-peer.crt"}, {"peer-roots.crt", "peer-roots.crt"},
	} {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", want.entry, err)
		}
		if h.Name != want.entry || h.Typeflag != tar.TypeReg || h.Mode != 0o600 || h.Uid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("an entry is %+v, and not %s", h, want.entry)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		expected := []byte(member + "\n")
		if want.from != "" {
			expected = readFile(t, filepath.Join(out, want.from))
		}
		if !bytes.Equal(text, expected) {
			t.Errorf("%s of %s is\n%s", want.entry, file, text)
		}
	}
	// The tar of the member's side is less lenient: it has nothing missing at the end.
	if said, err := exec.Command("tar", "-xOf", file, "peer-roots.crt").CombinedOutput(); err != nil || !bytes.Equal(said, readFile(t, filepath.Join(out, "peer-roots.crt"))) {
		t.Errorf("tar: %v\n%s", err, said)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("%s has more: %v", file, err)
	}
}
