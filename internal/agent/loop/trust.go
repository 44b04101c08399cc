package loop

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// maxCRL bounds a CRL that is fetched: a million entries and some.
const maxCRL = 64 << 20

// trusts are what the consumers of this host are to trust, by what it is for.
type trusts struct {
	general *trust
	others  map[string]*trust
}

// trust is what is trusted for one purpose, parsed.
type trust struct {
	purpose   string
	version   int64
	authority string
	anchors   []*x509.Certificate
	issuers   []trustIssuer
	pinned    []*x509.Certificate
	revoked   [][]byte // subjects
	ended     []string // what was left out, since it has ended

	load   func() // brings the CRLs, the first time that a plan wants them
	loaded bool
}

type trustIssuer struct {
	client.TrustIssuer
	certificate *x509.Certificate
	crl         []byte // DER; nil where there is none
	list        *crl.List
}

// keptTrust is the trust that was placed, as it is kept.
type keptTrust struct {
	Authority string   `json:"authority"`
	Anchors   string   `json:"anchors"` // PEM
	Issuers   string   `json:"issuers,omitempty"`
	Pinned    string   `json:"pinned,omitempty"`
	PathRoots string   `json:"path_roots,omitempty"`
	CRLs      [][]byte `json:"crls,omitempty"`
}

// parseTrusts reads the trust sets of a desired state.
func parseTrusts(d *client.Desired) (*trusts, error) {
	general, err := parseTrust(d.Trust)
	if err != nil {
		return nil, err
	}
	if len(general.anchors) == 0 {
		return nil, fault.New(fault.Invalid, "the desired state holds no trust anchor")
	}
	all := &trusts{general: general, others: map[string]*trust{}}
	for _, in := range d.TrustSets {
		t, err := parseTrust(in)
		if err != nil {
			return nil, fmt.Errorf("what is trusted for %s: %w", in.Purpose, err)
		}
		if all.of(t.purpose) != nil {
			return nil, fault.New(fault.Invalid, "the desired state says twice what is trusted for %s", t.purpose)
		}
		all.others[t.purpose] = t
	}
	return all, nil
}

// of is what is trusted for a purpose; nil where that is not known.
func (all *trusts) of(purpose string) *trust {
	if purpose == "" || purpose == client.TrustGeneral {
		return all.general
	}
	return all.others[purpose]
}

func (all *trusts) all() []*trust {
	return append([]*trust{all.general}, slices.Collect(maps.Values(all.others))...)
}

// ends is when the first of all that is trusted ends; zero where nothing does.
func (all *trusts) ends(now time.Time) time.Time {
	var first time.Time
	for _, t := range all.all() {
		for _, c := range slices.Concat(t.anchors, t.certificates(), t.pinned) {
			if c.NotAfter.After(now) && (first.IsZero() || c.NotAfter.Before(first)) {
				first = c.NotAfter.Add(time.Second)
			}
		}
	}
	return first
}

// parseTrust reads one trust set.
func parseTrust(in client.TrustSet) (*trust, error) {
	t := &trust{purpose: in.Purpose, version: in.Version, authority: in.Authority, revoked: in.RevokedSubjects}
	for _, text := range in.Anchors {
		certificates, err := keyfile.ParseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read a trust anchor: %w", err)
		}
		t.anchors = append(t.anchors, certificates...)
	}
	for _, text := range in.Pinned {
		certificates, err := keyfile.ParseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read a pinned certificate: %w", err)
		}
		t.pinned = append(t.pinned, certificates...)
	}
	for _, issuer := range in.Issuers {
		certificates, err := keyfile.ParseCertificates([]byte(issuer.PEM))
		if err != nil {
			return nil, fmt.Errorf("read the certificate of issuer %s: %w", issuer.Name, err)
		}
		t.issuers = append(t.issuers, trustIssuer{TrustIssuer: issuer, certificate: certificates[0]})
	}
	return t, nil
}

// prune leaves out what has ended. One CA that has ended in the file of those that are trusted keeps libvirtd and QEMU from
// starting, whatever else is in it; so it does not wait until the authority is reached. Where no anchor would be left they
// stay, for an empty file helps nobody, and what is checked before placing says why.
func (t *trust) prune(now time.Time) {
	over := func(c *x509.Certificate) bool { return now.After(c.NotAfter) }
	say := func(what string, c *x509.Certificate) {
		t.ended = append(t.ended, fmt.Sprintf("%s %s ended on %s and is left out of what is trusted here", what, c.Subject, c.NotAfter.UTC().Format(time.RFC3339)))
	}
	left := slices.DeleteFunc(slices.Clone(t.anchors), over)
	if len(left) == 0 && len(t.anchors) > 0 {
		return
	}
	for _, c := range t.anchors {
		if over(c) {
			say("trust anchor", c)
		}
	}
	t.anchors = left
	for _, i := range t.issuers {
		if over(i.certificate) && !selfIssued(i.certificate) {
			say("issuer", i.certificate)
		}
	}
	t.issuers = slices.DeleteFunc(t.issuers, func(i trustIssuer) bool { return over(i.certificate) })
	t.pinned = slices.DeleteFunc(t.pinned, over) // each host says of its own that it ends
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// issuer is the one that the authority calls so; nil where there is none.
func (t *trust) issuer(name string) *trustIssuer {
	for i := range t.issuers {
		if t.issuers[i].Name == name {
			return &t.issuers[i]
		}
	}
	return nil
}

// issuerOf is the one that signed a certificate; nil where it was none of them.
func (t *trust) issuerOf(c *x509.Certificate) *trustIssuer {
	for i := range t.issuers {
		if signedBy(c, t.issuers[i].certificate) {
			return &t.issuers[i]
		}
	}
	return nil
}

// under reports whether the issuer of that name signed a certificate.
func (t *trust) under(c *x509.Certificate, name string) bool {
	i := t.issuer(name)
	return i != nil && signedBy(c, i.certificate)
}

// signedBy compares names first, since a signature takes a while to check and there may be many issuers.
func signedBy(c, issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && c.CheckSignatureFrom(issuer) == nil
}

// whole reports whether the CRL is at hand of everyone of whom there is one.
func (t *trust) whole() bool {
	return !slices.ContainsFunc(t.issuers, func(i trustIssuer) bool { return i.CRLNumber != "" && i.crl == nil })
}

// listless says of whom of others no CRL is to be had. Consumers that look for one of every issuer refuse all who are under it.
func (t *trust) listless() []string {
	var all []string
	for _, i := range t.issuers {
		if i.Entry != "" && i.CRLNumber == "" && i.crl == nil {
			all = append(all, fmt.Sprintf("the authority has no CRL of %s, so a consumer that wants one of every issuer refuses whom it issued for; "+
				"chancery pool trust crl brings one in", i.called()))
		}
	}
	return all
}

func (t *trust) certificates() []*x509.Certificate {
	var all []*x509.Certificate
	for _, i := range t.issuers {
		all = append(all, i.certificate)
	}
	return all
}

// crls are the CRLs at hand, in the order of their issuers; of one that was renewed with its key, one.
func (t *trust) crls() [][]byte {
	var all [][]byte
	for n, i := range t.issuers {
		if i.crl != nil && !slices.ContainsFunc(t.issuers[:n], func(other trustIssuer) bool { return bytes.Equal(other.crl, i.crl) }) {
			all = append(all, i.crl)
		}
	}
	return all
}

// numbers are the CRLNumbers at hand.
func (t *trust) numbers() map[string]string {
	numbers := map[string]string{}
	for _, i := range t.issuers {
		if i.list != nil && i.list.Number != nil {
			if name := i.called(); len(numbers) < mostListed && len(name) <= 255 {
				numbers[name] = i.list.Number.String()
			}
		}
	}
	return numbers
}

// called is what the authority calls it, or its subject where it is none of the authority's.
func (i *trustIssuer) called() string { return cmp.Or(i.Name, nameOf(i.certificate)) }

func crlFile(i *trustIssuer) string {
	return fmt.Sprintf("%x.crl", client.Fingerprint(i.certificate.Raw)[:16])
}

// loadCRLs reads the CRLs that are kept, and fetches those of which there is a newer one, or whose end comes near. What is
// wrong is said and stops nothing: consumers go on with the CRLs they have.
func (a *Agent) loadCRLs(ctx context.Context, t *trust, now time.Time) (wrong []string) {
	for n := range t.issuers {
		i := &t.issuers[n]
		if twin := t.twin(n); twin != nil && twin.list != nil && i.Name == twin.Name {
			i.crl, i.list = twin.crl, twin.list  // one key signs one list
			if err := a.keepCRL(i); err != nil { // for when the twin has ended
				wrong = append(wrong, err.Error())
			}
			continue
		}
		if err := a.loadCRL(i); err != nil {
			wrong = append(wrong, err.Error())
		}
		if a.crlIsDue(i, now) {
			if err := a.fetchCRL(ctx, i, now); err != nil {
				a.tries.failed("crl "+crlFile(i), now, a.pace)
				wrong = append(wrong, err.Error())
			} else {
				a.tries.succeeded("crl " + crlFile(i))
			}
		}
		if i.list != nil && now.After(lateIn(i.list)) {
			wrong = append(wrong, fmt.Sprintf("the CRL of %s ends on %s, and there is no newer one", i.called(), i.list.NextUpdate.UTC().Format(time.RFC3339)))
		}
	}
	return wrong
}

// lateIn is when a CRL that was not replaced is worth an alarm: three quarters of its life.
func lateIn(l *crl.List) time.Time { return l.ThisUpdate.Add(l.NextUpdate.Sub(l.ThisUpdate) * 3 / 4) }

func (a *Agent) loadCRL(i *trustIssuer) error {
	der, err := a.state.read(dirCRLs, crlFile(i))
	if err != nil || der == nil {
		return err
	}
	list, err := crl.Parse(der)
	if err == nil {
		err = list.CheckIssuer(i.certificate)
	}
	if err != nil {
		return fmt.Errorf("the kept CRL of %s is of no use: %w", i.called(), err)
	}
	i.crl, i.list = der, list
	return nil
}

// crlIsDue reports whether a CRL is to be fetched: the authority says that there is a newer one, or half of its life is
// over. Half of seven days is well before its end, and well after the day on which the authority makes the next.
func (a *Agent) crlIsDue(i *trustIssuer, now time.Time) bool {
	if a.away() || !a.tries.may("crl "+crlFile(i), now) {
		return false
	}
	if i.list == nil {
		return i.CRLNumber != ""
	}
	if announced, ok := new(big.Int).SetString(i.CRLNumber, 10); ok && i.list.Number != nil && announced.Cmp(i.list.Number) > 0 {
		return true
	}
	half := i.list.ThisUpdate.Add(i.list.NextUpdate.Sub(i.list.ThisUpdate) / 2)
	return now.After(half) && i.NextUpdate.After(i.list.NextUpdate)
}

// fetchCRL takes the newest complete CRL of an issuer, where it is one: signed by it, in force, and not older than ours.
func (a *Agent) fetchCRL(ctx context.Context, i *trustIssuer, now time.Time) error {
	var body limited
	body.room = maxCRL
	fetch := func() error { return a.api.DownloadCRL(ctx, &body, i.Name, "current", "", "der") }
	if i.Entry != "" {
		fetch = func() error { return a.api.TrustCRL(ctx, &body, i.Entry) }
	}
	if err := fetch(); err != nil {
		return fmt.Errorf("fetch the CRL of %s: %w", i.called(), err)
	}
	list, _, err := probe.CheckCRL(body.Bytes(), []*x509.Certificate{i.certificate}, now)
	if err == nil && i.list != nil && !bytes.Equal(i.list.Raw, list.Raw) {
		err = list.CheckSuccessor(i.list)
	}
	if err != nil {
		return fmt.Errorf("the CRL of %s that the authority gave is not taken: %w", i.called(), err)
	}
	i.crl, i.list = body.Bytes(), list
	return a.keepCRL(i)
}

func (a *Agent) keepCRL(i *trustIssuer) error {
	there, err := a.state.read(dirCRLs, crlFile(i))
	if err != nil || bytes.Equal(there, i.crl) {
		return err
	}
	return a.state.write(i.crl, dirCRLs, crlFile(i))
}

// limited is a buffer that refuses more than it has room for.
type limited struct {
	bytes.Buffer
	room int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.room {
		return 0, fault.New(fault.TooLarge, "it is over %d octets", l.room)
	}
	return l.Buffer.Write(p)
}

// knownPurpose refuses a plan whose purpose nothing is known to be trusted for. Where peers pin each other, the first of them
// makes the purpose known by what it announces.
func (w *work) knownPurpose(plan *recipe.Plan) error {
	of := plan.Trust.Purpose
	announces := slices.ContainsFunc(plan.Certificates, func(c recipe.PlannedCertificate) bool { return c.Announce == of })
	if !takesTrust(plan) || w.trusts.of(of) != nil || announces && !uses(plan, "anchors") {
		return nil
	}
	if w.pool == "" {
		return fault.New(fault.Conflict, "recipe %s trusts who is trusted for %s, and what is placed by hand brings what is trusted in general only", plan.Recipe, of)
	}
	return fault.New(fault.Conflict, "recipe %s trusts who is trusted for %s, and the pool has nothing for that purpose", plan.Recipe, plan.Trust.Purpose).
		WithHint("chancery pool trust add %s F --purpose %s", w.pool, plan.Trust.Purpose)
}

// trustOf is what a plan's consumer is to trust. Where nothing is known for its purpose it is nobody; who resolves a plan, or
// takes up an old one, has refused it before.
func (w *work) trustOf(plan *recipe.Plan) *trust {
	if t := w.trusts.of(plan.Trust.Purpose); t != nil {
		return t
	}
	return &trust{purpose: plan.Trust.Purpose}
}

// material joins a held certificate, where there is one, and what its consumer is to trust. The certificate itself is judged by what is trusted
// in general, as its peers do.
func (w *work) material(h *held, plan *recipe.Plan) *probe.Material {
	t, general := w.trustOf(plan), w.trusts.general
	m := &probe.Material{Anchors: t.anchors, Issuers: t.certificates(), Authority: general.authority}
	if h != nil {
		m.Key, m.Path = h.key, general.renewed(h.path, w.now)
	}
	if t != general {
		m.PathRoots = general.anchors
	}
	if uses(plan, "pinned") {
		m.Pinned = t.pinned
	}
	if uses(plan, "crls") {
		m.CRLs = t.crls()
	}
	return m
}

// material joins a held certificate and the trust that was placed, but for what of that has ended since: what is put back
// after a failure is to work.
func (m *keptTrust) material(h *held, now time.Time) (*probe.Material, error) {
	out := &probe.Material{CRLs: m.CRLs, Authority: m.Authority}
	if h != nil {
		out.Key, out.Path = h.key, h.path
	}
	for _, part := range []struct {
		from string
		to   *[]*x509.Certificate
	}{{m.Anchors, &out.Anchors}, {m.Issuers, &out.Issuers}, {m.Pinned, &out.Pinned}, {m.PathRoots, &out.PathRoots}} {
		if part.from == "" {
			continue
		}
		all, err := keyfile.ParseCertificates([]byte(part.from))
		if err != nil {
			return nil, err
		}
		left := slices.DeleteFunc(slices.Clone(all), func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
		if *part.to = left; len(left) == 0 {
			*part.to = all
		}
	}
	return out, nil
}

func keepTrust(m *probe.Material) keptTrust {
	text := func(all []*x509.Certificate) string {
		if len(all) == 0 {
			return ""
		}
		return string(keyfile.EncodeCertificates(all...))
	}
	return keptTrust{Authority: m.Authority, Anchors: text(m.Anchors), Issuers: text(m.Issuers), Pinned: text(m.Pinned), PathRoots: text(m.PathRoots), CRLs: m.CRLs}
}

// endOf is when the first of some CRLs ends; zero where there is none.
func endOf(crls [][]byte) time.Time {
	var first time.Time
	for _, der := range crls {
		if list, err := crl.Parse(der); err == nil && !list.NextUpdate.IsZero() && (first.IsZero() || list.NextUpdate.Before(first)) {
			first = list.NextUpdate
		}
	}
	return first
}

// issuersOf is a digest of whose CRLs there are, in whatever order; empty where there is none.
func issuersOf(crls [][]byte) string {
	var all []string
	for _, der := range crls {
		list, err := crl.Parse(der)
		if err != nil {
			return "unreadable"
		}
		all = append(all, hex.EncodeToString(client.Fingerprint(slices.Concat(list.RawIssuer, list.AuthorityKeyID))))
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return hex.EncodeToString(client.Fingerprint([]byte(strings.Join(all, " "))))
}

// revokedIn is a digest of everything that CRLs revoke, whatever the order. Where it is the same, a newer CRL says nothing
// new.
func revokedIn(crls [][]byte) string {
	var sum [sha256.Size]byte
	for _, der := range crls {
		list, err := crl.Parse(der)
		if err != nil {
			return "unreadable"
		}
		for e, err := range list.Entries() {
			if err != nil {
				return "unreadable"
			}
			one := sha256.Sum256(append(e.Serial.Bytes(), list.RawIssuer...))
			subtle.XORBytes(sum[:], sum[:], one[:])
		}
	}
	return hex.EncodeToString(sum[:])
}
