package token_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/token"
)

const pin = "4711-Secret"

// world is a node's tokens over SoftHSM.
type world struct {
	*pkitest.SoftHSM
	t      *testing.T
	dir    string
	exe    string
	answer time.Duration
	log    lockedBuffer
	pins   string
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, SoftHSM: pkitest.NewSoftHSM(t), exe: pkitest.TokenHelper(t)}
	// Longer than a socket's path may be.
	w.dir = filepath.Join(t.TempDir(), strings.Repeat("long-", 30))
	w.pins = w.Init("ca", pin)
	return w
}

func (w *world) tokens(places ...token.Place) *token.Tokens {
	w.t.Helper()
	if len(places) == 0 {
		places = []token.Place{{Token: "ca", Module: w.Module, PINFile: w.pins}}
	}
	all := token.New(token.Options{
		Node: "node1", Dir: w.dir, Helper: w.exe, Answer: w.answer, Places: places, Logger: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	w.t.Cleanup(func() {
		if err := all.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return all
}

func open(t *testing.T, all *token.Tokens, text string) *token.Key {
	t.Helper()
	k, err := all.Open(t.Context(), parse(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func parse(t *testing.T, text string) *token.URI {
	t.Helper()
	u, err := token.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func sign(k crypto.Signer) error {
	digest := sha256.Sum256([]byte("to be signed"))
	_, err := k.Sign(rand.Reader, digest[:], crypto.SHA256)
	return err
}

// helpers are the processes of this test's helper that run, and what they forked.
func (w *world) helpers() (pids []int) {
	w.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(text, append([]byte(w.exe), 0)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			w.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestEachAlgorithmSigns has keys of each kind made in the token, and their signatures verified by Go.
func TestEachAlgorithmSigns(t *testing.T) {
	w := newWorld(t)
	kinds := []string{"EC:prime256v1", "EC:secp384r1", "EC:secp521r1", "rsa:2048", "EC:edwards25519"}
	for i, kind := range kinds {
		w.Generate("ca", pin, kind, "key "+kind, fmt.Sprintf("0%d", i+1))
	}
	all := w.tokens()
	for i, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			k := open(t, all, fmt.Sprintf("pkcs11:token=ca;id=%%0%d", i+1))
			if want := "pkcs11:token=ca;serial=" + w.Serial("ca") + ";object=key%20"; !strings.HasPrefix(k.URI().String(), want) {
				t.Errorf("the key is %s, and not %s…", k.URI(), want)
			}
			again := open(t, all, k.URI().String())
			if public, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(again.Public()) {
				t.Error("the URI under which it is found again leads to another key")
			}
			for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
				h := hash.New()
				h.Write([]byte("to be signed"))
				digest := h.Sum(nil)
				switch public := k.Public().(type) {
				case *ecdsa.PublicKey:
					signature, err := k.Sign(rand.Reader, digest, hash)
					if err != nil || !ecdsa.VerifyASN1(public, digest, signature) {
						t.Errorf("ECDSA with %s: %v", hash, err)
					}
				case *rsa.PublicKey:
					signature, err := k.Sign(rand.Reader, digest, hash)
					if err != nil || rsa.VerifyPKCS1v15(public, hash, digest, signature) != nil {
						t.Errorf("RSA with %s: %v", hash, err)
					}
					o := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
					if signature, err = k.Sign(rand.Reader, digest, o); err != nil || rsa.VerifyPSS(public, hash, digest, signature, o) != nil {
						t.Errorf("RSA-PSS with %s: %v", hash, err)
					}
				case ed25519.PublicKey:
					long := bytes.Repeat([]byte("a long list of revoked certificates"), 1<<15)
					signature, err := k.Sign(rand.Reader, long, crypto.Hash(0))
					if err != nil || !ed25519.Verify(public, long, signature) {
						t.Errorf("Ed25519: %v", err)
					}
				default:
					t.Fatalf("a key of type %T", public)
				}
			}
		})
	}
}

// TestHelperKilledUnderLoad kills the helper again and again while eight callers sign: every call ends with a signature.
func TestHelperKilledUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	k := open(t, w.tokens(), "pkcs11:token=ca;object=issuer")
	const kills, callers = 5, 8
	done := make(chan struct{})
	var signed, killed atomic.Int64
	var callersDone sync.WaitGroup
	for range callers {
		callersDone.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := sign(k); err != nil {
					t.Error(err)
					return
				}
				signed.Add(1)
			}
		})
	}
	for killed.Load() < kills && !t.Failed() {
		before := signed.Load()
		for signed.Load() < before+50 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		for _, pid := range w.helpers() {
			if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
				killed.Add(1)
			}
		}
	}
	before := signed.Load()
	for signed.Load() < before+50 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	close(done)
	callersDone.Wait()
	t.Logf("%d signatures while %d helpers were killed", signed.Load(), killed.Load())
	if n := len(w.helpers()); n != 1 {
		t.Errorf("%d helpers run", n)
	}
	if strings.Contains(w.log.String(), pin) {
		t.Error("the PIN is in the log")
	}
}

// TestWrongPINIsTriedOnce counts what the token counts: SoftHSM flags a first wrong PIN, and tells no more.
func TestWrongPINIsTriedOnce(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	if err := os.WriteFile(w.pins, []byte("wrong-pin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u := parse(t, "pkcs11:token=ca;object=issuer")
	all := w.tokens()
	pkitest.Leave(t, w.dir)
	for i, want := range []string{"CKR_PIN_INCORRECT", "which is not tried again", "which is not tried again"} {
		_, err := all.Open(t.Context(), u)
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), want) {
			t.Fatalf("try %d: %v", i+1, err)
		}
		if strings.Contains(err.Error(), "wrong-pin") {
			t.Error("the refusal says the PIN")
		}
	}
	// Another process on the same directory knows it too.
	if _, err := w.tokens().Open(t.Context(), u); err == nil || !strings.Contains(err.Error(), "which is not tried again") {
		t.Fatalf("after a restart: %v", err)
	}
	kept, err := os.ReadFile(filepath.Join(w.dir, "refused-pins.json"))
	if err != nil || bytes.Contains(kept, []byte("wrong-pin")) {
		t.Fatalf("what is remembered of a refused PIN: %v", err)
	}
	// A node that runs as another user than who tried reads it as well.
	pkitest.IsLeft(t, filepath.Join(w.dir, "refused-pins.json"))
	if err := os.WriteFile(w.pins, []byte(pin), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sign(open(t, all, u.String())); err != nil {
		t.Fatal(err)
	}
	if text := w.log.String(); strings.Contains(text, pin) || strings.Contains(text, "wrong-pin") {
		t.Error("a PIN is in the log")
	}
}

// TestPINIsNowhere looks at the arguments and the environment of the helper while it is logged in, and at who may look
// into its memory.
func TestPINIsNowhere(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	open(t, w.tokens(), "pkcs11:token=ca;object=issuer")
	pids := w.helpers()
	if len(pids) != 1 {
		t.Fatalf("%d helpers run", len(pids))
	}
	for _, name := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pids[0], name))
		if err != nil && !errors.Is(err, os.ErrPermission) {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(pin)) {
			t.Errorf("the PIN is in %s", name)
		}
	}
	stat, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	if stat.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the helper can be traced by its own user")
	}
	sockets, err := filepath.Glob(filepath.Join(w.dir, "*.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	if stat, err = os.Lstat(sockets[0]); err != nil || stat.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", stat.Mode(), err)
	}
	// Another process of the same user is connected and hears nothing; the node's log says who it was.
	stranger := exec.Command("curl", "-s", "--max-time", "60", "--unix-socket", filepath.Base(sockets[0]), "http://helper/")
	stranger.Dir = w.dir
	if out, err := stranger.Output(); err == nil || len(out) > 0 {
		t.Errorf("a stranger was answered %q, %v", out, err)
	}
	want := fmt.Sprintf("refused a caller: process %d of user", stranger.Process.Pid)
	for deadline := time.Now().Add(60 * time.Second); !strings.Contains(w.log.String(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q: %s", want, w.log.String())
		}
	}
}

// TestTokenComesAndGoes takes the token away under a key that is in use, and puts it back in another slot.
func TestTokenComesAndGoes(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	all := w.tokens()
	k := open(t, all, "pkcs11:token=ca;object=issuer")
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(w.Tokens, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.Tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, pid := range w.helpers() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	w.Init("other", pin) // takes the slot
	for range 3 {
		err := sign(k)
		if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "node1") || !strings.Contains(err.Error(), "no such token") {
			t.Fatalf("without the token: %v", err)
		}
	}
	entries, err := os.ReadDir(away)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(away, e.Name()), filepath.Join(w.Tokens, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(60 * time.Second)
	for err := sign(k); err != nil; err = sign(k) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestRefusals is what is refused with words, each before anything is signed.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "02")
	w.Generate("ca", pin, "EC:secp256k1", "koblitz", "03")
	otherPIN := w.Init("other", "0000")
	wide := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wide, []byte(pin), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "pin")
	if err := os.Symlink(w.pins, link); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), "lib.so")
	if err := os.WriteFile(broken, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(label, module, pins string) token.Place {
		return token.Place{Token: label, Module: module, PINFile: pins}
	}
	for name, c := range map[string]struct {
		place token.Place
		uri   string
		kind  fault.Kind
		want  string
	}{
		"two keys":            {at("ca", w.Module, w.pins), "pkcs11:token=ca;object=issuer", fault.Invalid, "several private keys fit"},
		"no key":              {at("ca", w.Module, w.pins), "pkcs11:token=ca;object=none", fault.Invalid, `there are object "`},
		"an odd curve":        {at("ca", w.Module, w.pins), "pkcs11:token=ca;object=koblitz", fault.Invalid, "no public key"},
		"an empty token":      {at("other", w.Module, otherPIN), "pkcs11:token=other;id=%01", fault.Invalid, "none at all"},
		"no token":            {at("gone", w.Module, w.pins), "pkcs11:token=gone;id=%01", fault.Unavailable, `but "`},
		"not in the config":   {at("ca", w.Module, w.pins), "pkcs11:token=elsewhere;id=%01", fault.Unavailable, "node.yaml"},
		"no PIN":              {at("ca", w.Module, ""), "pkcs11:token=ca;id=%01", fault.Unavailable, "none is given"},
		"a PIN others read":   {at("ca", w.Module, wide), "pkcs11:token=ca;id=%01", fault.Invalid, "0644"},
		"a PIN behind a link": {at("ca", w.Module, link), "pkcs11:token=ca;id=%01", fault.Invalid, "symbolic link"},
		"no library":          {at("ca", broken, w.pins), "pkcs11:token=ca;id=%01", fault.Unavailable, "cannot be loaded"},
		"a missing library":   {at("ca", "/nowhere/lib.so", w.pins), "pkcs11:token=ca;id=%01", fault.Unavailable, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.tokens(c.place).Open(t.Context(), parse(t, c.uri))
			if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if err != nil && strings.Contains(err.Error(), pin) {
				t.Error("the refusal says the PIN")
			}
		})
	}
}

// TestHelperMissing is an authority whose helper was not installed.
func TestHelperMissing(t *testing.T) {
	w := newWorld(t)
	w.exe = "/nowhere/chancery-pkcs11"
	_, err := w.tokens().Open(t.Context(), parse(t, "pkcs11:token=ca;id=%01"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "/nowhere/chancery-pkcs11") {
		t.Fatal(err)
	}
}

// TestHelperEndsWithItsNode starts a helper by hand: it ends when its input does, and its socket is gone.
func TestHelperEndsWithItsNode(t *testing.T) {
	exe := pkitest.TokenHelper(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.CommandContext(ctx, exe, socket, "/nowhere.so")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 6)
	if _, err := out.Read(line); err != nil || string(line) != "ready\n" {
		t.Fatalf("%q %v", line, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
