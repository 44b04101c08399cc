package pkitest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/gofrs/flock"
)

// TokenHelper builds chancery-pkcs11 and returns the path of a copy. It is built in bin/tests of this tree: packages whose tests run at
// once share that, and where it is up to date nothing is built. The copy belongs to this process's user, whoever the tree belongs to, and
// no group may write to it, as a node wants of a helper.
func TokenHelper(tb testing.TB) string {
	tb.Helper()
	_, self, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(self)))
	program := filepath.Join(root, "bin", "tests", "chancery-pkcs11")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		tb.Fatal(err)
	}
	lock := flock.New(program + ".lock")
	if err := lock.Lock(); err != nil {
		tb.Fatal(err)
	}
	defer lock.Unlock()
	build := exec.Command("go", "build", "-C", filepath.Join(root, "cmd", "chancery-pkcs11"), "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build the helper: %v\n%s", err, out)
	}
	own := filepath.Join(privateDir(tb), "chancery-pkcs11")
	// By a process of its own: what this one has open for writing, while another test starts a program, cannot be started.
	if out, err := exec.Command("install", "-m", "0755", program, own).CombinedOutput(); err != nil {
		tb.Fatalf("copy the helper: %v\n%s", err, out)
	}
	return own
}

// privateDir is a temporary directory that nobody else can write to, whatever the umask allows.
func privateDir(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// HostileLibrary builds a PKCS #11 library that passes what it is asked to SoftHSM, and misbehaves as the file of its name with .mode after
// it says: see testdata/hostile.c. There is no such file yet.
func HostileLibrary(tb testing.TB) string {
	tb.Helper()
	_, self, _, _ := runtime.Caller(0)
	here := filepath.Dir(self)
	list := exec.Command("go", "list", "-C", filepath.Join(here, "..", "..", "cmd", "chancery-pkcs11"), "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11")
	headers, err := list.Output()
	if err != nil {
		tb.Fatalf("find the headers of PKCS #11: %v", err)
	}
	library := filepath.Join(privateDir(tb), "hostile.so")
	build := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-I", strings.TrimSpace(string(headers)), "-DBEHIND=\""+SoftHSMModule(tb)+"\"",
		"-o", library, filepath.Join(here, "testdata", "hostile.c"), "-ldl")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("build a library: %v\n%s", err, out)
	}
	if err := os.Chmod(library, 0o755); err != nil {
		tb.Fatal(err)
	}
	return library
}

// SoftHSM is a directory of tokens of SoftHSM 2, a PKCS #11 library that keeps keys in files.
type SoftHSM struct {
	tb     testing.TB
	Module string // path of the library
	Conf   string // what SOFTHSM2_CONF names
	Tokens string // the directory
}

// NewSoftHSM makes an empty one, and sets SOFTHSM2_CONF for this process and those that it starts.
func NewSoftHSM(tb testing.TB) *SoftHSM {
	tb.Helper()
	s := &SoftHSM{tb: tb, Conf: filepath.Join(tb.TempDir(), "softhsm2.conf"), Tokens: tb.TempDir(), Module: SoftHSMModule(tb)}
	text := "directories.tokendir = " + s.Tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\nslots.mechanisms = ALL\n"
	if err := os.WriteFile(s.Conf, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
	if t, ok := tb.(interface{ Setenv(string, string) }); ok {
		t.Setenv("SOFTHSM2_CONF", s.Conf)
	}
	return s
}

// SoftHSMModule is the path of its library.
func SoftHSMModule(tb testing.TB) string {
	tb.Helper()
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	tb.Fatal("SoftHSM 2 is not installed; make packages")
	return ""
}

// Init makes a token, and returns the file that holds its PIN.
func (s *SoftHSM) Init(label, pin string) (pinFile string) {
	s.tb.Helper()
	s.run("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", pin)
	pinFile = filepath.Join(s.tb.TempDir(), "pin")
	if err := os.WriteFile(pinFile, []byte(pin+"\n"), 0o600); err != nil {
		s.tb.Fatal(err)
	}
	return pinFile
}

// Generate has a token make a key pair, of a type as pkcs11-tool names it: EC:prime256v1, rsa:2048, EC:edwards25519.
func (s *SoftHSM) Generate(label, pin, keyType, object, id string) {
	s.tb.Helper()
	s.run("pkcs11-tool", "--module", s.Module, "--token-label", label, "--login", "--pin", pin, "--keypairgen", "--key-type", keyType,
		"--label", object, "--id", id)
}

// Serial is the serial number of a token.
func (s *SoftHSM) Serial(label string) string {
	s.tb.Helper()
	found := false
	for line := range strings.Lines(s.run("pkcs11-tool", "--module", s.Module, "--list-token-slots")) {
		name, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(name) {
		case "token label":
			found = value == label
		case "serial num":
			if found {
				return value
			}
		}
	}
	s.tb.Fatalf("there is no token %q", label)
	return ""
}

// Delete takes a token away with all that is in it.
func (s *SoftHSM) Delete(label string) {
	s.tb.Helper()
	s.run("softhsm2-util", "--delete-token", "--token", label)
}

func (s *SoftHSM) run(program string, args ...string) string {
	s.tb.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+s.Conf)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.tb.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}
