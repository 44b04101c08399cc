package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
)

// IssuerSpec says what issuer to make.
type IssuerSpec struct {
	IdempotencyKey string
	Name           string
	Pool           string // empty means that of Parent, and without one DefaultPool
	Default        bool   // what requests for the pool get when they name no issuer
	CRL            CRLMode

	// Parent is the issuer, by name or ID, that signs it. Without one it is a root, or, with Outside, a request that waits
	// for the answer of a root that is not here.
	Parent  string
	Outside bool
	// ParentKey is the parent's key, where it is offline and at hand.
	ParentKey crypto.Signer

	// Token is the PKCS #11 URI of the key, where it lies in a token that this node reaches; no key is made then.
	Token string
	// Offline hands the key back instead of storing it.
	Offline bool
	// Key, with Offline, is a key that the caller made, and has kept before anything of it is committed. Algorithm is not looked at then.
	Key       crypto.Signer
	Algorithm keyfile.Algorithm // empty means ECDSA P-256
	Bits      int

	Subject     string        // RFC 4514
	Validity    time.Duration // 0: what package root says, and never beyond the parent's end
	PathLen     *int          // nil: no limit for a root, 0 below one
	Constraints []string      // on names, as root.ParseConstraints reads them

	// Template is a certtool template with option ca, instead of all from Subject on.
	Template string
	Compat   bool
}

// backdate is for relying parties whose clocks run behind.
const backdate = 5 * time.Minute

// CreateIssuer makes an issuer: key, certificate or request, and row, all in one transaction, and records its certificate
// in its parent's inventory. The key is sealed into the key store, unless the spec says Offline: then it is returned, and
// the caller is the only one who has it.
func (c *CA) CreateIssuer(ctx context.Context, by access.Principal, spec IssuerSpec) (*Issuer, crypto.Signer, error) {
	now := time.Now()
	if err := by.May(access.ManageIssuers); err != nil {
		return nil, nil, err
	}
	if err := spec.check(); err != nil {
		return nil, nil, err
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, nil, err
	}
	id := db.NewID()
	key, inToken, err := c.issuerKey(ctx, &spec, id)
	if err != nil {
		return nil, nil, fmt.Errorf("make the key of issuer %s: %w", spec.Name, err)
	}
	n, err := c.prepareIssuer(ctx, &spec, id, key, now)
	if err != nil {
		return nil, nil, fmt.Errorf("make issuer %s: %w", spec.Name, err)
	}
	switch {
	case inToken != nil:
		n.token, n.issuer.KeyID, key = inToken, inToken.ID, nil
	case !spec.Offline:
		if n.sealed, err = c.keys.Seal(ctx, key, keys.Issuer, n.issuer.ID); err != nil {
			return nil, nil, fmt.Errorf("seal the key of issuer %s: %w", spec.Name, err)
		}
		n.issuer.KeyID, key = n.sealed.ID, nil
	}
	issuer, err := c.storeIssuer(ctx, by, spec.IdempotencyKey, "issuer.create", n, now)
	if err != nil {
		return nil, nil, fmt.Errorf("make issuer %s: %w", spec.Name, err)
	}
	if spec.Offline && issuer.ID != n.issuer.ID {
		return nil, nil, fault.New(fault.Conflict, "issuer %q was made by an earlier call, whose answer had the key; it is not kept here", spec.Name).
			WithHint("if that answer is lost, retire the issuer and make another")
	}
	return issuer, key, nil
}

// issuerKey makes the key of a new issuer, or finds it in its token.
func (c *CA) issuerKey(ctx context.Context, spec *IssuerSpec, id string) (crypto.Signer, *keys.TokenKey, error) {
	if spec.Key != nil {
		return spec.Key, nil, nil
	}
	if spec.Token == "" {
		key, err := keyfile.Generate(spec.Algorithm, spec.Bits)
		return key, nil, err
	}
	inToken, key, err := c.keys.Adopt(ctx, spec.Token, keys.Issuer, id)
	return key, inToken, err
}

// newIssuer is an issuer about to be stored.
type newIssuer struct {
	issuer  *Issuer
	subject []byte       // DER
	record  *Certificate // in the parent's inventory, or its own; nil when its issuer is not here
	sealed  *keys.Sealed
	token   *keys.TokenKey
	history []imported
	// imported says that it existed before: it was not signed here now.
	imported bool
	// given says that it is here already, and gets its key; byDefault that it becomes the default of its pool then.
	given, byDefault bool

	request any // what tells a repeated call from another one

	also func(ctx context.Context, tx *db.Tx, issuer *Issuer) error // of an import; may be nil
}

func (s *IssuerSpec) check() error {
	if s.Token != "" && (s.Algorithm != "" || s.Bits != 0) {
		return fault.New(fault.Invalid, "the algorithm of issuer %q is that of its key in the token; name none", s.Name).At("algorithm")
	}
	if s.Algorithm == "" {
		s.Algorithm = keyfile.ECDSA
	}
	if err := checkName(s.Name); err != nil {
		return err
	}
	if err := s.CRL.check(); err != nil {
		return err
	}
	switch {
	case s.Outside && s.Parent != "":
		return fault.New(fault.Invalid, "issuer %q cannot be under %q and under an outside root at once", s.Name, s.Parent)
	case s.Outside && s.Offline:
		return fault.New(fault.Invalid, "the key of issuer %q cannot be offline while its request waits here; make both where the key is", s.Name)
	case s.Key != nil && !s.Offline:
		return fault.New(fault.Invalid, "the key of issuer %q is at hand, and so must stay offline", s.Name)
	case s.Token != "" && s.Offline:
		return fault.New(fault.Invalid, "the key of issuer %q cannot be in a token and handed out", s.Name)
	case s.Template == "" && s.Subject == "":
		return fault.New(fault.Invalid, "issuer %q needs a subject, such as CN=%s", s.Name, s.Name)
	case s.Template != "" && s.Outside:
		return fault.New(fault.Invalid, "a template makes a certificate, and issuer %q waits for an outside root's; give its subject instead", s.Name)
	case s.Outside && (len(s.Constraints) > 0 || s.Validity != 0):
		return fault.New(fault.Invalid, "the outside root decides the validity and the name constraints of issuer %q", s.Name)
	case s.Validity < 0:
		return fault.New(fault.Invalid, "validity %s is negative", cert.Duration(s.Validity))
	}
	return nil
}

func (m CRLMode) check() error {
	switch {
	case m.Partitions < 0 || m.Partitions > 10_000:
		return fault.New(fault.Invalid, "%d CRL partitions: 0, or 2 to 10000 would pass", m.Partitions)
	case m.Partitions == 1:
		return fault.New(fault.Invalid, "1 CRL partition is a complete CRL; 0, or 2 to 10000 would pass")
	case m.Partitions > 0 && m.Delta:
		return fault.New(fault.Invalid, "CRLs are partitioned or have deltas, not both")
	case m.Validity < 0 || m.Refresh < 0 || m.Validity > 0 && m.Refresh > m.Validity/2:
		return fault.New(fault.Invalid, "CRL refresh %s leaves no time to repair a failure before validity %s ends; at most half of it would pass",
			cert.Duration(m.Refresh), cert.Duration(m.Validity))
	}
	return nil
}

// prepareIssuer builds and signs what storeIssuer stores.
func (c *CA) prepareIssuer(ctx context.Context, spec *IssuerSpec, id string, key crypto.Signer, now time.Time) (*newIssuer, error) {
	parent, err := c.placeIssuer(ctx, spec, now)
	if err != nil {
		return nil, err
	}
	spki, err := cert.MarshalPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	n := &newIssuer{issuer: &Issuer{
		ID: id, Name: spec.Name, Pool: spec.Pool, State: IssuerActive, Default: spec.Default, PublicKey: spki, CRL: spec.CRL,
		CreatedAt: now,
	}, request: spec.digest()}
	if spec.Outside {
		n.issuer.State, n.issuer.Default = IssuerPending, false
		n.issuer.CSR, n.subject, err = spec.request(key)
		return n, err
	}
	if parent == nil {
		certificate, err := spec.selfSign(key, spki, now)
		if err != nil {
			return nil, err
		}
		return n, n.certify(certificate, n.issuer)
	}
	certificate, err := c.signUnder(ctx, parent, spec, spki, now)
	if err != nil {
		return nil, err
	}
	n.issuer.Parent, n.issuer.Chain = parent.ID, parent.path()
	return n, n.certify(certificate, parent)
}

// placeIssuer finds the parent, where the spec names one, and holds the new issuer to its pool.
func (c *CA) placeIssuer(ctx context.Context, spec *IssuerSpec, now time.Time) (*Issuer, error) {
	if spec.Parent == "" {
		if spec.Pool == "" {
			spec.Pool = DefaultPool
		}
		return nil, nil
	}
	set, err := c.issuersAnew(ctx)
	if err != nil {
		return nil, err
	}
	parent := set.find(spec.Parent)
	switch {
	case parent == nil:
		return nil, fault.New(fault.NotFound, "there is no issuer %q", spec.Parent).WithHint("chancery issuer list")
	case spec.Pool == "":
		spec.Pool = parent.Pool
	case spec.Pool != parent.Pool:
		return nil, fault.New(fault.Conflict, "issuer %q would be of pool %q, but %q above it is of pool %q, and pools share no root, since "+
			"consumers let in whoever chains to theirs; pool %q, or none, would pass", spec.Name, spec.Pool, parent.Name, parent.Pool, parent.Pool)
	}
	return parent, nil
}

// certify gives the new issuer its certificate, and the record of it to the inventory of the issuer that signed it.
func (n *newIssuer) certify(certificate *x509.Certificate, signedBy *Issuer) error {
	n.issuer.Certificate, n.subject = certificate, certificate.RawSubject
	n.record = &Certificate{Issuer: signedBy, State: Valid, DER: certificate.Raw, Profile: issuerProfile}
	return n.record.fill()
}

// issuerProfile is the profile that the inventory names for issuers' own certificates.
const issuerProfile = "ca"

// signUnder signs an issuer's certificate with its parent's key.
func (c *CA) signUnder(ctx context.Context, parent *Issuer, spec *IssuerSpec, spki []byte, now time.Time) (*x509.Certificate, error) {
	if parent.State != IssuerActive {
		return nil, fault.New(fault.Conflict, "issuer %q is %s; only an active issuer signs another", parent.Name, parent.State)
	}
	signer := spec.ParentKey
	if signer == nil {
		if parent.KeyID == "" {
			return nil, fault.New(fault.Conflict, "the key of issuer %q is offline", parent.Name).
				WithHint("make the issuer with an outside root, sign its request where the key is, and import the answer")
		}
		var err error
		if signer, err = c.keys.SignerFor(ctx, parent.KeyID, parent.Certificate); err != nil {
			return nil, fmt.Errorf("load the key of issuer %s: %w", parent.Name, err)
		}
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	return spec.signUnder(parent.encoder(s, wholeList), signer, spki, now)
}

// wholeList is the partition of what the complete CRL covers.
const wholeList = -1

// encoder returns the issuer as the encoder wants it, with the places where it publishes. Without a public URL there are
// none; an issuer whose key is offline answers no OCSP requests.
func (i *Issuer) encoder(s *settings.Settings, partition int) *cert.Issuer {
	e := &cert.Issuer{Certificate: i.Certificate, Above: i.Chain, Constraints: i.constraints}
	if s.PublicURL == "" {
		return e
	}
	urls := i.URLs(s.PublicURL)
	e.CRLDistributionPoints, e.CAIssuers = []string{urls.CRL()}, []string{urls.Certificate()}
	if partition != wholeList && i.CRL.Partitions > 0 {
		e.CRLDistributionPoints = []string{urls.Partition(partition)}
	}
	if i.CRL.Delta {
		e.FreshestCRL = []string{urls.Delta()}
	}
	if i.KeyID != "" {
		e.OCSPServers = []string{urls.OCSP()}
	}
	return e
}

// storeIssuer commits a new issuer: key, row, record in the inventory, idempotency key and audit event.
func (c *CA) storeIssuer(ctx context.Context, by access.Principal, key, action string, n *newIssuer, now time.Time) (*Issuer, error) {
	if key == "" {
		key = "once:" + db.NewID() // so that an unknown outcome can be resolved
	}
	asked, err := newCall(by, key, action, n.request)
	if err != nil {
		return nil, err
	}
	run := c.db.Tx
	if len(n.history) > 0 {
		run = c.db.TxAlone // thousands of rows: no other function should be run again because of them
	}
	var stored *Issuer
	err = commit(ctx, run, func(tx *db.Tx, _ bool) error {
		stored = nil
		earlier, err := asked.earlier(ctx, tx)
		if err != nil {
			return err
		}
		if earlier != "" {
			if stored, err = oneIssuer(ctx, tx, "issuer "+earlier+" is gone", ` WHERE id = $1`, earlier); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE issuer SET state = state WHERE id = $1`, earlier) // as touch does
			return err
		}
		if n.sealed != nil {
			if err := c.keys.Insert(ctx, tx, n.sealed, by.Actor(), now); err != nil {
				return err
			}
		}
		if n.token != nil {
			if err := c.keys.InsertToken(ctx, tx, n.token, by.Actor(), now); err != nil {
				return err
			}
		}
		place := c.placeNew
		if n.given {
			place = c.giveKey
		}
		if err := place(ctx, tx, by, n, now); err != nil {
			return err
		}
		if n.also != nil {
			if err := n.also(ctx, tx, n.issuer); err != nil {
				return err
			}
		}
		if err := asked.remember(ctx, tx, n.issuer.ID, now); err != nil {
			return err
		}
		stored = n.issuer
		detail := map[string]any{
			"name": n.issuer.Name, "pool": n.issuer.Pool, "state": n.issuer.State, "parent": n.issuer.Parent, "online": n.issuer.KeyID != "",
		}
		if n.given {
			detail["given"] = "its key"
		} else {
			detail = n.record.entered(detail)
		}
		return c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: action, Object: n.issuer.ID, Detail: detail})
	})
	c.forget() // after a failure too: the outcome of the commit may be unknown
	if err != nil {
		return nil, err
	}
	return stored, nil
}

// placeNew writes the row of a new issuer, its record in the inventory, and what it issued before it came here.
func (c *CA) placeNew(ctx context.Context, tx *db.Tx, by access.Principal, n *newIssuer, now time.Time) error {
	if err := c.fitAbove(ctx, tx, n); err != nil {
		return err
	}
	if err := c.insertIssuer(ctx, tx, n.issuer, n.subject); err != nil {
		return err
	}
	if n.record != nil {
		n.record.ID, n.record.Requester = c.nextID(now), by.ID
		if err := c.insertCertificate(ctx, tx, n.record); err != nil {
			return err
		}
	}
	return c.storeHistory(ctx, tx, by, n.history, now)
}
