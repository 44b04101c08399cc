// Package token signs with private keys that lie in PKCS #11 tokens, hardware modules for the most part, and never leave
// them. A key is named by a PKCS #11 URI (RFC 7512); signatures come from the helper program chancery-pkcs11, one process
// for each library, which is started when it is first needed and again whenever it dies.
//
// What is promised:
//
//   - A signature that leaves the package verifies under the key that was asked for. A library that answers wrongly, by a
//     fault or on purpose, is an error and not a certificate.
//   - A call whose helper died, hung or lost its token is made again with a new helper, up to a bound, and then fails: it
//     never waits for ever, and a failure is never taken for a signature.
//   - A PIN that a token refused is not tried again, by this process or another one on the same directory, until the PIN's
//     file holds another. A library that hangs before it shows the token is sent none.
//   - The library and the helper are code that nobody but root and this process's user can exchange, on the whole way from
//     the root of the file system.
//   - Tokens are found by label and serial number. Slots are renumbered by many libraries when a token is added.
//
// Divergences from RFC 7512: pin-value is refused, because a URI stands in argument lists; attributes that are not known
// are refused and not passed over; pin-source takes files only.
//
// All methods may be called from any goroutine.
package token

import (
	"context"
	"crypto"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
)

// Options are what Tokens works with.
type Options struct {
	Node   string        // its name, for what is said to people
	Dir    string        // where the sockets and the refused PINs are kept; empty means a temporary directory, and no memory of PINs
	Helper string        // path of chancery-pkcs11; empty means beside this program, or where PATH has it
	Answer time.Duration // how long one request, or the start of a helper, may take before it is taken for hung; 0 means 10 s
	Places []Place
	Logger *slog.Logger
}

// Tokens are the tokens that one node reaches. New starts nothing; Close ends what was started.
type Tokens struct {
	node   string
	dir    string
	helper string
	answer time.Duration
	logger *slog.Logger
	places []*reach

	mu        sync.Mutex // guards what follows
	libraries map[string]*library
	temporary bool
	closed    bool
}

// reach is a place with what was learnt of it.
type reach struct {
	Place
	name string // under which a refused PIN is remembered

	opening  turn   // held while a key is being opened, so that a wrong PIN is tried by one and not by all; guards what follows
	refused  string // the PIN that the token refused
	accepted pinSum // of the PIN that it took last, in this process
	unknown  int    // logins in a row whose outcome nobody knows, since the helper died meanwhile
	missing  bool   // the last look found no such token

	rest  sync.Mutex // guards what follows
	why   string     // what the last look said, where it was in vain
	again time.Time  // when the next one may be
}

// resting says why the token is not looked for at this moment; nothing where it may be.
func (r *reach) resting(now time.Time) string {
	r.rest.Lock()
	defer r.rest.Unlock()
	if now.Before(r.again) {
		return r.why
	}
	return ""
}

// restFor has nobody look for a while, so that a token which is away costs callers no time, and a helper no restart.
func (r *reach) restFor(pause time.Duration, why string) {
	r.rest.Lock()
	defer r.rest.Unlock()
	r.why, r.again = why, time.Now().Add(pause)
}

// How long a token that was in vain is not looked for: where the helper has keys of another token too, looking again, for
// which a library has to be loaded anew, disturbs those who sign.
const (
	shortRest = 2 * time.Second
	longRest  = 30 * time.Second
)

// New returns the tokens of a node.
func New(o Options) *Tokens {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Answer == 0 {
		o.Answer = answerTime
	}
	t := &Tokens{node: o.Node, dir: o.Dir, helper: o.Helper, answer: o.Answer, logger: o.Logger, libraries: map[string]*library{}}
	for _, p := range o.Places {
		if p.Sessions == 0 {
			p.Sessions = defaultSessions
		}
		t.places = append(t.places, &reach{Place: p, name: p.Module + "\n" + p.Token + "\n" + p.Serial, opening: newTurn()})
	}
	return t
}

// Close ends the helpers. Keys that are used afterwards are refused.
func (t *Tokens) Close() error {
	t.mu.Lock()
	t.closed = true
	all := t.libraries
	t.libraries = nil
	dir, temporary := t.dir, t.temporary
	t.mu.Unlock()
	for _, l := range all {
		l.close()
	}
	if temporary {
		return os.RemoveAll(dir)
	}
	return nil
}

// PlaceOf returns the place that a URI describes by itself, and false where it does not say which library to load.
func PlaceOf(u *URI) (Place, bool, error) {
	p := Place{Token: u.Token, Serial: u.Serial, Module: u.ModulePath, PINFile: u.PINSource}
	if u.ModuleName != "" {
		var err error
		if p.Module, err = findModule(u.ModuleName); err != nil {
			return p, false, err
		}
	}
	return p, p.Module != "", nil
}

// Open finds a key, and proves by a signature that the token can sign with it what its public key verifies. The key that
// is returned knows the URI under which it is found again.
func (t *Tokens) Open(ctx context.Context, u *URI) (*Key, error) {
	places := slices.Clone(t.places)
	places = slices.DeleteFunc(places, func(r *reach) bool { return !r.holds(u) })
	if len(places) == 0 {
		return nil, t.away(u, "node.yaml names no such token under pkcs11", nil)
	}
	var errs []error
	for _, r := range places {
		k, err := t.openAt(ctx, r, u)
		if err == nil {
			return k, nil
		}
		errs = append(errs, err)
	}
	return nil, errs[0]
}

func (t *Tokens) openAt(ctx context.Context, r *reach, u *URI) (*Key, error) {
	ctx, cancel := context.WithTimeout(ctx, t.signBound())
	defer cancel()
	k := &Key{tokens: t, reach: r, asked: r.here(u)}
	found, err := k.locate(ctx)
	if err != nil {
		return nil, err
	}
	if k.public, err = cert.ParsePublicKey(found.SPKI); err != nil {
		return nil, fmt.Errorf("the public key in token %s: %w", r, err)
	}
	if k.uri, err = stable(found); err != nil {
		return nil, err
	}
	if r.ReplicaOf != "" { // the one it is a copy of may have another label
		k.uri.Serial, k.uri.Token = r.ReplicaOf, ""
	}
	k.spki, k.Extractable = found.SPKI, found.Extractable
	k.asked = r.here(k.uri)
	return k, k.prove(ctx)
}

// within is a key whose signatures end with a context.
type within struct {
	*Key
	ctx context.Context
}

func (w within) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return w.sign(w.ctx, digest, opts)
}

// prove signs something that is no certificate, and verifies it, as Sign does with everything.
func (k *Key) prove(ctx context.Context) error {
	text := append([]byte("chancery asks whether this token holds the private key of the public key that it shows: "), rand.Text()...)
	algorithm, err := cert.DefaultAlgorithm(k.public)
	if err != nil {
		return err
	}
	_, err = algorithm.Sign(within{k, ctx}, text)
	return err
}

// away says that this node does not reach a key. It names the node, since another one may reach it.
func (t *Tokens) away(u *URI, why string, cause error) error {
	e := fault.New(fault.Unavailable, "node %s cannot sign with the key %s in a PKCS #11 token: %s", t.node, u, why).
		WithHint("chancery doctor; a node that reaches the token signs meanwhile")
	e.Err = cause
	return e
}

var _ crypto.Signer = (*Key)(nil)
