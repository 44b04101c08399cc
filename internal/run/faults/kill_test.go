package faults_test

import (
	"context"
	"crypto"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/client"
	"chancery/internal/store/db"
)

// witness is an outsider who notes what a node acknowledged, and holds later nodes to it.
type witness struct {
	t           *testing.T
	mu          sync.Mutex
	issued      map[string]string // key → serial, guarded by mu
	pending     map[string]bool   // key → the call has no answer, guarded by mu
	revoked     map[string]bool   // key → the revocation was acknowledged, guarded by mu
	crlNumber   *big.Int
	checkpoints []string
}

// work issues and revokes until the node is gone. Its names are its own.
func (w *witness) work(ctx context.Context, c *client.Client, name string, acknowledged chan<- struct{}) {
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("%s-%d", name, i)
		if !w.issue(ctx, c, key) {
			return
		}
		if i%3 == 0 && !w.revoke(ctx, c, key) {
			return
		}
		tell(acknowledged)
	}
}

// tell wakes who waits for the first of them.
func tell(acknowledged chan<- struct{}) {
	select {
	case acknowledged <- struct{}{}:
	default:
	}
}

// issue makes the call of a key, and reports whether it was answered.
func (w *witness) issue(ctx context.Context, c *client.Client, key string) bool {
	w.mu.Lock()
	w.pending[key] = true
	w.mu.Unlock()
	out, err := c.Issue(client.WithIdempotencyKey(ctx, key), order(key+".test"))
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return false
	}
	if before, ok := w.issued[key]; ok && before != out.Certificate.Serial {
		w.t.Errorf("key %s got serial %s, repeated it got %s", key, before, out.Certificate.Serial)
	}
	w.issued[key] = out.Certificate.Serial
	delete(w.pending, key)
	return true
}

func (w *witness) revoke(ctx context.Context, c *client.Client, key string) bool {
	w.mu.Lock()
	serial := w.issued[key]
	w.mu.Unlock()
	out, err := c.Revoke(client.WithIdempotencyKey(ctx, "revoke-"+key), "", serial, client.RevokeRequest{Reason: "superseded"})
	if err != nil {
		return false
	}
	if out.State != client.StateRevoked {
		w.t.Errorf("%s was revoked and is %s", serial, out.State)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked[key] = true
	return true
}

// hold repeats every call with its key to a node that was started anew, and compares.
func (w *witness) hold(ctx context.Context, p *process) {
	w.t.Helper()
	c := p.admin()
	list := p.crl("default")
	if w.crlNumber != nil && list.Number.Cmp(w.crlNumber) < 0 {
		w.t.Errorf("CRLNumber was %v and is %v", w.crlNumber, list.Number)
	}
	w.crlNumber = list.Number
	issuer := issuerOf(w.t, c)
	for key := range w.revoked { // before anything is repeated
		if status := ask(w.t, p, issuer, w.issued[key]); status != xocsp.Revoked {
			w.t.Errorf("%s was acknowledged as revoked and OCSP says %d", key, status)
		}
	}
	for _, keys := range []map[string]bool{w.pending, keysOf(w.issued)} {
		for key := range keysOf(keys) {
			if !w.issue(ctx, c, key) {
				w.t.Errorf("the repeated call %s was not answered", key)
			}
		}
	}
	for key := range keysOf(w.revoked) {
		if !w.revoke(ctx, c, key) {
			w.t.Errorf("the repeated revocation of %s was refused", key)
		}
	}
	w.inventory(ctx, c)
	fresh, err := c.IssueCRL(ctx, "default", client.IssueCRLRequest{})
	must(w.t, err)
	number, _ := new(big.Int).SetString(fresh.Number, 10)
	if number.Cmp(w.crlNumber) <= 0 {
		w.t.Errorf("CRLNumber was %v, and the next is %v", w.crlNumber, number)
	}
	w.onList(p, number)
	verified(w.t, c, w.checkpoints...)
	signed, err := c.SignCheckpoint(ctx)
	must(w.t, err)
	w.checkpoints = append(w.checkpoints, signed.Text)
}

// onList wants every acknowledged revocation on the CRL of that number or a later one.
func (w *witness) onList(p *process, number *big.Int) {
	w.t.Helper()
	list := p.crl("default")
	if list.Number.Cmp(number) < 0 {
		w.t.Errorf("CRL %v was signed, and %v is served", number, list.Number)
	}
	w.crlNumber = list.Number
	on := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		on[fmt.Sprintf("%x", e.SerialNumber)] = true
	}
	for key := range w.revoked {
		if !on[strings.TrimLeft(w.issued[key], "0")] {
			w.t.Errorf("%s (%s) is revoked and not on the CRL", key, w.issued[key])
		}
	}
}

// inventory wants each key's certificate once, in its state, and nothing that nobody asked for.
func (w *witness) inventory(ctx context.Context, c *client.Client) {
	w.t.Helper()
	states := map[string]string{}
	n := 0
	for found, err := range c.Certificates(ctx, client.CertificateFilter{Profile: "server"}) {
		must(w.t, err)
		states[found.Serial] = found.State
		n++
	}
	if n != len(states) || n != len(w.issued) {
		w.t.Errorf("%d certificates with %d serials for %d keys", n, len(states), len(w.issued))
	}
	for key, serial := range w.issued {
		if state := states[serial]; state == "" || w.revoked[key] && state != client.StateRevoked {
			w.t.Errorf("%s (%s) is %q, acknowledged as revoked: %v", key, serial, state, w.revoked[key])
		}
	}
}

func keysOf[V any](m map[string]V) map[string]bool {
	keys := make(map[string]bool, len(m))
	for k := range m {
		keys[k] = true
	}
	return keys
}

// TestKilledNodeLosesNothing kills a node with SIGKILL at random moments while clients issue and revoke, starts it again,
// and repeats every call with its key.
func TestKilledNodeLosesNothing(t *testing.T) {
	t.Parallel()
	for _, engine := range []db.Dialect{db.SQLite, db.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			const seed, rounds, clients = 20_240_601, 4, 4
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			dir, ctx := newAuthority(t, engine), t.Context()
			w := &witness{t: t, issued: map[string]string{}, pending: map[string]bool{}, revoked: map[string]bool{}}
			for round := range rounds {
				p := startNode(t, dir)
				until(t, "a CRL is served", func() bool { s, _ := get(t, "http://"+p.Public+"/crl/default.crl"); return s == http.StatusOK })
				if round > 0 {
					w.hold(ctx, p)
				}
				acknowledged := make(chan struct{}, 1)
				var group sync.WaitGroup
				for n := range clients {
					c := p.admin()
					group.Go(func() {
						w.work(ctx, c, fmt.Sprintf("r%d-c%d", round, n), acknowledged)
						tell(acknowledged) // or nobody kills the node of which all clients despair
					})
				}
				<-acknowledged
				<-time.After(time.Duration(random.Int64N(int64(250 * time.Millisecond)))) // the random moment
				p.kill()
				group.Wait()
			}
			last := startNode(t, dir)
			w.hold(ctx, last)
			if len(w.issued) < rounds || len(w.revoked) == 0 {
				t.Fatalf("%d certificates and %d revocations prove nothing", len(w.issued), len(w.revoked))
			}
			t.Logf("%d certificates, %d revocations", len(w.issued), len(w.revoked))
			last.stop()
		})
	}
}

// issuerOf is the certificate of the default pool's issuer.
func issuerOf(t testing.TB, c *client.Client) *client.Issuer {
	t.Helper()
	i, err := c.Issuer(t.Context(), "default")
	must(t, err)
	return i
}

// ask asks a node's OCSP responder about a serial, and returns the status. A node that has no responder yet says tryLater.
func ask(t testing.TB, p *process, issuer *client.Issuer, serial string) int {
	t.Helper()
	return answer(t, p, issuer, serial).Status
}

func answer(t testing.TB, p *process, issuer *client.Issuer, serial string) (response *xocsp.Response) {
	t.Helper()
	c := parsed(t, issuer.PEM)
	number, ok := new(big.Int).SetString(serial, 16)
	if !ok {
		t.Fatalf("serial %q", serial)
	}
	request, err := xocsp.CreateRequest(certificateWith(number, c), c, &xocsp.RequestOptions{Hash: crypto.SHA256})
	must(t, err)
	until(t, "there is a responder", func() bool {
		status, body := post(t, "http://"+p.Public+"/ocsp", "application/ocsp-request", request)
		response, err = xocsp.ParseResponse(body, c)
		if refusal, ok := err.(xocsp.ResponseError); ok && refusal.Status == xocsp.TryLater {
			return false
		}
		if status != http.StatusOK || err != nil {
			t.Fatalf("OCSP: %d, %v", status, err)
		}
		return true
	})
	return response
}
