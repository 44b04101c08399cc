package ca

import (
	"crypto/x509"
	"math/big"
	"time"

	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

// IssuerState says what an issuer may do.
type IssuerState string

// The states of an issuer.
const (
	IssuerPending IssuerState = "pending" // its request waits for the answer of an outside or offline root
	IssuerActive  IssuerState = "active"
	IssuerRetired IssuerState = "retired" // issues nothing more; goes on revoking and signing CRLs
)

// Issuer is a CA certificate and its key.
type Issuer struct {
	ID          string
	Name        string // in URLs, so of [a-z0-9-] only
	Pool        string
	State       IssuerState
	Default     bool   // the issuer that requests for its pool get when they name none
	Parent      string // ID of the issuer above; empty for a root, and under an outside root
	KeyID       string // in the key store; empty when the key is kept offline
	PublicKey   []byte // SubjectPublicKeyInfo, DER
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // the certificates above it, root last
	Former      []*x509.Certificate // those that it had before it was renewed, the newest first
	CSR         []byte              // DER; while it is pending
	CRL         CRLMode
	CreatedAt   time.Time
	Warnings    []string // of its renewal, to who asked for that

	number      int64                 // the short form of ID in the rows of large tables
	constraints *cert.PathConstraints // of Certificate and Chain, as they were read; nil: not read yet
}

// Root reports whether the issuer signed itself.
func (i *Issuer) Root() bool {
	return i.Certificate != nil && string(i.Certificate.RawIssuer) == string(i.Certificate.RawSubject)
}

// CRLMode says which CRLs an issuer signs.
type CRLMode struct {
	Validity   time.Duration `json:"validity"`   // nextUpdate after thisUpdate
	Refresh    time.Duration `json:"refresh"`    // how often a new one is signed when nothing was revoked
	Partitions int           `json:"partitions"` // 0: not partitioned. Fixed once certificates name their partition
	Delta      bool          `json:"delta"`
	Scheduled  bool          `json:"scheduled,omitempty"` // a revocation waits for the next list; else one is signed for it at once
}

// State says what a certificate is worth.
type State string

// The states of a certificate. Expired is derived from the clock and never stored.
const (
	Valid   State = "valid"
	Held    State = "held" // revoked with reason certificateHold, which alone can be released
	Revoked State = "revoked"
	Expired State = "expired"
)

// Certificate is one that an issuer here signed, or that was imported with its issuer.
type Certificate struct {
	ID             int64 // grows with the time of issuance
	Issuer         *Issuer
	Serial         *big.Int
	State          State
	DER            []byte // empty for a record that was imported without its certificate
	Subject        string // RFC 4514
	NotBefore      time.Time
	NotAfter       time.Time
	Profile        string
	ProfileVersion int
	Requester      string
	Replaces       int64 // ID of the certificate that this one renewed or re-keyed; 0 for none
	ReplacedBy     int64
	Revocation     *Revocation // nil unless revoked or held

	// Warnings are what the template was warned of, on the way out of Issue, and what else to revoke, out of Revoke.
	Warnings []string

	facts *facts // what DER says, once it was read
}

// IssuedAt is the time at which the certificate was committed.
func (c *Certificate) IssuedAt() time.Time { return idTime(c.ID) }

// Revocation is why and since when a certificate is not good.
type Revocation struct {
	Reason         crl.Reason
	RevokedAt      time.Time
	InvalidityDate time.Time // zero when none was given
}

// RequestState says where an enrolment stands.
type RequestState string

// The states of a request.
const (
	RequestPending   RequestState = "pending"
	RequestIssued    RequestState = "issued"
	RequestRejected  RequestState = "rejected"
	RequestCancelled RequestState = "cancelled"
)

// Request is an enrolment that waits for an officer, or was decided.
type Request struct {
	ID          string
	State       RequestState
	Requester   string
	Profile     string
	Issuer      string // name; as asked for
	Subject     string // what would be issued, for the officer's eye
	Order       Order
	TwoPerson   bool // who requested it may not approve it
	AssignedTo  string
	DecidedBy   string
	DecidedAt   time.Time
	Reason      string // why it was rejected or cancelled
	Certificate int64  // ID, once it is issued
	SubmittedAt time.Time
}

// Order is what a caller asks for: a CSR or a public key, with what should be certified about it, or a certtool template.
type Order struct {
	IdempotencyKey string        `json:"-"`
	Issuer         string        `json:"issuer,omitempty"` // name or ID; empty for the default of Pool
	Pool           string        `json:"pool,omitempty"`   // empty means "default"
	Profile        string        `json:"profile,omitempty"`
	CSR            []byte        `json:"csr,omitempty"`       // DER or PEM
	PublicKey      []byte        `json:"publicKey,omitempty"` // SubjectPublicKeyInfo DER, where there is no CSR
	Subject        string        `json:"subject,omitempty"`   // RFC 4514; empty takes the CSR's
	Names          []string      `json:"names,omitempty"`     // "dns:a", "ip:192.0.2.1" …; empty takes the CSR's
	NotBefore      time.Time     `json:"notBefore,omitzero"`
	NotAfter       time.Time     `json:"notAfter,omitzero"`
	Validity       time.Duration `json:"validity,omitempty"` // instead of NotAfter
	Template       string        `json:"template,omitempty"` // certtool's grammar
	Compat         bool          `json:"compat,omitempty"`   // read the template as certtool does, silent traps included

	replaces  *Certificate // what this renews or re-keys
	successor string       // the issuer that takes the place of the replaced one's; empty: none
	responder bool         // of OCSP, which a retired issuer needs too
	identity  bool         // of IssueIdentity
	within    Within       // of IssueIdentity and IssueControl
	control   bool         // of IssueControl
	login     bool         // of IssueLogin
}

// idBits are the low bits of an ID that tell apart what was issued in the same microsecond.
const idBits = 10

// firstID is at or below every ID of a certificate issued at t or later.
func firstID(t time.Time) int64 { return t.UnixMicro() << idBits }

func idTime(id int64) time.Time { return time.UnixMicro(id >> idBits).UTC() }
