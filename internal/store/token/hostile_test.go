package token_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/token"
	"chancery/internal/store/token/wire"
)

// bound is more than anything here takes on a busy machine, and less than for ever.
const bound = 60 * time.Second

// hostile is a token behind a library that misbehaves, as one node reaches it.
type hostile struct {
	*world
	t       *testing.T
	library string
	log     lockedBuffer
	tokens  *token.Tokens
	key     *token.Key
}

// hostile makes one of a copy of the library, and opens the key in the token through it.
func (w *world) hostile(t *testing.T, library string, answer time.Duration) *hostile {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := &hostile{world: w, t: t, library: filepath.Join(dir, "hostile.so")}
	text, err := os.ReadFile(library)
	if err == nil {
		err = os.WriteFile(h.library, text, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.tokens = token.New(token.Options{
		Node: "node1", Dir: filepath.Join(dir, "sockets"), Helper: w.exe, Answer: answer, Logger: slog.New(slog.NewTextHandler(&h.log, nil)),
		Places: []token.Place{{Token: "ca", Module: h.library, PINFile: w.pins}},
	})
	eventually(t, "the key cannot be opened", func() (err error) {
		h.key, err = h.tokens.Open(t.Context(), parse(t, "pkcs11:token=ca;object=issuer"))
		return err
	})
	return h
}

// is has the library behave so from now on.
func (h *hostile) is(mode string) {
	h.t.Helper()
	file := h.library + ".mode"
	if err := os.WriteFile(file+".new", []byte(mode), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		h.t.Fatal(err)
	}
}

// logins is how often the library was asked to log in.
func (h *hostile) logins() int {
	h.t.Helper()
	text, err := os.ReadFile(h.library + ".logins")
	if err != nil {
		h.t.Fatal(err)
	}
	return len(text)
}

// own are the helpers of this library, and what they forked.
func (h *hostile) own() (pids []int) {
	for _, pid := range h.helpers() {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(text), h.library) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *hostile) kill() {
	for _, pid := range h.own() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// resumes holds that signatures come again by themselves.
func (h *hostile) resumes() {
	h.t.Helper()
	eventually(h.t, "the token does not sign again", func() error { return sign(h.key) })
}

// ends holds that nothing is left of the helpers.
func (h *hostile) ends() {
	h.t.Helper()
	if err := h.tokens.Close(); err != nil {
		h.t.Error(err)
	}
	eventually(h.t, "the node has ended", func() error {
		if left := h.own(); len(left) > 0 {
			return fmt.Errorf("helpers %v have not", left)
		}
		return nil
	})
	if strings.Contains(h.log.String(), pin) {
		h.t.Error("the PIN is in the log")
	}
}

// settled holds that no more goroutines run than did before.
func settled(t *testing.T, before int) {
	t.Helper()
	eventually(t, "goroutines are left", func() error {
		if n := runtime.NumGoroutine(); n > before {
			text := make([]byte, 64<<10)
			return fmt.Errorf("%d run, and %d did before: %s", n, before, text[:runtime.Stack(text, true)])
		}
		return nil
	})
}

func eventually(t *testing.T, what string, good func() error) {
	t.Helper()
	for deadline := time.Now().Add(bound); ; time.Sleep(10 * time.Millisecond) {
		err := good()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestHostileLibrary has a library hang, crash, lose its token and lie: each call ends with a refusal that says what is wrong, keys in another
// library sign meanwhile, the helper is replaced, and signatures come again once the library is well. Where the PIN was not the library's
// trouble, none is sent to it.
func TestHostileLibrary(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	library := pkitest.HostileLibrary(t)
	before := runtime.NumGoroutine()
	all := w.tokens()
	good := open(t, all, "pkcs11:token=ca;object=issuer")
	t.Run("modes", func(t *testing.T) {
		for _, c := range []struct {
			mode   string
			anew   bool          // the helper begins anew with the library as it is
			login  bool          // a PIN reaches the library meanwhile
			answer time.Duration // more than a helper takes to start on a busy machine, and no more than that where it is waited for
			want   string
		}{
			{"hang-initialize", true, false, 3 * time.Second, "did not answer within 3s"},
			{"hang-login", true, true, 3 * time.Second, "did not answer within 3s"},
			{"hang-sign", false, true, 2500 * time.Millisecond, "4 helpers were lost, the last one: the helper was lost while it worked: read unix"},
			{"removed", false, false, bound, "CKR_DEVICE_REMOVED"},
			{"crash", false, true, bound, "4 helpers were lost"},
			{"wrong", false, false, bound, "does not verify under its public key"},
			{"long", false, false, bound, "1000000 octets"},
		} {
			t.Run(c.mode, func(t *testing.T) {
				t.Parallel()
				h := w.hostile(t, library, c.answer)
				logins := h.logins()
				h.is(c.mode)
				if c.anew {
					h.kill()
				}
				err := meanwhile(t, h.key, good, c.want)
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v; it should say %q", err, c.want)
				}
				if c.mode != "wrong" && (!fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "node1")) {
					t.Errorf("the refusal: %v", err)
				}
				if n := h.logins() - logins; (n > 0) != c.login {
					t.Errorf("%d logins were tried meanwhile", n)
				}
				h.is("")
				h.resumes()
				h.ends()
			})
		}
	})
	if err := all.Close(); err != nil {
		t.Error(err)
	}
	settled(t, before)
}

// tooSlow says of a refusal that the machine was too busy for a helper that works to start, or for what was to be tried, in its time:
// nothing is learnt from it.
func tooSlow(err error, want string) bool {
	return err != nil && !strings.Contains(err.Error(), want) &&
		(strings.Contains(err.Error(), "did not listen") || strings.Contains(err.Error(), "in the time that was left"))
}

// meanwhile has a key sign that cannot, until that is refused, and another one that can.
func meanwhile(t *testing.T, bad, good *token.Key, want string) error {
	t.Helper()
	failed := make(chan error, 1)
	try := func() { failed <- sign(bad) }
	go try()
	for end := time.Now().Add(2 * bound); ; {
		select {
		case err := <-failed:
			if err == nil {
				t.Fatal("a signature came")
			}
			if tooSlow(err, want) && time.Now().Before(end) {
				go try()
				continue
			}
			return err
		case <-time.After(10 * time.Millisecond):
			if err := sign(good); err != nil {
				t.Fatalf("the other library's key, meanwhile: %v", err)
			}
		}
	}
}

// TestLibraryThatIsNoBetter has many callers at once at a library that hangs, of whom none waits longer than one does; then it writes more
// than a pipe or a log takes; then it leaves a process that keeps its outputs open, which ends with the helper.
func TestLibraryThatIsNoBetter(t *testing.T) {
	w := newWorld(t)
	w.Generate("ca", pin, "EC:prime256v1", "issuer", "01")
	before := runtime.NumGoroutine()
	h := w.hostile(t, pkitest.HostileLibrary(t), 1500*time.Millisecond)
	h.is("hang-initialize")
	h.kill()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := sign(h.key); !fault.Is(err, fault.Unavailable) || ctx.Err() != nil {
				t.Errorf("%v, %v", err, ctx.Err())
			}
		})
	}
	all.Wait()
	h.is("flood")
	h.resumes()
	if n := len(h.log.String()); n > 1<<20 {
		t.Errorf("the log has %d octets", n)
	}
	h.is("child")
	h.kill()
	h.resumes()
	if n := len(h.own()); n != 2 {
		t.Errorf("the helper and its child are %d", n)
	}
	h.is("")
	h.kill()
	h.resumes()
	eventually(t, "a helper was killed", func() error {
		if all := h.own(); len(all) != 1 {
			return fmt.Errorf("of it and its child are left: %v", all)
		}
		return nil
	})
	h.ends()
	settled(t, before)
}

// TestWrongPINOfTwoProcesses has two processes of a node, and two tokens each, begin at once with PINs that are wrong: each PIN is tried once by
// one of them, and both are remembered.
func TestWrongPINOfTwoProcesses(t *testing.T) {
	w := newWorld(t)
	w.Init("other", pin)
	library := pkitest.HostileLibrary(t)
	var places []token.Place
	for _, label := range []string{"ca", "other"} {
		pins := filepath.Join(t.TempDir(), "pin")
		if err := os.WriteFile(pins, []byte("wrong-pin"), 0o600); err != nil {
			t.Fatal(err)
		}
		places = append(places, token.Place{Token: label, Module: library, PINFile: pins})
	}
	var all sync.WaitGroup
	for range 2 {
		tokens := w.tokens(places...)
		for _, label := range []string{"ca", "other", "ca", "other"} {
			uri := parse(t, "pkcs11:object=issuer;token="+label)
			all.Go(func() {
				_, err := tokens.Open(t.Context(), uri)
				if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "not tried again") {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if tried, err := os.ReadFile(library + ".logins"); err != nil || len(tried) != 2 {
		t.Errorf("two wrong PINs were tried %d times, %v", len(tried), err)
	}
	text, err := os.ReadFile(filepath.Join(w.dir, "refused-pins.json"))
	var kept map[string]any
	if err != nil || json.Unmarshal(text, &kept) != nil || len(kept) != 2 {
		t.Errorf("of two refused PINs are remembered: %s, %v", text, err)
	}
}

// TestMain plays a helper that is none, where a test has it started as one.
func TestMain(m *testing.M) {
	if how, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "helper-"); ok {
		if err := badHelper(how, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func badHelper(how, socket string) error {
	switch how {
	case "dies":
		return fmt.Errorf("it dies at once")
	case "endless":
		for {
			if _, err := os.Stdout.WriteString(strings.Repeat("ready", 1<<12)); err != nil {
				return err
			}
		}
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for {
				verb, _, err := wire.Read(in, wire.MaxMessage)
				if err != nil || badAnswer(how, verb, conn) != nil {
					return
				}
			}
		}()
	}
}

func badAnswer(how string, verb byte, conn net.Conn) error {
	switch how {
	case "silent":
		return nil
	case "garbage":
		_, err := conn.Write([]byte(strings.Repeat("\x7fgarbage", 1<<13)))
		return err
	case "huge":
		head := binary.BigEndian.AppendUint32(nil, wire.MaxMessage)
		if _, err := conn.Write(head); err != nil {
			return err
		}
		for {
			if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
				return err
			}
		}
	case "half":
		_, err := conn.Write([]byte{0, 0, 0, 9, 0, 0})
		return err
	case "fields":
		return wire.Write(conn, byte(wire.OK), nil, nil)
	case "code":
		return wire.Write(conn, 200, []byte("a code that is none\nlevel=ERROR msg=forged"))
	case "liar":
		if verb == wire.Sign {
			return wire.Write(conn, byte(wire.OK), make([]byte, 64))
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return err
		}
		text, err := json.Marshal(wire.Key{Token: "ca", Object: "issuer", SPKI: spki})
		if err != nil {
			return err
		}
		return wire.Write(conn, byte(wire.OK), text)
	case "no key":
		return wire.Write(conn, byte(wire.OK), []byte(`{"spki":"AAAA"}`))
	}
	return net.ErrClosed
}

// TestHostileHelper has something else than the helper run in its place.
func TestHostileHelper(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	t.Run("helpers", func(t *testing.T) {
		for how, want := range map[string]string{
			"dies": "ended as soon as it was started", "endless": "did not listen within 3s", "silent": "did not answer within 3s", "garbage": "no frame",
			"huge": "no frame", "half": "did not answer within 3s", "fields": "no frame", "code": "forged", "liar": "does not verify",
			"no key": "public key in token", "closes": "EOF",
		} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				helper := filepath.Join(dir, "helper-"+how) // TestMain plays what it is called
				if err := os.Symlink(program, helper); err != nil {
					t.Fatal(err)
				}
				answer := bound // a helper that is slow to start on a busy machine is not what is looked for
				if strings.HasSuffix(want, "within 3s") {
					answer = 3 * time.Second
				}
				tokens := token.New(token.Options{
					Node: "node1", Dir: t.TempDir(), Helper: helper, Answer: answer,
					Places: []token.Place{{Token: "ca", Module: w.Module, PINFile: w.pins}},
				})
				ctx, cancel := context.WithTimeout(t.Context(), 2*bound)
				defer cancel()
				open := func() error { _, err := tokens.Open(ctx, parse(t, "pkcs11:token=ca;object=issuer")); return err }
				err := open()
				for tooSlow(err, want) && ctx.Err() == nil {
					err = open()
				}
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || ctx.Err() != nil {
					t.Errorf("%v; it should say %q in one line", err, want)
				}
				if err := tokens.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	})
	settled(t, before)
}
