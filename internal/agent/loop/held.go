package loop

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"time"

	"chancery/client"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
)

// The files of a placement, in placements/NAME of the state directory. ID is a certificate's of the plan.
const (
	fileRecord   = "record.json" // what was placed, and what was seen
	fileTrust    = "trust.json"  // the trust that was placed
	suffixHeld   = ".json"       // ID.json: the key and path that are placed
	suffixNext   = ".next.json"  // ID.next.json: a key and path that were issued and are to be placed
	suffixWanted = ".wanted.json"
	suffixPass   = ".password" // of a key store, where the agent made it
)

// held is a key with its certification path, in one file, so that they cannot fall apart.
type held struct {
	Planned recipe.PlannedCertificate `json:"planned"` // what it was asked for as
	Pool    string                    `json:"pool,omitempty"`
	Epoch   string                    `json:"epoch,omitempty"`   // of the join in whose name it was issued
	Reissue int64                     `json:"reissue,omitempty"` // the number under which it was asked for
	Key     string                    `json:"key"`               // PKCS#8, PEM
	Path    string                    `json:"path"`              // PEM, leaf first, the root left out

	key  crypto.Signer
	path []*x509.Certificate
}

func (h *held) parse() (err error) {
	if h.key, err = keyfile.ParsePrivateKey([]byte(h.Key), nil); err != nil {
		return err
	}
	h.path, err = keyfile.ParseCertificates([]byte(h.Path))
	return err
}

// along has the certificate held with a path that it was placed with, which is another one where an issuer was renewed.
func (h *held) along(path []*x509.Certificate) {
	if !slices.EqualFunc(h.path, path, (*x509.Certificate).Equal) {
		h.path, h.Path = path, string(keyfile.EncodeCertificates(path...))
	}
}

func (h *held) leaf() *x509.Certificate { return h.path[0] }

func (h *held) serial() string { return cert.FormatSerial(h.leaf().SerialNumber) }

// wanted is a certificate that was asked for, or is about to be: the key, and the call word for word with its idempotency
// key, so that after a crash the same call gets the same certificate.
type wanted struct {
	Planned        recipe.PlannedCertificate `json:"planned"`
	Why            string                    `json:"why"`
	At             time.Time                 `json:"at"`
	Key            string                    `json:"key"`
	IdempotencyKey string                    `json:"idempotency_key"`
	Epoch          string                    `json:"epoch,omitempty"`
	Reissue        int64                     `json:"reissue,omitempty"`
	Request        client.IssueRequest       `json:"request"`
	// Replaces is the serial number of the certificate that is re-keyed, or with Renew renewed. Where it is empty the call is
	// for a certificate of its own.
	Replaces string `json:"replaces,omitempty"`
	Renew    bool   `json:"renew,omitempty"`
	// Refused is what came and was not fit to be placed, the first time; nil where nothing like that came.
	Refused *refused `json:"refused,omitempty"`
}

// newWanted makes a key, or takes the pinned one, and the request for it.
func newWanted(planned recipe.PlannedCertificate, pool string, pinned crypto.Signer, why string, now time.Time) (*wanted, error) {
	key := pinned
	if key == nil {
		algorithm, err := keyfile.ParseAlgorithm(planned.Algorithm)
		if err != nil {
			return nil, err
		}
		if key, err = keyfile.Generate(algorithm, 0); err != nil {
			return nil, err
		}
	}
	text, err := keyfile.EncodePKCS8(key)
	if err != nil {
		return nil, err
	}
	template := &cert.CSRTemplate{}
	if planned.Subject != "" {
		if template.Subject, err = cert.ParseName(planned.Subject); err != nil {
			return nil, err
		}
	}
	for _, name := range planned.Names {
		general, err := cert.ParseGeneralName(name)
		if err != nil {
			return nil, err
		}
		template.SAN = append(template.SAN, general)
	}
	csr, err := requestPEM(template, key)
	if err != nil {
		return nil, err
	}
	return &wanted{
		Planned: planned, Why: why, At: now, Key: string(text), IdempotencyKey: rand.Text(),
		Request: client.IssueRequest{Pool: pool, Profile: planned.Profile, CSR: csr},
	}, nil
}

// sameWish reports whether two planned certificates would be asked for alike. How the key is written, and whether it is
// pinned, does not matter to a certificate that is there.
func sameWish(a, b recipe.PlannedCertificate) bool {
	sorted := func(list []string) []string { c := slices.Clone(list); sort.Strings(c); return slices.Compact(c) }
	return a.Profile == b.Profile && a.Subject == b.Subject && slices.Equal(sorted(a.Names), sorted(b.Names)) &&
		slices.Equal(sorted(a.Usages), sorted(b.Usages)) && slices.Equal(sorted(a.KeyUsages), sorted(b.KeyUsages)) && sameAlgorithm(a.Algorithm, b.Algorithm)
}

func sameAlgorithm(a, b string) bool {
	x, err1 := keyfile.ParseAlgorithm(a)
	y, err2 := keyfile.ParseAlgorithm(b)
	return err1 == nil && err2 == nil && plainAlgorithm(x) == plainAlgorithm(y)
}

// plainAlgorithm names the size that an algorithm without one stands for.
func plainAlgorithm(a keyfile.Algorithm) keyfile.Algorithm {
	switch a {
	case "", keyfile.RSA:
		return keyfile.RSA3072
	case keyfile.ECDSA:
		return keyfile.ECDSAP256
	}
	return a
}

// Record is what an agent knows of a placement between two passes.
type Record struct {
	Order client.PlacementOrder `json:"order"`
	Plan  *recipe.Plan          `json:"plan,omitempty"` // as it was placed; nil before
	// Recipe is that plan's, by the name under which this host accepts it. The order may be another one meanwhile.
	Recipe string `json:"recipe,omitempty"`
	// Reads are what that plan reads and runs beside its files.
	Reads []recipe.Read `json:"reads,omitempty"`
	// Placed are digests of what was placed.
	Placed digests `json:"placed,omitzero"`
	// Trust is the version of the trust set that was last seen to be in use, and still is unless Placed says otherwise.
	Trust int64 `json:"trust,omitempty"`
	// CRLEnds is when the first of the CRLs ends that were placed.
	CRLEnds time.Time `json:"crl_ends,omitzero"`
	// Known are the facts that commands told the last time that they did, by name.
	Known map[string]knownFact `json:"known,omitempty"`
	// Owed is the reload that a placement which was begun still owes: owedReload, or owedGentle.
	Owed string `json:"owed,omitempty"`
	// Ended is what a consumer was given last when it ended of it and was not started again.
	Ended digests `json:"ended,omitzero"`
	// Dropped are the subjects whose clients were disconnected, and how often each was revoked then.
	Dropped map[string]int `json:"dropped,omitempty"`
	// Notes are what the last placement could not do and did not need to, and Kept the copies of what it took over.
	Notes    []string           `json:"notes,omitempty"`
	Kept     []string           `json:"kept,omitempty"`
	Repaired []string           `json:"repaired,omitempty"` // the last drift, for a day
	MendedAt time.Time          `json:"mended_at,omitzero"`
	Departed []string           `json:"departed,omitempty"` // what left stores of others with the trust the last time, for a day
	LeftAt   time.Time          `json:"left_at,omitzero"`
	Observed client.Observation `json:"observed"`
	// Gone says that the authority does not list the placement any more. Its files are left as they are.
	Gone bool `json:"gone,omitempty"`
	// Offline is who the host is, where the placement was begun by hand and the authority does not know of it.
	Offline *recipe.Host `json:"offline,omitempty"`
}

// What Record.Owed says.
const (
	owedReload = "reload"
	owedGentle = "reload that may not interrupt"
)

// folder is the part of the state directory that is a placement's.
type folder struct {
	state *State
	name  string
	work  *Record  // the record that is worked on: the first that was read
	told  []string // what was set aside
}

func (s *State) folder(name string) (*folder, error) {
	if !plainName(name) {
		return nil, fault.New(fault.Invalid, "%q is no name of a placement; letters, digits, - _ and . pass", name)
	}
	return &folder{state: s, name: name}, nil
}

// folders are the names of all placements that are held.
func (s *State) folders() ([]string, error) {
	entries, err := os.ReadDir(s.path(dirPlacements))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && plainName(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// read reads a file of the placement. One that cannot be read is set aside and counts as one that is not there: what it
// held can be had again, and leaving it would fail the placement for ever. Who only looks leaves it and is told.
func (f *folder) read(value any, parse func() error, name, instead string) (bool, error) {
	found, err := f.state.readJSON(value, dirPlacements, f.name, name)
	if err == nil && found && parse != nil {
		if wrong := parse(); wrong != nil {
			err = &unreadable{path: f.state.path(dirPlacements, f.name, name), err: wrong}
		}
	}
	broken, is := errors.AsType[*unreadable](err)
	if !is || f.state.lock == nil {
		return found && err == nil, err
	}
	kept, err := f.state.putAway(dirPlacements, f.name, name)
	if err != nil {
		return false, errors.Join(broken, err)
	}
	f.state.log.Warn("a file of the state directory cannot be read, and is set aside", "placement", f.name, "file", broken.path, "because", broken.err,
		"kept", kept)
	f.told = append(f.told, fmt.Sprintf("%s could not be read (%v) and was set aside as %s: %s", broken.path, broken.err, kept, instead))
	f.work.tell(f.told[len(f.told)-1:], f.state.now())
	return false, nil
}

// tell notes what was repaired, beside what was less than a day ago.
func (r *Record) tell(what []string, now time.Time) {
	if r == nil || len(what) == 0 {
		return
	}
	if now.Sub(r.MendedAt) >= toldFor {
		r.Repaired = nil
	}
	r.Repaired, r.MendedAt = append(r.Repaired, what...), now
}

func (f *folder) record() (*Record, error) {
	r := &Record{}
	found, err := f.read(r, nil, fileRecord, "the placement is looked at anew, and its consumer told again")
	if err != nil || !found {
		r = &Record{}
	}
	if f.work == nil && err == nil {
		f.work = r
		r.tell(f.told, f.state.now())
	}
	return r, err
}

func (f *folder) keepRecord(r *Record) error {
	return f.state.writeJSON(r, dirPlacements, f.name, fileRecord)
}

// held reads what is placed for a certificate, or with suffixNext what is to be; nil where there is none.
func (f *folder) held(id, suffix string) (*held, error) {
	var h held
	found, err := f.read(&h, h.parse, id+suffix, "where a certificate is wanted in its place, a new one is asked for")
	if err != nil || !found {
		return nil, err
	}
	return &h, nil
}

func (f *folder) keepHeld(h *held, suffix string) error {
	return f.state.writeJSON(h, dirPlacements, f.name, h.Planned.ID+suffix)
}

func (f *folder) wanted(id string) (*wanted, error) {
	var w wanted
	parse := func() error { _, err := keyfile.ParsePrivateKey([]byte(w.Key), nil); return err }
	found, err := f.read(&w, parse, id+suffixWanted, "the certificate is asked for with another key")
	if err != nil || !found {
		return nil, err
	}
	return &w, nil
}

func (f *folder) keepWanted(w *wanted) error {
	return f.state.writeJSON(w, dirPlacements, f.name, w.Planned.ID+suffixWanted)
}

func (f *folder) drop(id, suffix string) error {
	return f.state.remove(dirPlacements, f.name, id+suffix)
}

// password is the password that the agent made for a file of this placement; nil where it made none.
func (f *folder) password(path string) ([]byte, error) {
	return f.state.read(dirPlacements, f.name, passwordName(path))
}

func (f *folder) keepPassword(path string, password []byte) error {
	return f.state.write(password, dirPlacements, f.name, passwordName(path))
}

func passwordName(path string) string {
	return fmt.Sprintf("%x", client.Fingerprint([]byte(path))[:12]) + suffixPass
}
