package loop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
)

// shownAs is a certificate of its own making, with a serial number that scripts go by.
func shownAs(t testing.TB, serial int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: fmt.Sprint(serial)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// moody is a TLS 1.3 server that does on each connection what a script says, a word each: it resets it before the handshake
// (reset), or after it (drop); hangs up (hang), says by an alert that it refuses the certificate (alert), or takes it (take). It returns its
// address, and how many connections were made.
func moody(t testing.TB, script string) (string, *atomic.Int32) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	own, made := shownAs(t, 1), new(atomic.Int32)
	go func() {
		for words := strings.Fields(script); ; {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			made.Add(1)
			word := "reset"
			if len(words) > 0 {
				word, words = words[0], words[1:]
			}
			behave(raw.(*net.TCPConn), own, word)
		}
	}()
	return listener.Addr().String(), made
}

func behave(raw *net.TCPConn, own *tls.Certificate, word string) {
	defer raw.Close()
	if word == "reset" {
		_, _ = raw.Read(make([]byte, 16))
		_ = raw.SetLinger(0)
		return
	}
	conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{*own}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(tls.ConnectionState) error {
			if word == "alert" {
				return errors.New("revoked")
			}
			return nil
		}})
	if conn.Handshake() != nil {
		_ = raw.SetLinger(0) // as stunnel does with whom it refuses
		return
	}
	switch word {
	case "drop":
		_ = raw.SetLinger(0)
	case "take":
		_, _ = conn.Write([]byte("hello"))
		_, _ = io.Copy(io.Discard, conn)
	}
}

// TestTrialOfARestartingConsumer: in TLS 1.3 the client's handshake is over before the server has judged, so that a refusal and a
// restart may look alike. What an alert says counts, and is read in spite of a reset behind it. Who says nothing has refused only if
// he does so again after he took a good certificate; and no verdict at all is not clear, and no refusal.
func TestTrialOfARestartingConsumer(t *testing.T) {
	t.Parallel()
	bad, good := shownAs(t, 66), shownAs(t, 77)
	for script, want := range map[string]struct{ result, said string }{
		"alert take":                       {client.ProofRefused, "bad certificate; certificate 4d, which is good, is taken"},
		"reset reset alert take":           {client.ProofRefused, "bad certificate"},
		"alert reset take":                 {client.ProofRefused, "which is good, is taken"},
		"alert hang take":                  {client.ProofRefused, "which is good, is taken"},
		"hang take hang":                   {client.ProofRefused, "it hung up; certificate 4d, which is good, is taken"},
		"drop take drop":                   {client.ProofRefused, "it reset the connection; certificate 4d, which is good, is taken"},
		"drop take reset alert":            {client.ProofRefused, "bad certificate; certificate 4d"},
		"hang take take":                   {client.ProofAccepted, "it was refused once (it hung up), and is taken"},
		"drop take reset take":             {client.ProofAccepted, "it was refused once (it reset the connection), and is taken"},
		"hang hang hang":                   {client.ProofUnclear, "and so is certificate 4d"},
		"drop drop reset reset reset drop": {client.ProofUnclear, "and so is certificate 4d"},
	} {
		t.Run(strings.ReplaceAll(script, " ", "_"), func(t *testing.T) {
			t.Parallel()
			address, made := moody(t, script)
			tried := &trial{agent: &Agent{}, state: &proofState{Began: time.Now()}, now: time.Now(), shown: bad}
			p := recipe.Probe{Address: address}
			shown, err := tried.present(t.Context(), p, bad, true, true)
			if err != nil || shown.Accepted {
				t.Fatalf("%+v, %v", shown, err)
			}
			result, said := tried.judge(t.Context(), p, true, shown, good, nil)
			if result != want.result || !strings.Contains(said, want.said) {
				t.Errorf("%s: %s; expected are %s and %q", result, said, want.result, want.said)
			}
			if n := len(strings.Fields(script)); int(made.Load()) != n {
				t.Errorf("%d connections were made, not %d", made.Load(), n)
			}
		})
	}
}

// TestTrialThatIsCut: what came to no verdict is tried again for minutes; after that it is said to be unclear. What is no sign of a
// restart is unclear at once.
func TestTrialThatIsCut(t *testing.T) {
	t.Parallel()
	reset := fmt.Errorf("show a certificate: %w", syscall.ECONNRESET)
	for _, c := range []struct {
		err    error
		after  time.Duration
		result string
	}{
		{reset, time.Second, client.ProofWaiting}, {fmt.Errorf("%w", io.EOF), time.Second, client.ProofWaiting},
		{reset, proveEager, client.ProofUnclear}, {errors.New("no such protocol"), time.Second, client.ProofUnclear},
	} {
		tried := &trial{state: &proofState{Began: time.Now().Add(-c.after)}, now: time.Now()}
		if result, said := tried.cut(c.err); result != c.result || said == "" {
			t.Errorf("%v after %s: %s: %s", c.err, c.after, result, said)
		}
	}
}
