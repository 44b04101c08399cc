package token_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/store/token"
)

// TestCodeThatOthersCouldExchange has the library, and the helper, lie where somebody else could put another: on the way to it, or behind a link.
func TestCodeThatOthersCouldExchange(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	at := t.TempDir()
	if err := os.Chmod(at, 0o700); err != nil {
		t.Fatal(err)
	}
	// put makes a directory of that mode with a copy of file in it, and one below.
	put := func(name, file string, mode os.FileMode) (copied string) {
		t.Helper()
		dir := filepath.Join(at, name)
		copied = filepath.Join(dir, "below", filepath.Base(file))
		if err := os.MkdirAll(filepath.Dir(copied), 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("install", "-m", "0755", file, copied).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		return copied
	}
	link := func(name, target string) string {
		t.Helper()
		path := filepath.Join(at, name)
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, file := range []string{w.Module, w.exe} {
		name := filepath.Base(file)
		good, wide, group := put("good-"+name, file, 0o755), put("wide-"+name, file, 0o777), put("group-"+name, file, 0o770)
		sticky := put("sticky-"+name, file, 0o777|os.ModeSticky)
		open := put("open-"+name, file, 0o755)
		if err := os.Chmod(open, 0o775); err != nil {
			t.Fatal(err)
		}
		cases := map[string]string{
			good: "", sticky: "", link("link-"+name, good): "", link("relative-"+name, "good-"+name+"/below/../below/"+name): "",
			wide: "wide-" + name + " has mode 0777", group: "group-" + name + " has mode 0770", open: name + " has mode 0775",
			link("to-wide-"+name, wide):           "wide-" + name + " has mode 0777",
			link("dir-"+name, filepath.Dir(good)): "is not a regular file", link("none-"+name, "nowhere"): "no such file",
			link("loop-"+name, "loop-"+name): "more than 40 symbolic links",
		}
		if os.Geteuid() == 0 {
			other := put("other-"+name, file, 0o755)
			if err := os.Chown(filepath.Dir(filepath.Dir(other)), 12345, -1); err != nil {
				t.Fatal(err)
			}
			cases[other] = "belongs to user 12345"
		}
		for path, want := range cases {
			t.Run(strings.TrimPrefix(path, at+"/"), func(t *testing.T) {
				o := token.Options{Node: "node1", Dir: t.TempDir(), Helper: w.exe, Places: []token.Place{{Token: "ca", Module: w.Module, PINFile: w.pins}}}
				if file == w.exe {
					o.Helper = path
				} else {
					o.Places[0].Module = path
				}
				refusedWith(t, o, want)
			})
		}
	}
	t.Setenv("PATH", filepath.Join(at, "wide-"+filepath.Base(w.exe), "below")+":"+os.Getenv("PATH"))
	refusedWith(t, token.Options{Node: "node1", Places: []token.Place{{Token: "ca", Module: w.Module, PINFile: w.pins}}}, "has mode 0777")
}

// refusedWith opens the key, and where something is wanted of the refusal, holds it against that.
func refusedWith(t *testing.T, o token.Options, want string) {
	t.Helper()
	tokens := token.New(o)
	k, err := tokens.Open(t.Context(), parse(t, "pkcs11:token=ca;object=issuer"))
	switch {
	case want == "" && err == nil:
		err = sign(k)
		fallthrough
	case want == "":
		if err != nil {
			t.Error(err)
		}
	case err == nil || !strings.Contains(err.Error(), want) || !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unavailable):
		t.Errorf("%v; it should say %q", err, want)
	}
	if err := tokens.Close(); err != nil {
		t.Error(err)
	}
}
