package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// The states of a certificate.
const (
	StateValid   = "valid"
	StateHeld    = "held" // revoked with reason certificateHold, which alone can be released
	StateRevoked = "revoked"
	StateExpired = "expired"
)

// Certificate is a certificate and what the authority knows of it.
type Certificate struct {
	Serial      string      `json:"serial" doc:"the serial number in lower-case hexadecimal"`
	Issuer      string      `json:"issuer" doc:"the issuer's name in this authority"`
	Subject     string      `json:"subject" doc:"the subject, RFC 4514"`
	SAN         []string    `json:"san,omitempty" doc:"the alternative names, each with its kind: dns:, ip:, email:, uri:"`
	NotBefore   time.Time   `json:"not_before"`
	NotAfter    time.Time   `json:"not_after"`
	State       string      `json:"state" enum:"valid,held,revoked,expired" doc:"as of this answer"`
	Profile     string      `json:"profile,omitempty" doc:"the profile it was issued under"`
	Version     int64       `json:"profile_version,omitempty"`
	Requester   string      `json:"requester,omitempty" doc:"the principal it was issued to"`
	IssuedAt    time.Time   `json:"issued_at,omitzero"`
	Revocation  *Revocation `json:"revocation,omitempty"`
	Fingerprint string      `json:"sha256,omitempty" doc:"SHA-256 of the DER form"`
	KeyID       string      `json:"subject_key_id,omitempty" doc:"the subject key identifier"`
	PEM         string      `json:"pem,omitempty" doc:"the certificate; absent in lists. On a dry run it has an empty signature"`
	Chain       string      `json:"chain,omitempty" doc:"the issuers above it, nearest first, the root left out"`
	Warnings    []string    `json:"warnings,omitempty" doc:"when it was just revoked for keyCompromise: which other certificates of the key are still good, and how to revoke them"`
}

// Revocation is what a CRL says of a certificate.
type Revocation struct {
	At           time.Time  `json:"at"`
	Reason       string     `json:"reason" doc:"as RFC 5280 spells it, such as keyCompromise"`
	InvalidSince *time.Time `json:"invalidity_date,omitempty"`
}

// Names are what a certificate is to say of its subject.
type Names struct {
	Subject string   `json:"subject,omitempty" maxLength:"8192" doc:"RFC 4514, such as CN=host1,O=Example"`
	SAN     []string `json:"san,omitempty" maxItems:"10000" doc:"alternative names: dns:NAME, ip:ADDRESS, email:ADDRESS, uri:URI; a bare name is dns or ip"`
}

// IssueRequest asks for a certificate. The public key comes from CSR or PublicKey; the names from Names where given,
// else from the CSR, whose names are a wish; the rest from the profile, or from a certtool template.
type IssueRequest struct {
	Issuer         string     `json:"issuer,omitempty" maxLength:"255" doc:"the issuer's name or ID; the pool's default issuer where absent"`
	Pool           string     `json:"pool,omitempty" maxLength:"255" doc:"the pool whose default issuer is wanted; \"default\" where absent"`
	Profile        string     `json:"profile,omitempty" maxLength:"255" doc:"the profile; beside a template, the one that the template must be within"`
	Template       string     `json:"template,omitempty" maxLength:"65536" doc:"a certtool template's text; without a profile for an admin only"`
	CerttoolCompat bool       `json:"certtool_compat,omitempty" doc:"read the template as certtool does, silent traps included"`
	CSR            string     `json:"csr,omitempty" maxLength:"262144" doc:"a PKCS #10 request, PEM"`
	PublicKey      string     `json:"public_key,omitempty" maxLength:"16384" doc:"a SubjectPublicKeyInfo, PEM"`
	Names          *Names     `json:"names,omitempty" doc:"replaces the names of the CSR"`
	NotBefore      *time.Time `json:"not_before,omitempty"`
	NotAfter       *time.Time `json:"not_after,omitempty"`
	Validity       string     `json:"validity,omitempty" maxLength:"32" doc:"instead of not_after: a length such as 90d or 36h"`
	DryRun         bool       `json:"dry_run,omitempty" doc:"check everything, issue nothing"`
}

// IssueResult is a certificate, or a request that waits for an officer, or what a dry run found.
type IssueResult struct {
	Certificate *Certificate `json:"certificate,omitempty" doc:"the certificate; on a dry run what it would be, without serial and signature"`
	Request     *Request     `json:"request,omitempty" doc:"the request, where an officer must decide"`
	Warnings    []string     `json:"warnings,omitempty" doc:"what passed, and may surprise"`
	DryRun      bool         `json:"dry_run,omitempty"`
	Pending     bool         `json:"would_wait,omitempty" doc:"on a dry run: an officer would have to decide"`
}

// Issue issues a certificate. It refuses where the profile wants an officer's approval: Submit it then.
func (c *Client) Issue(ctx context.Context, in IssueRequest) (*IssueResult, error) {
	var out IssueResult
	return &out, c.do(ctx, post("certificates").with(in), &out)
}

// CertificateFilter narrows a search. Zero fields do not.
type CertificateFilter struct {
	Issuer     string
	Profile    string
	Serial     string
	Name       string // an alternative name or common name, whole, or its beginning followed by *
	Requester  string
	State      string
	Before     time.Time // expires before
	After      time.Time // expires after
	Unreplaced bool      // leave out what was renewed or re-keyed
	PageSize   int
}

func (f CertificateFilter) query() url.Values {
	q := values("issuer", f.Issuer, "profile", f.Profile, "serial", f.Serial, "name", f.Name,
		"requester", f.Requester, "state", f.State)
	if f.Unreplaced {
		q.Set("unreplaced", "true")
	}
	if !f.Before.IsZero() {
		q.Set("expires_before", f.Before.UTC().Format(time.RFC3339Nano))
	}
	if !f.After.IsZero() {
		q.Set("expires_after", f.After.UTC().Format(time.RFC3339Nano))
	}
	return limit(q, f.PageSize)
}

// values makes a query of name and value pairs, leaving empty values out.
func values(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

func limit(q url.Values, pageSize int) url.Values {
	if pageSize > 0 {
		q.Set("limit", strconv.Itoa(pageSize))
	}
	return q
}

// Certificates searches the inventory.
func (c *Client) Certificates(ctx context.Context, f CertificateFilter) iter.Seq2[Certificate, error] {
	return pages[Certificate](ctx, c, get("certificates").where(f.query()))
}

// ExportCertificates writes the inventory that matches f to w; format is "csv" or "json" (one object a line).
func (c *Client) ExportCertificates(ctx context.Context, w io.Writer, f CertificateFilter, format string) error {
	q := f.query()
	q.Set("format", format)
	return c.stream(ctx, get("certificates", "export").where(q), w)
}

// Certificate shows one. Serials are unique per issuer; issuer may be empty unless two issuers share the serial.
func (c *Client) Certificate(ctx context.Context, issuer, serial string) (*Certificate, error) {
	var out Certificate
	return &out, c.do(ctx, get("certificates", serial).where(values("issuer", issuer)), &out)
}

// RenewRequest asks for the same key and names with a new validity (RFC 3647 §4.6).
type RenewRequest struct {
	Validity string `json:"validity,omitempty" maxLength:"32" doc:"a length such as 90d; the profile's where absent"`
}

// Renew renews a certificate.
func (c *Client) Renew(ctx context.Context, issuer, serial string, in RenewRequest) (*IssueResult, error) {
	var out IssueResult
	return &out, c.do(ctx, post("certificates", serial, "renew").where(values("issuer", issuer)).with(in), &out)
}

// RekeyRequest asks for the same names with a new key (RFC 3647 §4.7).
type RekeyRequest struct {
	CSR       string `json:"csr,omitempty" maxLength:"262144" doc:"a PKCS #10 request with the new key, PEM"`
	PublicKey string `json:"public_key,omitempty" maxLength:"16384" doc:"the new key as SubjectPublicKeyInfo, PEM"`
	Validity  string `json:"validity,omitempty" maxLength:"32"`
}

// Rekey re-keys a certificate.
func (c *Client) Rekey(ctx context.Context, issuer, serial string, in RekeyRequest) (*IssueResult, error) {
	var out IssueResult
	return &out, c.do(ctx, post("certificates", serial, "rekey").where(values("issuer", issuer)).with(in), &out)
}

// RevokeRequest revokes for good, or makes a hold permanent.
type RevokeRequest struct {
	Reason       string     `json:"reason,omitempty" enum:"unspecified,keyCompromise,cACompromise,affiliationChanged,superseded,cessationOfOperation,privilegeWithdrawn,aACompromise" doc:"RFC 5280 §5.3.1; unspecified where absent"`
	InvalidSince *time.Time `json:"invalidity_date,omitempty" doc:"since when the key is thought compromised"`
}

// Revoke revokes a certificate.
func (c *Client) Revoke(ctx context.Context, issuer, serial string, in RevokeRequest) (*Certificate, error) {
	var out Certificate
	return &out, c.do(ctx, post("certificates", serial, "revoke").where(values("issuer", issuer)).with(in), &out)
}

// Nothing is the body of an act that says all in its path.
type Nothing struct{}

// Hold puts a certificate on hold (reason certificateHold).
func (c *Client) Hold(ctx context.Context, issuer, serial string) (*Certificate, error) {
	var out Certificate
	return &out, c.do(ctx, post("certificates", serial, "hold").where(values("issuer", issuer)).with(Nothing{}), &out)
}

// Release ends a hold.
func (c *Client) Release(ctx context.Context, issuer, serial string) (*Certificate, error) {
	var out Certificate
	return &out, c.do(ctx, post("certificates", serial, "release").where(values("issuer", issuer)).with(Nothing{}), &out)
}

// The states of a request.
const (
	RequestPending   = "pending"
	RequestIssued    = "issued"
	RequestRejected  = "rejected"
	RequestCancelled = "cancelled"
)

// Request is an enrolment that waits for an officer, or was decided.
type Request struct {
	ID          string    `json:"id"`
	State       string    `json:"state" enum:"pending,issued,rejected,cancelled" doc:"pending until it is decided"`
	Issuer      string    `json:"issuer,omitempty"`
	Profile     string    `json:"profile,omitempty"`
	Subject     string    `json:"subject,omitempty" doc:"what would be issued"`
	SAN         []string  `json:"san,omitempty"`
	Requester   string    `json:"requester"`
	TwoPerson   bool      `json:"two_person,omitempty" doc:"who requested it may not approve it"`
	Assignee    string    `json:"assignee,omitempty" doc:"the officer it is assigned to"`
	DecidedBy   string    `json:"decided_by,omitempty"`
	SubmittedAt time.Time `json:"submitted_at"`
	DecidedAt   time.Time `json:"decided_at,omitzero"`
	Reason      string    `json:"reason,omitempty" doc:"why it was rejected or cancelled"`
	Serial      string    `json:"serial,omitempty" doc:"the certificate, once issued"`
	CSR         string    `json:"csr,omitempty" doc:"the PKCS #10 request, PEM; absent in lists"`
}

// Submit asks for a certificate: where the profile wants no approval of this caller it is issued at once, otherwise the
// request waits for an officer.
func (c *Client) Submit(ctx context.Context, in IssueRequest) (*IssueResult, error) {
	var out IssueResult
	return &out, c.do(ctx, post("requests").with(in), &out)
}

// RequestFilter narrows a list of requests.
type RequestFilter struct {
	State     string
	Requester string
	Assignee  string
	PageSize  int
}

// Requests lists requests, oldest first.
func (c *Client) Requests(ctx context.Context, f RequestFilter) iter.Seq2[Request, error] {
	q := limit(values("state", f.State, "requester", f.Requester, "assignee", f.Assignee), f.PageSize)
	return pages[Request](ctx, c, get("requests").where(q))
}

// Request shows one.
func (c *Client) Request(ctx context.Context, id string) (*Request, error) {
	var out Request
	return &out, c.do(ctx, get("requests", id), &out)
}

// AssignRequest names the officer who is to decide.
type AssignRequest struct {
	Assignee string `json:"assignee" maxLength:"255" doc:"an officer's name; empty takes it back"`
}

// Assign assigns a request to an officer.
func (c *Client) Assign(ctx context.Context, id, assignee string) (*Request, error) {
	var out Request
	return &out, c.do(ctx, post("requests", id, "assign").with(AssignRequest{assignee}), &out)
}

// RejectRequest carries the officer's words.
type RejectRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" doc:"shown to the requester"`
}

// Approve approves a request, and issues its certificate.
func (c *Client) Approve(ctx context.Context, id string) (*IssueResult, error) {
	var out IssueResult
	return &out, c.do(ctx, post("requests", id, "approve").with(Nothing{}), &out)
}

// Reject rejects a request.
func (c *Client) Reject(ctx context.Context, id string, in RejectRequest) (*Request, error) {
	var out Request
	return &out, c.do(ctx, post("requests", id, "reject").with(in), &out)
}

// Cancel takes a request back.
func (c *Client) Cancel(ctx context.Context, id string) (*Request, error) {
	var out Request
	return &out, c.do(ctx, post("requests", id, "cancel").with(Nothing{}), &out)
}

// Retrieve fetches the certificate of an approved request.
func (c *Client) Retrieve(ctx context.Context, id string) (*Certificate, error) {
	var out Certificate
	return &out, c.do(ctx, call{method: http.MethodGet, path: path("requests", id, "certificate")}, &out)
}
