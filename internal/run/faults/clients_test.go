package faults_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/store/db"
)

// dial opens a connection to the API as the administrator, below HTTP.
func (p *process) dial() net.Conn {
	p.t.Helper()
	pair, err := client.CertificateFiles(p.dir.AdminCert(), p.dir.AdminKey())()
	must(p.t, err)
	roots, err := client.RootsFile(p.dir.IdentityRoot())
	must(p.t, err)
	conn, err := tls.Dial("tcp", p.API, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{*pair}})
	must(p.t, err)
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

func dialPlain(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestSlowClientsAreCutOffWhileOthersAreServed: headers and bodies that never end, a hundred of them, on each listener.
func TestSlowClientsAreCutOffWhileOthersAreServed(t *testing.T) {
	t.Parallel()
	dir, ctx := newAuthority(t, db.SQLite), t.Context()
	p := startNode(t, dir)
	c := p.admin()
	issuer := issuerOf(t, c)
	post := "POST /api/v1/certificates HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
	slow := map[string]net.Conn{}
	for i := range 25 {
		slow[fmt.Sprint("header of the API ", i)] = said(t, p.dial(), "GET /api/v1/caller HTTP/1.1\r\nHost: x\r\nX-Slow")
		slow[fmt.Sprint("body of the API ", i)] = said(t, p.dial(), post)
		slow[fmt.Sprint("header of the public listener ", i)] = said(t, dialPlain(t, p.Public), "GET /crl/default.crl HTTP/1.1\r\nHost: x\r\nX-Sl")
		slow[fmt.Sprint("header of the metrics ", i)] = said(t, dialPlain(t, p.Metrics), "GET /metrics HT")
		slow[fmt.Sprint("handshake ", i)] = said(t, dialPlain(t, p.API), "\x16\x03\x01\x02\x00\x01")
	}
	var group sync.WaitGroup
	for name, conn := range slow {
		group.Go(func() { cutOff(t, name, conn) })
	}
	for i := range 20 {
		out, err := c.Issue(ctx, order(fmt.Sprintf("quick%d.test", i)))
		must(t, err)
		if ask(t, p, issuer, out.Certificate.Serial) != xocsp.Good {
			t.Error("OCSP does not go on")
		}
	}
	group.Wait()
	p.stop()
}

func said(t *testing.T, conn net.Conn, text string) net.Conn {
	t.Helper()
	_, err := io.WriteString(conn, text)
	must(t, err)
	return conn
}

// cutOff wants the node to end a connection by itself, without an answer that says it was content.
func cutOff(t *testing.T, name string, conn net.Conn) {
	conn.SetReadDeadline(time.Now().Add(90 * time.Second))
	text, err := io.ReadAll(conn)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Errorf("%s: the connection was left open", name)
	}
	if strings.Contains(string(text), "HTTP/1.1 2") {
		t.Errorf("%s: it was answered: %s", name, text)
	}
}

// TestGarbageIsSurvived sends what no client should to each listener.
func TestGarbageIsSurvived(t *testing.T) {
	t.Parallel()
	dir, ctx := newAuthority(t, db.SQLite), t.Context()
	p := startNode(t, dir)
	big := bytes.Repeat([]byte("x"), 10<<20)
	status, answer := post(t, "http://"+p.Public+"/ocsp", "application/ocsp-request", big)
	malformed(t, "10 MB", status, answer)
	for name, body := range map[string][]byte{
		"nothing": nil, "zeros": make([]byte, 1000), "text": []byte("GET / HTTP/1.0"), "indefinite": {0x30, 0x80, 0, 0}, "truncated": {0x30, 0x84, 0xff, 0xff, 0xff, 0xff},
		"deep": bytes.Repeat([]byte{0x30, 0x80}, 4000),
	} {
		status, answer := post(t, "http://"+p.Public+"/ocsp", "application/ocsp-request", body)
		malformed(t, name, status, answer)
	}
	_, err := p.admin().Issue(ctx, client.IssueRequest{Profile: "server", CSR: string(big)})
	if refusal := problem(t, err, "too-large"); refusal.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("a request of 10 MB: %+v", refusal)
	}
	_, err = p.admin().Issue(ctx, client.IssueRequest{Profile: "server", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: make([]byte, 9000)}))})
	problem(t, err, "invalid")
	for _, address := range []string{p.API, p.Public, p.Metrics} {
		for _, garbage := range []string{"\x00\x01\x02\x03\r\n\r\n", strings.Repeat("A", 100_000), "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
			"POST /ocsp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nffffffffffffffffff\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 64<<10) + "\r\n\r\n"} {
			conn := dialPlain(t, address)
			io.WriteString(conn, garbage) // the node may hang up before all of it is sent
			cutOff(t, fmt.Sprintf("%.20q to %s", garbage, address), conn)
		}
	}
	_, err = p.admin().Issue(ctx, order("alive.test"))
	must(t, err)
	p.stop()
	if log := p.log.String(); strings.Contains(log, "panic") || strings.Contains(log, `"level":"ERROR"`) {
		t.Errorf("the log says:\n%s", log)
	}
}

func malformed(t *testing.T, name string, status int, answer []byte) {
	t.Helper()
	_, err := xocsp.ParseResponse(answer, nil)
	if refusal, ok := err.(xocsp.ResponseError); status != http.StatusOK || !ok || refusal.Status != xocsp.Malformed {
		t.Errorf("%s: %d, %v", name, status, err)
	}
}

// TestOCSPAboutAThousand has openssl write requests about many certificates. A hundred are answered; more are refused, by
// their count and by their size.
func TestOCSPAboutAThousand(t *testing.T) {
	t.Parallel()
	dir := newAuthority(t, db.SQLite)
	p := startNode(t, dir)
	issuer := issuerOf(t, p.admin())
	work := t.TempDir()
	must(t, os.WriteFile(filepath.Join(work, "issuer.pem"), []byte(issuer.PEM), 0o600))
	until(t, "the responder answers", func() bool {
		_, answer := post(t, "http://"+p.Public+"/ocsp", "application/ocsp-request", manyCertIDs(t, work, 1))
		_, err := xocsp.ParseResponse(answer, nil)
		return err == nil
	})
	for _, n := range []int{100, 101, 1000} {
		status, answer := post(t, "http://"+p.Public+"/ocsp", "application/ocsp-request", manyCertIDs(t, work, n))
		if n > 100 {
			malformed(t, fmt.Sprint(n), status, answer)
			continue
		}
		must(t, os.WriteFile(filepath.Join(work, "answer"), answer, 0o600))
		out, err := exec.Command("openssl", "ocsp", "-respin", filepath.Join(work, "answer"), "-noverify", "-resp_text").CombinedOutput()
		if got := strings.Count(string(out), "Cert Status: unknown"); err != nil || got != n {
			t.Errorf("%d asked about, %d answered: %v", n, got, err)
		}
	}
	p.stop()
}

func manyCertIDs(t *testing.T, work string, n int) []byte {
	t.Helper()
	args := []string{"ocsp", "-issuer", filepath.Join(work, "issuer.pem"), "-no_nonce", "-reqout", filepath.Join(work, "request")}
	for i := range n {
		args = append(args, "-serial", fmt.Sprint(1_000_000+i))
	}
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl ocsp: %v\n%s", err, out)
	}
	der, err := os.ReadFile(filepath.Join(work, "request"))
	must(t, err)
	return der
}

// TestClientInALoop holds a client that asks without pause to its rate, and the store to what it was allowed.
func TestClientInALoop(t *testing.T) {
	t.Parallel()
	dir, ctx := newAuthority(t, db.SQLite), t.Context()
	p := startNode(t, dir)
	admin := p.admin()
	_, err := admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: "looping", Roles: []string{client.RoleOperator}})
	must(t, err)
	token, err := admin.CreateToken(ctx, "looping", client.CreateTokenRequest{})
	must(t, err)
	_, err = admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{
		{Path: "limits.operator_rate.per_second", Value: "5"}, {Path: "limits.operator_rate.burst", Value: "20"}}}, "")
	must(t, err)
	looping := p.client(client.Options{Token: token.Secret, NoRetry: true})
	issued, limited := 0, 0
	start := time.Now()
	for n := 0; limited < 300; n++ {
		_, err := looping.Issue(ctx, order(fmt.Sprintf("loop%d.test", n)))
		if err == nil {
			issued++
			continue
		}
		if limited++; problem(t, err, "rate-limited").RetryAfter <= 0 || problem(t, err, "rate-limited").Status != http.StatusTooManyRequests {
			t.Fatalf("got %+v", err)
		}
	}
	if most := 20 + 5*int(time.Since(start)/time.Second+1); issued == 0 || issued > most {
		t.Errorf("%d were issued, at most %d may be", issued, most)
	}
	_, err = admin.Issue(ctx, order("other.test"))
	must(t, err) // nobody else pays for it
	count := 0
	for _, err := range p.client(client.Options{Certificate: client.CertificateFiles(dir.AdminCert(), dir.AdminKey())}).
		Certificates(ctx, client.CertificateFilter{Profile: "server"}) {
		must(t, err)
		count++
	}
	if count != issued+1 {
		t.Errorf("%d certificates are stored, %d were issued", count, issued+1)
	}
	p.stop()
}

// TestStoppedNodeFinishesWhatItBegan stops a node while it waits for the body of a call: the call is answered, and what it
// did is there afterwards; new connections are refused.
func TestStoppedNodeFinishesWhatItBegan(t *testing.T) {
	t.Parallel()
	dir := newAuthority(t, db.SQLite)
	p := startNode(t, dir)
	conn := p.dial()
	conn.SetDeadline(time.Now().Add(time.Minute))
	body, err := json.Marshal(order("last.test"))
	must(t, err)
	fmt.Fprintf(conn, "POST /api/v1/certificates HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"+
		"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v", line, err)
	}
	in.ReadString('\n')
	must(t, p.cmd.Process.Signal(syscall.SIGTERM))
	until(t, "new connections are refused", func() bool {
		other, err := net.Dial("tcp", p.API)
		if err == nil {
			other.Close()
		}
		return err != nil
	})
	select {
	case <-p.ended:
		t.Fatal("the node ended in the middle of a call")
	default:
	}
	_, err = conn.Write(body)
	must(t, err)
	answer, err := http.ReadResponse(in, nil)
	must(t, err)
	var out client.IssueResult
	must(t, json.NewDecoder(answer.Body).Decode(&out))
	if answer.StatusCode != http.StatusCreated || out.Certificate == nil {
		t.Fatalf("%d %+v", answer.StatusCode, out)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the node ended with %v:\n%s", err, p.log.String())
	}
	again := startNode(t, dir)
	found, err := again.admin().Certificate(t.Context(), "", out.Certificate.Serial)
	must(t, err)
	if found.State != client.StateValid || found.PEM != out.Certificate.PEM {
		t.Errorf("answered with %+v, and it is %+v", out.Certificate, found)
	}
	again.stop()
}
