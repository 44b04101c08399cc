package loop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
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

// trust is what the consumers of this host are to trust, parsed.
type trust struct {
	authority string
	anchors   []*x509.Certificate
	issuers   []trustIssuer
	revoked   [][]byte // subjects

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
	CRLs      [][]byte `json:"crls,omitempty"`
}

// parseTrust reads the trust set of a desired state.
func parseTrust(in client.TrustSet) (*trust, error) {
	t := &trust{authority: in.Authority, revoked: in.RevokedSubjects}
	for _, text := range in.Anchors {
		certificates, err := keyfile.ParseCertificates([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read a trust anchor: %w", err)
		}
		t.anchors = append(t.anchors, certificates...)
	}
	if len(t.anchors) == 0 {
		return nil, fault.New(fault.Invalid, "the desired state holds no trust anchor")
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

func (t *trust) certificates() []*x509.Certificate {
	var all []*x509.Certificate
	for _, i := range t.issuers {
		all = append(all, i.certificate)
	}
	return all
}

// crls are the CRLs at hand, in the order of their issuers.
func (t *trust) crls() [][]byte {
	var all [][]byte
	for _, i := range t.issuers {
		if i.crl != nil {
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
			numbers[i.Name] = i.list.Number.String()
		}
	}
	return numbers
}

func crlFile(i *trustIssuer) string {
	return fmt.Sprintf("%x.crl", client.Fingerprint(i.certificate.Raw)[:16])
}

// loadCRLs reads the CRLs that are kept, and fetches those of which there is a newer one, or whose end comes near. What is
// wrong is said and stops nothing: consumers go on with the CRLs they have.
func (a *Agent) loadCRLs(ctx context.Context, t *trust, now time.Time) (wrong []string) {
	for n := range t.issuers {
		i := &t.issuers[n]
		if err := a.loadCRL(i); err != nil {
			wrong = append(wrong, err.Error())
		}
		if a.crlIsDue(i, now) {
			if err := a.fetchCRL(ctx, i, now); err != nil {
				a.tries.failed("crl "+i.Name, now, a.pace)
				wrong = append(wrong, err.Error())
			} else {
				a.tries.succeeded("crl " + i.Name)
			}
		}
		if i.list != nil && now.After(lateIn(i.list)) {
			wrong = append(wrong, fmt.Sprintf("the CRL of %s ends on %s, and there is no newer one", i.Name, i.list.NextUpdate.UTC().Format(time.RFC3339)))
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
		return fmt.Errorf("the kept CRL of %s is of no use: %w", i.Name, err)
	}
	i.crl, i.list = der, list
	return nil
}

// crlIsDue reports whether a CRL is to be fetched: the authority says that there is a newer one, or half of its life is
// over. Half of seven days is well before its end, and well after the day on which the authority makes the next.
func (a *Agent) crlIsDue(i *trustIssuer, now time.Time) bool {
	if a.away() || !a.tries.may("crl "+i.Name, now) {
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
	if err := a.api.DownloadCRL(ctx, &body, i.Name, "current", "", "der"); err != nil {
		return fmt.Errorf("fetch the CRL of %s: %w", i.Name, err)
	}
	list, _, err := probe.CheckCRL(body.Bytes(), []*x509.Certificate{i.certificate}, now)
	if err == nil && i.list != nil && !bytes.Equal(i.list.Raw, list.Raw) {
		err = list.CheckSuccessor(i.list)
	}
	if err != nil {
		return fmt.Errorf("the CRL of %s that the authority gave is not taken: %w", i.Name, err)
	}
	i.crl, i.list = body.Bytes(), list
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

// material joins a held certificate and the trust.
func (t *trust) material(h *held, plan *recipe.Plan) *probe.Material {
	m := &probe.Material{Key: h.key, Path: h.path, Anchors: t.anchors, Issuers: t.certificates(), Authority: t.authority}
	if uses(plan, "crls") {
		m.CRLs = t.crls()
	}
	return m
}

func (m *keptTrust) material(h *held) (*probe.Material, error) {
	anchors, err := keyfile.ParseCertificates([]byte(m.Anchors))
	if err != nil {
		return nil, err
	}
	var issuers []*x509.Certificate
	if m.Issuers != "" {
		if issuers, err = keyfile.ParseCertificates([]byte(m.Issuers)); err != nil {
			return nil, err
		}
	}
	return &probe.Material{Key: h.key, Path: h.path, Anchors: anchors, Issuers: issuers, CRLs: m.CRLs, Authority: m.Authority}, nil
}

func keepTrust(m *probe.Material) keptTrust {
	k := keptTrust{Authority: m.Authority, Anchors: string(keyfile.EncodeCertificates(m.Anchors...)), CRLs: m.CRLs}
	if len(m.Issuers) > 0 {
		k.Issuers = string(keyfile.EncodeCertificates(m.Issuers...))
	}
	return k
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
