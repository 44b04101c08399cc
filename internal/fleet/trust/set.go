package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/authority/revocation"
	"chancery/internal/pki/cert"
	"chancery/internal/store/db"
)

// maxSubjects bounds the revoked subjects in a trust set.
const maxSubjects = 1000

// followedRecently is how long ago Follow may have looked for kept sets to be handed out without a look.
const followedRecently = 2 * time.Second

// Sets are what a version of a pool's trust holds. They are shared by all hosts that have it, and not changed. Authority is
// not set in them, since it depends on the issuer that a host has: see Authority.
type Sets struct {
	Version int64
	General client.TrustSet
	Others  []client.TrustSet // for other purposes, by their names
	Hash    [sha256.Size]byte // of all that

	ends time.Time // when the first certificate in them ends; zero for none
}

// kept is what is known of a pool's trust.
type kept struct {
	signature string          // of what it was made from
	state     State           // as of signature
	sets      map[int64]*Sets // by version
	synced    string          // the shape of the issuers that were last brought in
}

// Of returns what a version of a pool's trust holds; version 0 is the one that the pool has. It may be what the last look of Follow
// found: hosts are many, and are woken where there is more.
func (s *Service) Of(ctx context.Context, pool string, version int64, now time.Time) (*Sets, error) {
	return s.of(ctx, pool, version, now, followedRecently)
}

// Present returns what a pool trusts by what the store holds now. Who administers it has just changed it, maybe: an issuer that he
// imported is in it.
func (s *Service) Present(ctx context.Context, pool string, now time.Time) (*Sets, error) {
	return s.of(ctx, pool, 0, now, 0)
}

// of is Of, where Follow looked at most so long before now.
func (s *Service) of(ctx context.Context, pool string, version int64, now time.Time, recently time.Duration) (*Sets, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.kept[pool]
	if known == nil {
		known = &kept{sets: map[int64]*Sets{}}
		s.kept[pool] = known
	}
	// What Follow saw after the caller began is newer than he asks for, unless a clock went back.
	if age := now.Sub(s.followed); age > -time.Minute && age < recently {
		if sets := known.at(version, now); sets != nil {
			return sets, nil
		}
	}
	issuers, err := s.IssuersOf(ctx, pool)
	if err != nil {
		return nil, err
	}
	if err := s.syncOnce(ctx, pool, known, issuers, now); err != nil {
		return nil, fmt.Errorf("bring the issuers of pool %s into its trust: %w", pool, err)
	}
	sets, err := s.makeOnce(ctx, pool, known, issuers, version, now)
	if err != nil {
		return nil, fmt.Errorf("make the trust set of pool %s: %w", pool, err)
	}
	return sets, nil
}

// at is what is kept of a version, nil where that is nothing, or where something in it has ended.
func (k *kept) at(version int64, now time.Time) *Sets {
	if version == 0 {
		version = k.state.Version
	}
	sets := k.sets[version]
	if sets == nil || !sets.ends.IsZero() && !now.Before(sets.ends) {
		return nil
	}
	return sets
}

// syncOnce brings in the issuers of a pool unless they are those that it brought in last. Where the store cannot be written,
// and there are versions, those serve.
func (s *Service) syncOnce(ctx context.Context, pool string, known *kept, issuers []*ca.Issuer, now time.Time) error {
	var st State
	err := s.DB.Read(ctx, func(tx *db.Tx) (err error) {
		st, err = StateOf(ctx, tx, pool)
		return err
	})
	if err != nil {
		return err
	}
	now = s.DB.Latest(now)
	shape := shapeOf(issuers, st)
	if shape == known.synced {
		return nil
	}
	if err := s.sync(ctx, pool, issuers, now); err != nil {
		if st.Version == 0 {
			return err
		}
		s.Logger.WarnContext(ctx, "issuers that came to be are not trusted yet, and are tried again", "pool", pool, "error", err)
		return nil
	}
	known.synced = shape
	return nil
}

// shapeOf says of what sync decides. A rollout that ends makes it another.
func shapeOf(issuers []*ca.Issuer, st State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%t %s\n", st.Version != 0, st.Rollout)
	for _, i := range issuers {
		fmt.Fprintf(&b, "%s %s\n", i.ID, i.State)
	}
	return b.String()
}

// sign says from what the sets of a pool are made: when it is the same, so are they. The root above the default issuer is in
// it because Authority depends on it.
func sign(issuers []*ca.Issuer, st State, numbers map[string]revocation.Numbered) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d %d\n", st.Version, st.change)
	for _, i := range issuers {
		fmt.Fprintf(&b, "%s %x %s %s\n", i.Name, sha256.Sum256(i.Certificate.Raw), i.State, numbers[i.ID].Number)
		if root := rootOf(i); i.Default && root != nil {
			fmt.Fprintf(&b, "default %x\n", sha256.Sum256(root.Raw))
		}
	}
	return b.String()
}

// makeOnce makes a version's sets unless they are kept.
func (s *Service) makeOnce(ctx context.Context, pool string, known *kept, issuers []*ca.Issuer, version int64, now time.Time) (*Sets, error) {
	var found *Sets
	err := s.DB.Read(ctx, func(tx *db.Tx) error {
		st, err := StateOf(ctx, tx, pool)
		if err != nil {
			return err
		}
		numbers, err := revocation.CurrentNumbers(ctx, tx)
		if err != nil {
			return err
		}
		if signature := sign(issuers, st, numbers); signature != known.signature {
			known.signature, known.state, known.sets = signature, st, map[int64]*Sets{}
		}
		if found = known.at(version, now); found != nil {
			return nil
		}
		if version == 0 {
			version = st.Version
		}
		found, err = readSets(ctx, tx, pool, version, issuers, numbers, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	if known.sets[found.Version] == nil || known.at(found.Version, now) == nil {
		text, err := json.Marshal([]any{found.General, found.Others})
		if err != nil {
			return nil, err
		}
		found.Hash = sha256.Sum256(text)
		known.sets[found.Version] = found
	}
	return found, nil
}

// readSets makes the sets of a version from the store.
func readSets(ctx context.Context, tx *db.Tx, pool string, version int64, issuers []*ca.Issuer, numbers map[string]revocation.Numbered,
	now time.Time) (*Sets, error) {
	entries, err := readEntries(ctx, tx, `pool = $1 AND pruned_at = 0`, pool)
	if err != nil {
		return nil, err
	}
	foreign, err := readNumbers(ctx, tx, pool)
	if err != nil {
		return nil, err
	}
	announced, err := readPinned(ctx, tx, `pool = $1`, pool)
	if err != nil {
		return nil, err
	}
	b := &builder{sets: &Sets{Version: version}, purposes: map[string]*client.TrustSet{}, ours: map[string]*ca.Issuer{}, numbers: numbers, foreign: foreign}
	for _, i := range issuers {
		b.ours[i.ID] = i
	}
	general := b.purpose(client.TrustGeneral)
	entries = slices.DeleteFunc(entries, func(e *entry) bool { return !e.in(version) || !now.Before(e.notAfter) })
	if entries, err = presentable(ctx, tx, entries); err != nil {
		return nil, err
	}
	for _, e := range entries {
		b.take(e)
	}
	// Who pins a certificate looks at no CRL as a rule: one that was revoked or is held is not handed out. A new CRL is what makes
	// the sets anew after that.
	var leaves []*x509.Certificate
	for _, p := range announced {
		leaves = append(leaves, p.certificate)
	}
	refused, err := ca.Refused(ctx, tx, leaves)
	if err != nil {
		return nil, err
	}
	for i, p := range announced {
		if now.Before(p.notAfter) && refused[i] == "" {
			set := b.purpose(p.purpose)
			if text := encode(p.certificate.Raw); !slices.Contains(set.Pinned, text) {
				set.Pinned = append(set.Pinned, text)
			}
			b.until(p.notAfter)
		}
	}
	for _, i := range b.trusted {
		left := maxSubjects - len(general.RevokedSubjects)
		if left == 0 {
			break
		}
		subjects, err := ca.RevokedSubjects(ctx, tx, i, now, left)
		if err != nil {
			return nil, err
		}
		general.RevokedSubjects = append(general.RevokedSubjects, subjects...)
	}
	return b.done(), nil
}

// builder gathers the sets of a version.
type builder struct {
	sets     *Sets
	purposes map[string]*client.TrustSet
	ours     map[string]*ca.Issuer // by ID
	numbers  map[string]revocation.Numbered
	foreign  map[string]numbered
	trusted  []*ca.Issuer // of ours, in the general set
}

func (b *builder) purpose(name string) *client.TrustSet {
	if b.purposes[name] == nil {
		b.purposes[name] = &client.TrustSet{Purpose: name, Version: b.sets.Version}
	}
	return b.purposes[name]
}

func (b *builder) until(end time.Time) {
	if b.sets.ends.IsZero() || end.Before(b.sets.ends) {
		b.sets.ends = end
	}
}

func (b *builder) take(e *entry) {
	set, text := b.purpose(e.purpose), encode(e.certificate.Raw)
	b.until(e.notAfter)
	switch e.kind {
	case client.TrustPinned:
		set.Pinned = append(set.Pinned, text)
		return
	case client.TrustAnchor:
		set.Anchors = append(set.Anchors, text)
	}
	issuer := client.TrustIssuer{PEM: text}
	if i := b.ours[e.issuer]; i != nil {
		n := b.numbers[i.ID]
		issuer.Name, issuer.CRLNumber, issuer.NextUpdate = i.Name, n.Number, n.NextUpdate
		if e.purpose == client.TrustGeneral && !slices.Contains(b.trusted, i) { // one that was renewed is there twice
			b.trusted = append(b.trusted, i)
		}
	} else {
		n := b.foreign[e.id]
		issuer.Entry, issuer.CRLNumber, issuer.NextUpdate = e.id, n.number, n.nextUpdate
	}
	set.Issuers = append(set.Issuers, issuer)
}

func (b *builder) done() *Sets {
	b.sets.General = *b.purposes[client.TrustGeneral]
	b.sets.General.Purpose = ""
	delete(b.purposes, client.TrustGeneral)
	for _, name := range slices.Sorted(maps.Keys(b.purposes)) {
		b.sets.Others = append(b.sets.Others, *b.purposes[name])
	}
	return b.sets
}

// Follow takes what one look at the store found, forgets the sets that it shows to be outdated, and returns the pools whose
// trust is another than at the last look. Issuers that came to be are brought in. now is when the look began.
func (s *Service) Follow(ctx context.Context, issuers []*ca.Issuer, states map[string]State, numbers map[string]revocation.Numbered, now time.Time) []string {
	byPool := map[string][]*ca.Issuer{}
	for _, i := range issuers { // by name, as signed
		if i.Certificate != nil && i.Pool != ca.IdentityPool {
			byPool[i.Pool] = append(byPool[i.Pool], i)
		}
	}
	for name := range states {
		if _, ok := byPool[name]; !ok {
			byPool[name] = nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var changed []string
	for name, those := range byPool {
		known := s.kept[name]
		if known == nil {
			known = &kept{sets: map[int64]*Sets{}}
			s.kept[name] = known
		}
		if shapeOf(those, states[name]) != known.synced {
			if err := s.syncOnce(ctx, name, known, those, now); err != nil {
				s.Logger.WarnContext(ctx, "issuers that came to be are not trusted yet, and are tried again", "pool", name, "error", err)
			}
		}
		if signature := sign(those, states[name], numbers); signature != known.signature {
			known.signature, known.state, known.sets = signature, states[name], map[int64]*Sets{}
			changed = append(changed, name)
		}
	}
	s.followed = now
	return changed
}

// Forget drops what is kept of a pool unless it was made from what the state and the CRLs in force now say.
func (s *Service) Forget(pool string, issuers []*ca.Issuer, st State, numbers map[string]revocation.Numbered) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.kept[pool]; known != nil && known.signature != sign(issuers, st, numbers) {
		known.sets = map[int64]*Sets{}
	}
}

// IssuersOf are the issuers of a pool that have a certificate, by name.
func (s *Service) IssuersOf(ctx context.Context, pool string) ([]*ca.Issuer, error) {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i *ca.Issuer) bool { return i.Pool != pool || i.Certificate == nil })
	sort.Slice(all, func(a, b int) bool { return all[a].Name < all[b].Name })
	return all, nil
}

// rootOf is the root above an issuer, nil where that is not known.
func rootOf(i *ca.Issuer) *x509.Certificate {
	for _, c := range above(i) {
		if cert.SelfIssued(c) {
			return c
		}
	}
	return nil
}

// Authority is the common name of the root above the issuer under which a host's certificates shall be: the one named, or the
// default of the pool. It stays while other roots come to be trusted, so that nothing is re-keyed for it.
func (s *Service) Authority(ctx context.Context, pool, issuer string) (string, error) {
	issuers, err := s.IssuersOf(ctx, pool)
	if err != nil {
		return "", err
	}
	for _, i := range issuers {
		if root := rootOf(i); root != nil && (issuer == "" && i.Default || issuer != "" && i.Name == issuer) {
			return commonName(root), nil
		}
	}
	for _, i := range issuers { // no default yet, or no longer
		if root := rootOf(i); root != nil {
			return commonName(root), nil
		}
	}
	return "", nil
}

// Authorities are the common names of all roots that a pool's issuers have, the retired ones' included: who has a certificate
// in an authority's name keeps the name until it has another.
func (s *Service) Authorities(ctx context.Context, pool string) ([]string, error) {
	issuers, err := s.IssuersOf(ctx, pool)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, first := range []bool{true, false} {
		for _, i := range issuers {
			for _, c := range above(i) {
				if name := commonName(c); i.Default == first && cert.SelfIssued(c) && name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	return names, nil
}

// commonName is the last one of a certificate's subject, empty where it has none.
func commonName(c *x509.Certificate) string {
	name, err := cert.ParseNameDER(c.RawSubject)
	if err != nil {
		return ""
	}
	if all := name.Attributes(cert.OIDCommonName); len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
