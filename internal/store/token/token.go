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
//   - A PIN that a token refused is not tried again, by this process or a later one on the same directory, until the PIN's
//     file holds another.
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
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/token/wire"
)

// Options are what Tokens works with.
type Options struct {
	Node   string // its name, for what is said to people
	Dir    string // where the sockets and the refused PINs are kept; empty means a temporary directory, and no memory of PINs
	Helper string // path of chancery-pkcs11; empty means beside this program, or where PATH has it
	Places []Place
	Logger *slog.Logger
}

// Tokens are the tokens that one node reaches. New starts nothing; Close ends what was started.
type Tokens struct {
	node   string
	dir    string
	helper string
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

	mu      sync.Mutex // held while a key is being opened, so that a wrong PIN is tried by one and not by all
	refused string     // the PIN that the token refused
	unknown int        // logins in a row whose outcome nobody knows, since the helper died meanwhile
	missing bool       // the last look found no such token

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
	t := &Tokens{node: o.Node, dir: o.Dir, helper: o.Helper, logger: o.Logger, libraries: map[string]*library{}}
	for _, p := range o.Places {
		if p.Sessions == 0 {
			p.Sessions = defaultSessions
		}
		t.places = append(t.places, &reach{Place: p, name: p.Module + "\n" + p.Token + "\n" + p.Serial})
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
	ctx, cancel := context.WithTimeout(ctx, signBound)
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

// library is a PKCS #11 library and the helper that has it loaded.
type library struct {
	path  string
	turns int

	mu      sync.Mutex // guards what follows; held while a helper is being started
	current *helper
	fails   int // helpers in a row that were lost before they did anything
	again   time.Time
	closed  bool
}

func (t *Tokens) library(r *reach) (*library, error) {
	if err := checkModule(r.Module); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fault.New(fault.Unavailable, "node %s is ending", t.node)
	}
	l := t.libraries[r.Module]
	if l == nil {
		turns := 0
		for _, other := range t.places {
			if other.Module == r.Module {
				turns += other.Sessions
			}
		}
		l = &library{path: r.Module, turns: min(turns, MaxSessions)}
		t.libraries[r.Module] = l
	}
	return l, nil
}

// maxRest is how long nothing is started at most, after helpers were lost one after the other.
const maxRest = 5 * time.Second

// running returns the helper, and starts one where none runs.
func (l *library) running(ctx context.Context, t *Tokens) (*helper, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fault.New(fault.Unavailable, "node %s is ending", t.node)
	}
	if l.current != nil && !l.current.isLost() {
		return l.current, nil
	}
	if l.current != nil {
		l.current.stop()
		l.current = nil
	}
	if err := rest(ctx, time.Until(l.again)); err != nil {
		return nil, fault.New(fault.Unavailable, "the PKCS #11 helper was lost %d times in a row, and the next one is not started yet", l.fails)
	}
	program, err := t.program()
	if err != nil {
		return nil, err
	}
	dir, err := t.sockets()
	if err != nil {
		return nil, err
	}
	l.lost()
	l.current, err = start(ctx, program, dir, l.path, l.turns, t.logger)
	return l.current, err
}

// lost counts a helper as lost until it did something.
func (l *library) lost() {
	if l.fails++; l.fails > 1 {
		l.again = time.Now().Add(min(maxRest, 25*time.Millisecond<<min(l.fails, 16)))
	}
}

// works is told when a helper did something.
func (l *library) works(h *helper) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == h {
		l.fails, l.again = 0, time.Time{}
	}
}

// drop ends a helper that is of no use any more.
func (l *library) drop(h *helper) {
	h.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == h {
		l.current = nil
	}
}

func (l *library) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.current != nil {
		l.current.stop()
		l.current = nil
	}
}

func rest(ctx context.Context, pause time.Duration) error {
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const programName = "chancery-pkcs11"

// program finds the helper.
func (t *Tokens) program() (string, error) {
	if t.helper != "" {
		return t.helper, nil
	}
	if own, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(own), programName)
		if stat, err := os.Stat(beside); err == nil && stat.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(programName)
	if err != nil {
		return "", fault.New(fault.Unavailable, "the helper %s, which keys in PKCS #11 tokens need, is neither beside this program nor in PATH", programName).
			WithHint("install it, or name it in node.yaml: pkcs11.helper")
	}
	return filepath.Abs(path)
}

// sockets is the directory of the helpers' sockets.
func (t *Tokens) sockets() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == "" {
		dir, err := os.MkdirTemp("", "chancery-pkcs11-")
		if err != nil {
			return "", err
		}
		t.dir, t.temporary = dir, true
	}
	return t.dir, nil
}

// refusals is where refused PINs are remembered.
func (t *Tokens) refusals() refusals {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == "" || t.temporary {
		return ""
	}
	return refusals(filepath.Join(t.dir, "refused-pins.json"))
}

// pin returns the PIN of a place, unless the token refused it already. The caller holds r.mu.
func (t *Tokens) pin(r *reach) (string, error) {
	pin, err := readPIN(r.PINFile)
	if err != nil || pin == "" {
		return "", err
	}
	if r.refused == pin || t.refusals().load()[r.name].is(pin) {
		r.refused = pin
		return "", fault.New(fault.Unavailable, "the token %s refused the PIN in %s, which is not tried again, since a few wrong ones lock it", r, r.PINFile).
			WithHint("write the right PIN into %s: it is read anew by the next call", r.PINFile)
	}
	return pin, nil
}

// attempt asks a helper to open a key, and learns from the answer. why says what is wrong with the token.
func (t *Tokens) attempt(ctx context.Context, r *reach, l *library, h *helper, u *URI) (key *wire.Key, why string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why := r.resting(time.Now()); why != "" { // the one before us was in vain
		return nil, why, nil
	}
	pin, err := t.pin(r)
	if err != nil {
		return nil, "", err
	}
	if r.unknown >= maxUnknown {
		return nil, fmt.Sprintf("the helper was lost %d times while it logged in to it; as each may have counted as a wrong PIN, it is not tried "+
			"again before the node is started anew", r.unknown), nil
	}
	asked := u.selector()
	asked.Careful = r.unknown > 0
	r.unknown++
	code, text, key, err := h.open(ctx, asked, pin)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.restFor(shortRest, fmt.Sprintf("it did not answer within %s", answerTime))
	}
	if err != nil {
		if errors.Is(err, errLost) {
			l.drop(h)
		}
		return nil, "", err
	}
	r.unknown = 0
	if code != wire.Absent && code != wire.Gone {
		r.missing = false
	}
	switch code {
	case wire.OK:
		r.refused = ""
		return key, "", t.refusals().note(r.name, "")
	case wire.Object, wire.Unable, wire.Refused:
		return nil, "", fault.New(fault.Invalid, "the token %s on node %s: %s", r, t.node, text)
	case wire.PIN:
		r.refused = pin
		if err := t.refusals().note(r.name, pin); err != nil {
			t.logger.Error("a refused PIN is remembered until the node ends only", "error", err)
		}
		return nil, fmt.Sprintf("%s; the one in %s is not tried again", text, r.PINFile), nil
	case wire.Absent, wire.Gone:
		// A library that is loaded anew sees what has come since, so the first time it is looked once more.
		l.works(h)
		others := h.found.Load() > 0
		l.drop(h)
		if !r.missing {
			r.missing = true
			return nil, "", errors.Join(errLost, errors.New(text))
		}
		pause := shortRest
		if others {
			pause = longRest
		}
		r.restFor(pause, text)
		return nil, text, nil
	}
	r.restFor(shortRest, text)
	return nil, text, nil
}

// maxUnknown is how many logins in a row may end without anybody knowing how.
const maxUnknown = 5

var _ crypto.Signer = (*Key)(nil)
