package place

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/keyfile"
)

// publicBundle is the system's own bundle, with all public CAs.
const publicBundle = "/etc/ssl/certs/ca-certificates.crt"

// stock is a trust store with the public CAs in a form, and one certificate more.
func stock(t *testing.T, form string, more *x509.Certificate) []byte {
	t.Helper()
	text, err := os.ReadFile(publicBundle)
	if err != nil {
		t.Fatal(err)
	}
	text = append(append([]byte("# kept by hand\n"), text...), keyfile.EncodeCertificates(more)...)
	var entries []keyfile.Entry
	for i, c := range certificatesIn(text) {
		entries = append(entries, keyfile.Entry{Alias: "public-" + string(rune('a'+i/26)) + string(rune('a'+i%26)), Chain: []*x509.Certificate{{Raw: c.DER}}})
	}
	if len(entries) < 100 {
		t.Fatalf("%s holds %d certificates, and this test is about a hundred and more", publicBundle, len(entries))
	}
	password, _ := testPassword("")
	password = bytes.TrimSpace(password)
	switch form {
	case "jks":
		text, err = keyfile.EncodeJKS(entries, password, nil)
	case "pkcs12":
		text, err = keyfile.EncodePKCS12(entries, password)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// trustedIn are the certificates of a store.
func trustedIn(t *testing.T, form string, data []byte) map[string]bool {
	t.Helper()
	list := certificatesIn(data)
	if form != "pem" {
		password, _ := testPassword("")
		var err error
		if list, err = keyfile.TrustedIn(data, bytes.TrimSpace(password)); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string]bool{}
	for _, c := range list {
		all[fingerprint(c.DER)] = true
	}
	return all
}

// trustPlan is a plan of one store of trust alone.
func trustPlan(file recipe.PlannedFile) *recipe.Plan {
	file.Content, file.Mode = []string{"anchors"}, 0o644
	if file.Format != "pem" && file.PasswordFile == "" {
		file.PasswordFile = "/srv/password"
	}
	return &recipe.Plan{Recipe: "trust", Files: []recipe.PlannedFile{file}}
}

func trustSet(t *testing.T, plan *recipe.Plan, password func(string) ([]byte, error), anchors ...*x509.Certificate) Set {
	t.Helper()
	set, err := Render(plan, map[string]*probe.Material{"": {Anchors: anchors}}, Sources{Password: password})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func (s scene) put(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(s.root, path)
	for _, err := range []error{os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, mode), os.Chmod(file, mode)} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s scene) get(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestMergedStore takes a trust store with the public CAs through a pool's rotation: they stay. A root of the pool that the
// operator had put there himself before goes when it leaves the pool's trust.
func TestMergedStore(t *testing.T) {
	for _, form := range []string{"pem", "jks", "pkcs12"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			before, after, own := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
			s := newScene(t)
			p := s.placer(t)
			const path = "/srv/trust/store"
			plan := trustPlan(recipe.PlannedFile{Path: path, Format: form, Merge: true})
			s.put(t, path, stock(t, form, own.root), 0o604)
			public := trustedIn(t, form, s.get(t, path))
			step := func(what string, anchors, want []*x509.Certificate) Outcome {
				t.Helper()
				out := mustPlace(t, p, trustSet(t, plan, testPassword, anchors...))
				has := trustedIn(t, form, s.get(t, path))
				for print := range public {
					if !has[print] {
						t.Errorf("%s: a certificate of others is gone", what)
					}
				}
				for _, c := range []*x509.Certificate{before.root, after.root} {
					if has[fingerprint(c.Raw)] != slices.ContainsFunc(want, c.Equal) {
						t.Errorf("%s: %x is there: %t", what, c.SerialNumber, has[fingerprint(c.Raw)])
					}
				}
				return out
			}
			list := func(c ...*x509.Certificate) []*x509.Certificate { return c }
			out := step("first", list(before.root, own.root), list(before.root))
			if len(out.Kept) != 1 || !strings.Contains(out.Kept[0], "chancery-before-") {
				t.Errorf("no copy of the store was kept: %+v", out)
			}
			if st, err := os.Stat(filepath.Join(s.root, path)); err != nil || st.Mode() != 0o604 {
				t.Errorf("the store of others has mode %v now (%v)", st.Mode(), err)
			}
			if out := step("again", list(before.root, own.root), list(before.root)); len(out.Changed) > 0 {
				t.Errorf("nothing is new, and it was written: %+v", out)
			}
			delete(public, fingerprint(own.root.Raw)) // which the pool does not trust any more
			out = step("both", list(before.root, after.root), list(before.root, after.root))
			if len(out.Kept) > 0 || len(out.Changed) != 1 || len(out.Told) != 1 || !strings.Contains(out.Told[0], "was there before, and left") {
				t.Errorf("the second root: %+v", out)
			}
			if trustedIn(t, form, s.get(t, path))[fingerprint(own.root.Raw)] {
				t.Error("a root that has left the pool's trust is trusted still, since somebody had put it there before")
			}
			step("the new one alone", list(after.root), list(after.root))
			if form == "pem" && !bytes.HasPrefix(s.get(t, path), []byte("# kept by hand\n")) {
				t.Error("the comment of the file's owner is gone")
			}

			// Somebody takes ours out and adds one of his own: ours come back, and his stays.
			hand := stock(t, form, own.issuer)
			s.put(t, path, hand, 0o604)
			public = trustedIn(t, form, hand)
			step("changed by hand", list(after.root), list(after.root))

			// The root that left comes back from somebody's copy, and goes again.
			s.put(t, path, stock(t, form, own.root), 0o604)
			public = trustedIn(t, form, s.get(t, path))
			delete(public, fingerprint(own.root.Raw))
			if out := step("an old copy", list(after.root), list(after.root)); len(out.Told) != 1 || !strings.Contains(out.Told[0], "was put back") {
				t.Errorf("an old copy of the store: %+v", out)
			}
			if trustedIn(t, form, s.get(t, path))[fingerprint(own.root.Raw)] {
				t.Error("a root that has left came back")
			}

			// It moves elsewhere: at the old place nothing is ours any more.
			moved := trustPlan(recipe.PlannedFile{Path: "/srv/other/store", Format: form, Merge: true})
			set := trustSet(t, moved, testPassword, after.root)
			if err := Withdraw(&set, plan, Sources{Password: testPassword}); err != nil {
				t.Fatal(err)
			}
			mustPlace(t, p, set)
			if has := trustedIn(t, form, s.get(t, path)); has[fingerprint(after.root.Raw)] || len(has) != len(public) {
				t.Errorf("%d certificates are left at the old place, of %d", len(has), len(public))
			}
			if has := trustedIn(t, form, s.get(t, "/srv/other/store")); len(has) != 1 || !has[fingerprint(after.root.Raw)] {
				t.Errorf("a store that was not there holds %v", has)
			}
			mustPlace(t, p, trustSet(t, moved, testPassword, after.root)) // the old place is forgotten
			back := trustSet(t, plan, testPassword, before.root)
			if err := Withdraw(&back, moved, Sources{Password: testPassword}); err != nil {
				t.Fatal(err)
			}
			mustPlace(t, p, back)
			if _, err := os.Stat(filepath.Join(s.root, "/srv/other/store")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a store in which nothing is left: %v", err)
			}
		})
	}
}

// TestMergedStoreIsPutBack: a consumer that refuses the new trust gets the old one back, with what others had, and the record
// says what is ours then.
func TestMergedStoreIsPutBack(t *testing.T) {
	for _, form := range []string{"pem", "jks", "pkcs12"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			before, after, own := newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256), newOffice(t, keyfile.ECDSAP256)
			s := newScene(t)
			p := s.placer(t)
			const path = "/srv/trust/store"
			plan := trustPlan(recipe.PlannedFile{Path: path, Format: form, Merge: true})
			found := stock(t, form, own.root)
			s.put(t, path, found, 0o644)
			no := &consumer{probe: func() error { return errors.New("no") }}
			if out, err := p.Place(t.Context(), trustSet(t, plan, testPassword, before.root), nil, no); err == nil || !out.RolledBack {
				t.Fatalf("%+v %v", out, err)
			}
			if !bytes.Equal(s.get(t, path), found) {
				t.Fatal("what was found did not come back")
			}
			old := trustSet(t, plan, testPassword, before.root)
			mustPlace(t, p, old)
			placed := s.get(t, path)
			if out, err := p.Place(t.Context(), trustSet(t, plan, testPassword, after.root), &old, no); err == nil || !out.RolledBack {
				t.Fatalf("%+v %v", out, err)
			}
			if !bytes.Equal(s.get(t, path), placed) {
				t.Fatal("what was placed before did not come back")
			}
			mustPlace(t, p, trustSet(t, plan, testPassword, after.root))
			has := trustedIn(t, form, s.get(t, path))
			if has[fingerprint(before.root.Raw)] || !has[fingerprint(after.root.Raw)] || !has[fingerprint(own.root.Raw)] || len(has) != len(trustedIn(t, form, found))+1 {
				t.Errorf("%d certificates, old %t, new %t", len(has), has[fingerprint(before.root.Raw)], has[fingerprint(after.root.Raw)])
			}
		})
	}
}

// TestMergedStoreRefuses: a store that cannot be opened or read is named with its rule, and nothing changes.
func TestMergedStoreRefuses(t *testing.T) {
	o := newOffice(t, keyfile.ECDSAP256)
	wrong := func(string) ([]byte, error) { return []byte("another\n"), nil }
	for _, c := range []struct {
		what, form string
		data       []byte
		password   func(string) ([]byte, error)
		says       string
	}{
		{"wrong password of JKS", "jks", stock(t, "jks", o.root), wrong, "password"},
		{"wrong password of PKCS#12", "pkcs12", stock(t, "pkcs12", o.root), wrong, "password"},
		{"no store", "pkcs12", []byte("hello"), testPassword, "not a valid PKCS#12"},
		{"truncated", "jks", stock(t, "jks", o.root)[:4000], testPassword, "password"},
		{"JCEKS", "jks", append([]byte{0xce, 0xce, 0xce, 0xce}, make([]byte, 100)...), testPassword, "JCEKS"},
	} {
		s := newScene(t)
		p := s.placer(t)
		s.put(t, "/srv/trust/store", c.data, 0o644)
		plan := trustPlan(recipe.PlannedFile{Path: "/srv/trust/store", Format: c.form, Merge: true})
		set := trustSet(t, plan, c.password, o.issuer)
		out, err := p.Place(t.Context(), set, nil, nil)
		if err == nil || !strings.Contains(err.Error(), "/srv/trust/store") || !strings.Contains(err.Error(), c.says) || len(out.Changed) > 0 {
			t.Errorf("%s: %+v %v", c.what, out, err)
		}
		if !bytes.Equal(s.get(t, "/srv/trust/store"), c.data) {
			t.Errorf("%s: the store was changed", c.what)
		}
	}
}

// lines is a Share of several files of lines: a stand-in for databases that need not be asked anything. Each of ours is in all
// of the files, or in none.
func lines(ours ...string) *Share {
	return &Share{Keep: true, Merge: func(there [][]byte, before []string, _ bool) (Merged, error) {
		var want [][]byte
		for _, data := range there {
			var kept []string
			for line := range strings.Lines(string(data)) {
				if line = strings.TrimSpace(line); !slices.Contains(before, line) || slices.Contains(ours, line) {
					kept = append(kept, line)
				}
			}
			for _, line := range ours {
				if !slices.Contains(kept, line) {
					kept = append(kept, line)
				}
			}
			want = append(want, []byte(strings.Join(kept, "\n")+"\n"))
		}
		return Merged{Files: want, Entries: ours}, nil
	}}
}

// TestMergedStoreSurvivesCuts fails every operation on a file, one after the other, while a store of three files is changed or
// given back: after a repair all three are of the same set, with what others have in them, and the next placement ends well.
func TestMergedStoreSurvivesCuts(t *testing.T) {
	names := []string{"/srv/db/certs", "/srv/db/keys", "/srv/db/modules"}
	set := func(ours ...string) Set {
		share := lines(ours...)
		s := Set{Name: "db"}
		for _, name := range names {
			s.Files = append(s.Files, File{Path: name, Mode: 0o640, Share: share})
		}
		return s
	}
	cuts := 0
	for _, refused := range []bool{false, true} {
		for cut := 1; ; cut++ {
			s := newScene(t)
			for _, name := range names {
				s.put(t, name, []byte("of others\n"), 0o604)
			}
			p := s.placer(t)
			mustPlace(t, p, set("first"))
			p.Close()
			at, failed, armed := 0, false, false
			p = s.placer(t, func(o *Options) {
				o.Cut = func(op Operation) error {
					if !armed {
						return nil
					}
					if at++; at >= cut { // and everything after it: the process is as good as dead
						failed = true
						return errCut
					}
					return nil
				}
			})
			var c Consumer
			if refused {
				c = &consumer{probe: func() error { return errors.New("no") }}
			}
			first := set("first")
			armed = true
			_, err := p.Place(t.Context(), set("second"), &first, c)
			p.Close()
			if !failed {
				if (err != nil) != refused {
					t.Fatalf("without a cut: %v", err)
				}
				break
			}
			cuts++
			p = s.placer(t)
			if _, err := p.Repair(t.Context()); err != nil {
				t.Fatalf("cut %d: repair: %v", cut, err)
			}
			whole := string(s.get(t, names[0]))
			if whole != "of others\nfirst\n" && whole != "of others\nsecond\n" {
				t.Fatalf("cut %d: the store holds %q", cut, whole)
			}
			for _, name := range names {
				if got := string(s.get(t, name)); got != whole {
					t.Fatalf("cut %d: %s holds %q, and %s %q", cut, names[0], whole, name, got)
				}
			}
			for _, ours := range []string{"second", "third"} {
				mustPlace(t, p, set(ours))
				for _, name := range names {
					if got := string(s.get(t, name)); got != "of others\n"+ours+"\n" {
						t.Fatalf("cut %d: after the next placement %s holds %q", cut, name, got)
					}
				}
			}
			p.Close()
		}
	}
	if cuts < 100 {
		t.Errorf("%d cuts were made, where a hundred and more are possible", cuts)
	}
}
