package client

import (
	"context"
	"io"
	"iter"
	"time"
)

// Issuer is a CA certificate and its key.
type Issuer struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	State       string    `json:"state" enum:"pending,active,retired" doc:"pending until its certificate is brought in"`
	Root        bool      `json:"root" doc:"it is self-signed"`
	Parent      string    `json:"parent,omitempty" doc:"the name of the issuer above it, where this authority holds it"`
	Pool        string    `json:"pool,omitempty"`
	Default     bool      `json:"default,omitempty" doc:"requests for its pool that name no issuer get it"`
	Algorithm   string    `json:"algorithm,omitempty"`
	KeyOnline   bool      `json:"key_online" doc:"whether this authority holds its key"`
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial,omitempty"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	NotAfter    time.Time `json:"not_after,omitzero"`
	Fingerprint string    `json:"sha256,omitempty"`
	KeyID       string    `json:"subject_key_id,omitempty"`
	CRLMode     CRLMode   `json:"crl_mode" doc:"which CRLs it signs"`
	CRL         *CRL      `json:"crl,omitempty" doc:"its complete CRL in force; absent in lists"`
	CreatedAt   time.Time `json:"created_at"`
	PEM         string    `json:"pem,omitempty"`
	CSR         string    `json:"csr,omitempty" doc:"the PKCS #10 request of a pending issuer"`

	Former   []FormerCertificate `json:"former,omitempty" doc:"the certificates that it had before it was renewed and that have not ended, the newest first; absent in lists"`
	Warnings []string            `json:"warnings,omitempty" doc:"of its renewal, in the answer to that alone"`
}

// FormerCertificate is a certificate that an issuer had before it was renewed with its key.
type FormerCertificate struct {
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"sha256"`
	NotAfter    time.Time `json:"not_after"`
	State       string    `json:"state,omitempty" doc:"in the inventory of the issuer above; absent where that is not here"`
	Placements  int64     `json:"placements" doc:"that present it still, by what their agents said last"`
	Hosts       int64     `json:"hosts" doc:"whose placements those are"`
	PEM         string    `json:"pem"`
}

// The kinds of issuers that can be made.
const (
	IssuerRoot         = "root"
	IssuerIntermediate = "intermediate"
	IssuerExternal     = "external" // a request for a root that is not here
)

// CreateIssuerRequest makes an issuer with a new key in the authority: a root, an intermediate under an issuer of this
// authority, or one whose request an outside root signs.
type CreateIssuerRequest struct {
	Name            string   `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-z0-9][a-z0-9-]*$" doc:"its name in this authority, and in URLs"`
	Kind            string   `json:"kind" enum:"root,intermediate,external" doc:"external: a CSR for an outside root"`
	Pool            string   `json:"pool,omitempty" maxLength:"255" doc:"the pool it is for; where absent that of the parent, and \"default\" without one"`
	Default         bool     `json:"default,omitempty" doc:"requests for its pool that name no issuer get it"`
	Parent          string   `json:"parent,omitempty" maxLength:"255" doc:"intermediate: the issuer that signs it"`
	Subject         string   `json:"subject,omitempty" maxLength:"8192" doc:"RFC 4514"`
	Algorithm       string   `json:"algorithm,omitempty" maxLength:"16" doc:"ecdsa-p256, ecdsa-p384, ecdsa-p521, rsa-2048, rsa-3072, rsa-4096 or ed25519; ecdsa-p256 where absent"`
	Key             string   `json:"key,omitempty" maxLength:"2048" doc:"PKCS #11 URI (RFC 7512) of its key, where that lies in a token that the node reaches; without pin-source, module-name, module-path and slot-id, which stand in node.yaml"`
	Validity        string   `json:"validity,omitempty" maxLength:"32" doc:"a length such as 3650d"`
	PathLen         *int     `json:"path_len,omitempty" minimum:"0" maximum:"16" doc:"how many issuers may stand below it; no limit for a root, 0 for others where absent"`
	NameConstraints []string `json:"name_constraints,omitempty" maxItems:"256" doc:"permitted or excluded: +dns:example.com, -ip:10.0.0.0/8"`
	Template        string   `json:"template,omitempty" maxLength:"65536" doc:"a certtool template with ca, instead of all from subject on"`
	CerttoolCompat  bool     `json:"certtool_compat,omitempty" doc:"read the template as certtool does, silent traps included"`
	CRL             *CRLMode `json:"crl,omitempty"`
}

// CRLMode says which CRLs an issuer signs. Deltas and partitions exclude each other.
type CRLMode struct {
	Validity   string `json:"validity,omitempty" maxLength:"32" doc:"nextUpdate after thisUpdate, such as 7d; the settings' where absent"`
	Refresh    string `json:"refresh,omitempty" maxLength:"32" doc:"how often a new one is signed when nothing was revoked; the settings' where absent"`
	Partitions int    `json:"partitions,omitempty" minimum:"0" maximum:"10000" doc:"0 for none; given once, it never changes"`
	Delta      bool   `json:"delta,omitempty"`
	// OnRevocation is crl_on_revocation: a list is signed as soon as something was revoked, and not only at the schedule.
	OnRevocation *bool `json:"on_revocation,omitempty" doc:"sign a list as soon as something was revoked, not only at the schedule; true where absent"`
}

// Issuers lists the issuers.
func (c *Client) Issuers(ctx context.Context) iter.Seq2[Issuer, error] {
	return pages[Issuer](ctx, c, get("issuers"))
}

// Issuer shows one, by name or ID.
func (c *Client) Issuer(ctx context.Context, issuer string) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, get("issuers", issuer), &out)
}

// CreateIssuer makes an issuer.
func (c *Client) CreateIssuer(ctx context.Context, in CreateIssuerRequest) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, post("issuers").with(in), &out)
}

// IssuerCertificateRequest brings in the certificate of a pending issuer.
type IssuerCertificateRequest struct {
	Certificate string `json:"certificate" minLength:"1" maxLength:"65536" doc:"the issuer's certificate, PEM"`
	Chain       string `json:"chain,omitempty" maxLength:"262144" doc:"the certificates above it up to the root, PEM"`
}

// ImportIssuerCertificate brings in what an outside root made of an issuer's CSR.
func (c *Client) ImportIssuerCertificate(ctx context.Context, issuer string, in IssuerCertificateRequest) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, post("issuers", issuer, "certificate").with(in), &out)
}

// RenewIssuerRequest gives an issuer another certificate for its key: one that the issuer above signs now, or one that was made
// elsewhere. An issuer that was retired is active again by it.
type RenewIssuerRequest struct {
	Validity    string `json:"validity,omitempty" maxLength:"32" doc:"a length such as 3650d; that of the certificate before where absent, and never beyond the issuer above"`
	Certificate string `json:"certificate,omitempty" maxLength:"65536" doc:"the new certificate, PEM, where an outside or offline root made it; a retired issuer is active again by the one that it has"`
	Chain       string `json:"chain,omitempty" maxLength:"262144" doc:"the certificates above it as far as they are not here, PEM"`
}

// RenewIssuer gives an issuer another certificate for its key, which lasts longer.
func (c *Client) RenewIssuer(ctx context.Context, issuer string, in RenewIssuerRequest) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, post("issuers", issuer, "renew").with(in), &out)
}

// RenewalRequest is a PKCS #10 request for another certificate of an issuer, PEM, for a root that is not here.
func (c *Client) RenewalRequest(ctx context.Context, issuer string) ([]byte, error) {
	var out []byte
	k := get("issuers", issuer, "renewal-request")
	k.accept = "application/x-pem-file"
	return out, c.do(ctx, k, &out)
}

// RetireIssuer ends issuance under an issuer; it goes on signing its CRLs.
func (c *Client) RetireIssuer(ctx context.Context, issuer string) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, post("issuers", issuer, "retire").with(Nothing{}), &out)
}

// SetDefaultIssuer makes an issuer the one that requests for its pool get when they name none.
func (c *Client) SetDefaultIssuer(ctx context.Context, issuer string) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, post("issuers", issuer, "default").with(Nothing{}), &out)
}

// SetCRLMode changes which CRLs an issuer signs.
func (c *Client) SetCRLMode(ctx context.Context, issuer string, in CRLMode) (*Issuer, error) {
	var out Issuer
	return &out, c.do(ctx, put("issuers", issuer, "crl-mode").with(in), &out)
}

// Chain is the path of an issuer up to and with its root, PEM.
func (c *Client) Chain(ctx context.Context, issuer string) ([]byte, error) {
	var out []byte
	k := get("issuers", issuer, "chain")
	k.accept = "application/x-pem-file"
	return out, c.do(ctx, k, &out)
}

// CRL is a certificate revocation list as the authority keeps it.
type CRL struct {
	Issuer     string    `json:"issuer"`
	Number     string    `json:"number" doc:"the CRLNumber, decimal"`
	Scope      string    `json:"scope" doc:"what it covers: complete, delta, or the number of a partition"`
	Base       string    `json:"base,omitempty" doc:"a delta's BaseCRLNumber"`
	Current    bool      `json:"current,omitempty" doc:"it is the one in force"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    int64     `json:"entries"`
	Size       int64     `json:"size" doc:"octets of the DER form"`
	Warnings   []string  `json:"warnings,omitempty" doc:"when it was just signed: what of the template passed, and may surprise"`
}

// IssueCRL signs an issuer's complete CRL now.
func (c *Client) IssueCRL(ctx context.Context, issuer string, in IssueCRLRequest) (*CRL, error) {
	var out CRL
	return &out, c.do(ctx, post("issuers", issuer, "crls").with(in), &out)
}

// IssueCRLRequest signs a CRL now.
type IssueCRLRequest struct {
	Template       string `json:"template,omitempty" maxLength:"65536" doc:"a certtool template, whose CRL options are taken"`
	CerttoolCompat bool   `json:"certtool_compat,omitempty" doc:"read the template as certtool does, silent traps included"`
}

// CRLDraft is what the next CRL of an issuer with an offline key has to say, for the program that has the key.
type CRLDraft struct {
	Number     string    `json:"number" doc:"the CRLNumber, decimal"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Entries    []byte    `json:"entries" doc:"the elements of revokedCertificates, one behind the other, DER"`
}

// DraftCRL says what the next CRL of an issuer with an offline key has to say.
func (c *Client) DraftCRL(ctx context.Context, issuer string) (*CRLDraft, error) {
	var out CRLDraft
	return &out, c.do(ctx, get("issuers", issuer, "crls", "draft"), &out)
}

// CRLs lists an issuer's CRLs of one scope ("" is complete), newest first.
func (c *Client) CRLs(ctx context.Context, issuer, scope string) iter.Seq2[CRL, error] {
	return pages[CRL](ctx, c, get("issuers", issuer, "crls").where(values("scope", scope)))
}

// CRL shows one by its number, or the one in force of a scope by "current".
func (c *Client) CRL(ctx context.Context, issuer, number, scope string) (*CRL, error) {
	var out CRL
	return &out, c.do(ctx, get("issuers", issuer, "crls", number).where(values("scope", scope)), &out)
}

// DownloadCRL writes a CRL to w; number and scope are as for CRL, format is "der" or "pem".
func (c *Client) DownloadCRL(ctx context.Context, w io.Writer, issuer, number, scope, format string) error {
	k := get("issuers", issuer, "crls", number).where(values("scope", scope))
	k.accept = "application/pkix-crl"
	if format == "pem" {
		k.accept = "application/x-pem-file"
	}
	return c.stream(ctx, k, w)
}

// UploadCRLRequest brings in a CRL that an offline root signed.
type UploadCRLRequest struct {
	CRL string `json:"crl" minLength:"1" maxLength:"16777216" doc:"the CRL, PEM"`
}

// UploadCRL brings in a CRL of an issuer whose key the authority does not hold.
func (c *Client) UploadCRL(ctx context.Context, issuer string, in UploadCRLRequest) (*CRL, error) {
	var out CRL
	return &out, c.do(ctx, post("issuers", issuer, "crls", "upload").with(in), &out)
}

// Profile is a stored profile, or one that is built in.
type Profile struct {
	Name        string    `json:"name"`
	Version     int64     `json:"version" doc:"from 1; 0 for what is built in"`
	Description string    `json:"description,omitempty"`
	Retired     bool      `json:"retired,omitempty" doc:"it issues nothing"`
	SavedAt     time.Time `json:"saved_at,omitzero"`
	SavedBy     string    `json:"saved_by,omitempty"`
	YAML        string    `json:"yaml,omitempty" doc:"the profile's text; absent in lists"`
}

// ProfileText is a profile to be checked or saved.
type ProfileText struct {
	YAML string `json:"yaml" minLength:"1" maxLength:"65536" doc:"the profile's text"`
	Base *int64 `json:"base,omitempty" minimum:"0" doc:"the version that it was made from; the newest where absent"`
}

// ProfileCheck is what a profile issues: a sample for each kind of key that it allows.
type ProfileCheck struct {
	Name    string          `json:"name"`
	Version int64           `json:"version,omitempty"`
	Samples []ProfileSample `json:"samples" nullable:"false"`
}

// ProfileSample is a certificate as a profile makes it, under an issuer that exists for a moment.
type ProfileSample struct {
	Algorithm string   `json:"algorithm" doc:"of the subject's key"`
	PEM       string   `json:"pem"`
	Findings  []string `json:"findings,omitempty" doc:"what zlint says of it; an error refuses the profile"`
	Warnings  []string `json:"warnings,omitempty" doc:"our own lints that the profile turned off, and that it fails"`
}

// Profiles lists the profiles, each in its newest version.
func (c *Client) Profiles(ctx context.Context) iter.Seq2[Profile, error] {
	return pages[Profile](ctx, c, get("profiles"))
}

// Profile shows one; version 0 is the newest.
func (c *Client) Profile(ctx context.Context, name string, version int64) (*Profile, error) {
	var out Profile
	if version == 0 {
		return &out, c.do(ctx, get("profiles", name), &out)
	}
	return &out, c.do(ctx, get("profiles", name, "versions", decimal(version)), &out)
}

// ProfileVersions lists the versions of one, newest first.
func (c *Client) ProfileVersions(ctx context.Context, name string) iter.Seq2[Profile, error] {
	return pages[Profile](ctx, c, get("profiles", name, "versions"))
}

// SavedProfile is a version that was saved, with what it issues.
type SavedProfile struct {
	Profile Profile         `json:"profile"`
	Samples []ProfileSample `json:"samples" nullable:"false"`
}

// SaveProfile saves a new version; it refuses where a sample certificate does not pass the lints.
func (c *Client) SaveProfile(ctx context.Context, name string, in ProfileText) (*SavedProfile, error) {
	var out SavedProfile
	return &out, c.do(ctx, put("profiles", name).with(in), &out)
}

// RetireProfile ends a profile: it issues nothing more until a new version is saved.
func (c *Client) RetireProfile(ctx context.Context, name string) (*Profile, error) {
	var out Profile
	return &out, c.do(ctx, post("profiles", name, "retire").with(Nothing{}), &out)
}

// CheckProfile says what a text would issue, and saves nothing.
func (c *Client) CheckProfile(ctx context.Context, in ProfileText) (*ProfileCheck, error) {
	var out ProfileCheck
	return &out, c.do(ctx, post("profiles", "check").with(in), &out)
}

// SampleProfile says what a stored profile issues.
func (c *Client) SampleProfile(ctx context.Context, name string) (*ProfileCheck, error) {
	var out ProfileCheck
	return &out, c.do(ctx, get("profiles", name, "sample"), &out)
}

// Pool is hosts that must trust each other; each has its own root and issuer.
type Pool struct {
	Name         string    `json:"name"`
	Organization string    `json:"organization,omitempty"`
	State        string    `json:"state" enum:"pending,active" doc:"pending until its root has signed"`
	Root         *Issuer   `json:"root,omitempty"`
	Issuer       *Issuer   `json:"issuer,omitempty" doc:"its csr is what the root must sign, while the pool is pending"`
	CreatedAt    time.Time `json:"created_at"`
}

// AddPoolRequest begins a pool: the authority makes the issuer's key and CSR; the root is made and kept by the caller,
// and signs in the caller's process (CompletePool), unless Online is set.
type AddPoolRequest struct {
	Name            string   `json:"name" minLength:"1" maxLength:"56" pattern:"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"`
	Organization    string   `json:"organization,omitempty" maxLength:"64" doc:"in the names of its root and issuer; the authority's where absent"`
	Algorithm       string   `json:"algorithm,omitempty" maxLength:"16" doc:"ecdsa-p256 where absent"`
	Online          bool     `json:"online,omitempty" doc:"the authority makes and keeps the root as well"`
	Validity        string   `json:"validity,omitempty" maxLength:"32" doc:"of an online root"`
	PathLen         *int     `json:"path_len,omitempty" minimum:"0" maximum:"16" doc:"of an online root; 1 where absent"`
	NameConstraints []string `json:"name_constraints,omitempty" maxItems:"256" doc:"of an online root: +dns:example.com, -ip:10.0.0.0/8"`
}

// CompletePoolRequest brings in what the root signed.
type CompletePoolRequest struct {
	Root   string `json:"root" minLength:"1" maxLength:"65536" doc:"the root's certificate, PEM"`
	Issuer string `json:"issuer" minLength:"1" maxLength:"65536" doc:"the issuer's certificate, PEM"`
	CRL    string `json:"crl" minLength:"1" maxLength:"65536" doc:"the root's first CRL, PEM"`
}

// Pools lists the pools.
func (c *Client) Pools(ctx context.Context) iter.Seq2[Pool, error] {
	return pages[Pool](ctx, c, get("pools"))
}

// Pool shows one.
func (c *Client) Pool(ctx context.Context, name string) (*Pool, error) {
	var out Pool
	return &out, c.do(ctx, get("pools", name), &out)
}

// AddPool begins a pool.
func (c *Client) AddPool(ctx context.Context, in AddPoolRequest) (*Pool, error) {
	var out Pool
	return &out, c.do(ctx, post("pools").with(in), &out)
}

// CompletePool brings in the root's certificate, the issuer's and the root's CRL.
func (c *Client) CompletePool(ctx context.Context, name string, in CompletePoolRequest) (*Pool, error) {
	var out Pool
	return &out, c.do(ctx, post("pools", name, "root").with(in), &out)
}
