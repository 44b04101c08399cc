package client

import (
	"context"
	"iter"
	"net/http"
	"time"
)

// The states of a host.
const (
	HostPending = "pending" // its agent has not joined
	HostJoined  = "joined"
	HostSuspect = "suspect" // two machines used one identity; nothing is issued until it is replaced
	HostRemoved = "removed"
)

// The states of a placement.
const (
	PlacementPending = "pending" // the agent has not reported on it
	PlacementServed  = "served"  // placed, and seen on the live port
	PlacementPlaced  = "placed"  // placed, not probed: the consumer has no port
	PlacementDown    = "down"    // placed; the consumer was down and stays down
	PlacementFailed  = "failed"  // not as desired; the message says why
)

// PlacementOrder is a recipe for a host, with its parameters.
type PlacementOrder struct {
	Name       string            `json:"name,omitempty" maxLength:"64" doc:"among the host's placements; the recipe's name where absent"`
	Recipe     string            `json:"recipe" minLength:"1" maxLength:"64"`
	Parameters map[string]string `json:"parameters,omitempty" maxProperties:"64"`
}

// AddHostRequest adds a host, which then joins with the token of the answer.
type AddHostRequest struct {
	Name       string            `json:"name" minLength:"1" maxLength:"253"`
	Pool       string            `json:"pool,omitempty" maxLength:"56" doc:"default where absent"`
	DNS        []string          `json:"dns,omitempty" maxItems:"100" doc:"other names; the host's own is always one"`
	IP         []string          `json:"ip,omitempty" maxItems:"100"`
	Placements []PlacementOrder  `json:"placements,omitempty" maxItems:"64"`
	Profiles   []string          `json:"profiles,omitempty" maxItems:"32" doc:"whose certificates it may have beside those of its placements"`
	Labels     map[string]string `json:"labels,omitempty" maxProperties:"32" doc:"what the host is known by in waves: site=berlin, canary=true"`
	TokenLife  string            `json:"token_life,omitempty" maxLength:"32" doc:"24h where absent, 30d at most"`
}

// HostToken is a host and the text of its one-time join token, which is shown once.
type HostToken struct {
	Host  Host   `json:"host"`
	Token string `json:"token"`
}

// ChangeHostRequest changes what is given, and leaves the rest. A list that is given replaces the whole list.
type ChangeHostRequest struct {
	DNS        *[]string          `json:"dns,omitempty" maxItems:"100"`
	IP         *[]string          `json:"ip,omitempty" maxItems:"100"`
	Placements *[]PlacementOrder  `json:"placements,omitempty" maxItems:"64"`
	Profiles   *[]string          `json:"profiles,omitempty" maxItems:"32"`
	Labels     *map[string]string `json:"labels,omitempty" maxProperties:"32" doc:"sets those given, and leaves the others; an empty value removes one"`
	Absent     *string            `json:"absent,omitempty" maxLength:"500" doc:"why it is away, so that no certificate which peers pin waits until it holds it; its next report ends that, and so does an empty text"`
	RevokeNow  bool               `json:"revoke_now,omitempty" doc:"revoke the certificates of its machine with names that it no longer has, whether it has others already or not"`
}

// Host is a machine that holds certificates.
type Host struct {
	Name         string            `json:"name"`
	Pool         string            `json:"pool"`
	DNS          []string          `json:"dns" doc:"its own name first"`
	IP           []string          `json:"ip,omitempty"`
	State        string            `json:"state" enum:"pending,joined,suspect,removed"`
	Message      string            `json:"message,omitempty" doc:"why it is suspect"`
	Absent       string            `json:"absent,omitempty" doc:"why no certificate that peers pin waits until it holds it"`
	CreatedAt    time.Time         `json:"created_at"`
	JoinedAt     time.Time         `json:"joined_at,omitzero"`
	SeenAt       time.Time         `json:"seen_at,omitzero" doc:"when its agent last called"`
	TokenExpires time.Time         `json:"token_expires,omitzero" doc:"of a join token that was not redeemed"`
	Agent        string            `json:"agent,omitempty" doc:"the agent's version"`
	IdentityEnds time.Time         `json:"identity_ends,omitzero"`
	Profiles     []string          `json:"profiles,omitempty" doc:"whose certificates it may have beside those of its placements"`
	Labels       map[string]string `json:"labels,omitempty"`
	Placements   []Placement       `json:"placements,omitempty"`
	// Both are only said of a host that is shown alone.
	FormerNames        []RemainingCertificate `json:"former_names,omitempty" doc:"good certificates of its machine with names that it no longer has"`
	OthersCertificates []RemainingCertificate `json:"others_certificates,omitempty" doc:"good certificates with its names that others requested; they stay good when it is removed"`
}

// RemainingCertificate is a certificate that is good for names, or on hold.
type RemainingCertificate struct {
	Serial    string    `json:"serial"`
	Requester string    `json:"requester"`
	Names     []string  `json:"names"`
	NotAfter  time.Time `json:"not_after"`
}

// Placement is a recipe on a host: as desired, and as observed there.
type Placement struct {
	PlacementOrder
	Observed Observation `json:"observed"`
}

// Observation is what the agent saw of a placement. A report carries one for each.
type Observation struct {
	Placement string            `json:"placement"`
	State     string            `json:"state" enum:"pending,served,placed,down,failed"`
	Message   string            `json:"message,omitempty" maxLength:"2000" doc:"what is wrong, or was repaired"`
	Serial    string            `json:"serial,omitempty" maxLength:"64" doc:"of the certificate placed"`
	Served    string            `json:"served,omitempty" maxLength:"64" doc:"the serial number seen on the live port"`
	NotAfter  time.Time         `json:"not_after,omitzero"`
	RekeyAt   time.Time         `json:"rekey_at,omitzero"`
	Files     []ObservedFile    `json:"files,omitempty" maxItems:"64"`
	Facts     map[string]string `json:"facts,omitempty" maxProperties:"64" doc:"of the host, that the recipe asked for"`
	AllowList string            `json:"allow_list,omitempty" maxLength:"2000" doc:"the subject in encoded order, for the consumer's list of names"`
	Repaired  []string          `json:"repaired,omitempty" maxItems:"64" doc:"drift that was found and mended"`
	CRLs      map[string]string `json:"crls,omitempty" maxProperties:"64" doc:"issuer → the CRLNumber placed"`
	CRLEnds   time.Time         `json:"crl_ends,omitzero" doc:"when the first of the CRLs placed ends"`
	// Trust is the version of the trust set that is placed and in use, CRLs included where the consumer takes them; 0 where
	// none is in full. A placement without trust says the version that it was told.
	Trust    int64  `json:"trust,omitempty"`
	Issuer   string `json:"issuer,omitempty" maxLength:"64" doc:"SHA-256, in hexadecimal, of the certificate of the issuer of what is placed"`
	Reissued int64  `json:"reissued,omitempty" doc:"the number under which what is placed was asked for"`
	// What a plan for a rollout tells: the step that makes the consumer read its files, and where it listens.
	Reload     string `json:"reload,omitempty" maxLength:"200"`
	Interrupts bool   `json:"interrupts,omitempty" doc:"connections are lost at the reload"`
	Address    string `json:"address,omitempty" maxLength:"300" doc:"where the agent probes, as the host sees it: HOST:PORT"`
	StartTLS   string `json:"starttls,omitempty" maxLength:"16"`
	// Announced are certificates that others are to pin and that are not placed yet, or that are and may not be known as such: PEM, leaf only.
	Announced []string `json:"announced,omitempty" maxItems:"8"`
	// Pinned are the SHA-256 fingerprints of the pinned certificates that are placed and in use.
	Pinned []string  `json:"pinned,omitempty" maxItems:"1000"`
	At     time.Time `json:"at"`
}

// ObservedFile is a file as it lies on the host.
type ObservedFile struct {
	Path  string `json:"path" maxLength:"4096"`
	Mode  string `json:"mode" maxLength:"8"`
	Owner string `json:"owner" maxLength:"64"`
	Group string `json:"group" maxLength:"64"`
	Label string `json:"label,omitempty" maxLength:"256"`
}

// JoinRequest redeems a join token.
type JoinRequest struct {
	Token string `json:"token" minLength:"16" maxLength:"1024"`
	CSR   string `json:"csr" maxLength:"16384" doc:"PEM, signed by the key of the agent's identity"`
	Agent string `json:"agent,omitempty" maxLength:"64" doc:"its version"`
}

// Joined is an agent's identity.
type Joined struct {
	Host        string `json:"host"`
	Certificate string `json:"certificate" doc:"PEM"`
	Chain       string `json:"chain" doc:"PEM, the root left out"`
	Roots       string `json:"roots" doc:"PEM: the roots of identities, which the agent pins"`
	Generation  int64  `json:"generation" doc:"counts the identities of this host; the next renewal carries it"`
	AuditKey    string `json:"audit_key,omitempty" doc:"PEM: the key of audit checkpoints, which the agent pins"`
}

// RenewIdentityRequest renews an agent's identity. It is answered for an identity that expired at most 30 days ago, too.
type RenewIdentityRequest struct {
	CSR        string `json:"csr" maxLength:"16384"`
	Generation int64  `json:"generation"`
}

// Desired is what a host shall hold. ETag changes whenever any of it does.
type Desired struct {
	ETag       string             `json:"etag"`
	Host       string             `json:"host"`
	Pool       string             `json:"pool"`
	DNS        []string           `json:"dns"`
	IP         []string           `json:"ip,omitempty"`
	Placements []DesiredPlacement `json:"placements,omitempty"`
	Trust      TrustSet           `json:"trust" doc:"what is for general purposes"`
	TrustSets  []TrustSet         `json:"trust_sets,omitempty" doc:"those for other purposes"`
	// IdentityAfter asks for a new identity while the generation of the agent's is not above it.
	IdentityAfter int64   `json:"identity_after,omitempty"`
	Proofs        []Proof `json:"proofs,omitempty" doc:"revocations that the host is to try upon its consumers"`
	Checkpoint    string  `json:"checkpoint,omitempty" doc:"the newest signed checkpoint of the audit; an agent refuses an older one than it knows"`
}

// DesiredPlacement is a placement as the agent is to make it.
type DesiredPlacement struct {
	PlacementOrder
	// Revoked are the serial numbers of certificates of this host that were revoked and are not expired: what is placed
	// under one of them is re-keyed at once.
	Revoked []string `json:"revoked,omitempty"`
	// Issuer is the name of the issuer under which its certificates shall be; empty leaves it to the authority.
	Issuer string `json:"issuer,omitempty"`
	// Reissue is a number that grows: certificates that were asked for under a smaller one are re-keyed.
	Reissue int64 `json:"reissue,omitempty"`
	// Released are the serial numbers of announced certificates that may be placed, since all who pin them hold them.
	Released []string `json:"released,omitempty"`
}

// TrustSet is what the hosts of a pool trust for one purpose.
type TrustSet struct {
	Purpose   string        `json:"purpose,omitempty" doc:"general where absent"`
	Version   int64         `json:"version,omitempty" doc:"grows with each change of anchors and issuers"`
	Pinned    []string      `json:"pinned,omitempty" doc:"PEM: certificates that are trusted as they are, and sign nothing"`
	Authority string        `json:"authority" doc:"the common name of the pool's root"`
	Anchors   []string      `json:"anchors" doc:"PEM: the roots"`
	Issuers   []TrustIssuer `json:"issuers,omitempty" doc:"all issuers of the pool's certification paths, the roots included"`
	// RevokedSubjects are the subjects (DER, base64) of certificates that were revoked and are not expired, at most 1,000,
	// newest first: by them a consumer's connected clients are found.
	RevokedSubjects [][]byte `json:"revoked_subjects,omitempty"`
}

// TrustIssuer is an issuer and its newest complete CRL, which is fetched from /issuers/NAME/crls/current.
type TrustIssuer struct {
	Name       string    `json:"name"`
	PEM        string    `json:"pem"`
	CRLNumber  string    `json:"crl_number,omitempty"`
	NextUpdate time.Time `json:"next_update,omitzero"`
	// Entry is set where it is no issuer of the authority: its CRL is fetched from /agent/trust/ENTRY/crl.
	Entry string `json:"entry,omitempty"`
}

// Report is what an agent saw.
type Report struct {
	Agent        string        `json:"agent,omitempty" maxLength:"64"`
	Generation   int64         `json:"generation"`
	ETag         string        `json:"etag,omitempty" doc:"of the desired state that was converged to"`
	Observations []Observation `json:"observations,omitempty" maxItems:"64"`
	Message      string        `json:"message,omitempty" maxLength:"2000" doc:"what concerns the whole host: a clock that is off, a checkpoint that went back"`
}

// HostCounts is how the hosts do, in one look.
type HostCounts struct {
	Hosts   int64 `json:"hosts"`
	Pending int64 `json:"pending"`
	Joined  int64 `json:"joined"`
	Suspect int64 `json:"suspect"`
	Silent  int64 `json:"silent" doc:"joined, and not seen for an hour"`
	Failed  int64 `json:"failed_placements"`
	// The placement whose certificate ends first.
	SoonestHost      string    `json:"soonest_host,omitempty"`
	SoonestPlacement string    `json:"soonest_placement,omitempty"`
	SoonestEnd       time.Time `json:"soonest_end,omitzero"`
}

// HostTokenRequest asks for another join token.
type HostTokenRequest struct {
	TokenLife string `json:"token_life,omitempty" maxLength:"32" doc:"24h where absent, 30d at most"`
}

// ReplaceHostRequest gives a host's name and placements to another machine.
type ReplaceHostRequest struct {
	Reason    string `json:"reason,omitempty" maxLength:"32" doc:"why what the old machine holds is revoked when the new one joins; superseded where absent, and keyCompromise revokes it at once"`
	TokenLife string `json:"token_life,omitempty" maxLength:"32" doc:"24h where absent, 30d at most"`
}

// HostFilter selects hosts; what is empty selects all that are not removed.
type HostFilter struct {
	Pool  string
	State string // one of the states; removed lists those that are no longer there
}

// AddHost adds a host, and returns it with its join token.
func (c *Client) AddHost(ctx context.Context, in AddHostRequest) (*HostToken, error) {
	var out HostToken
	return &out, c.do(ctx, post("hosts").with(in), &out)
}

// Hosts lists hosts: those with a problem first, then by name.
func (c *Client) Hosts(ctx context.Context, f HostFilter) iter.Seq2[Host, error] {
	return pages[Host](ctx, c, get("hosts").where(values("pool", f.Pool, "state", f.State)))
}

// Host shows one.
func (c *Client) Host(ctx context.Context, name string) (*Host, error) {
	var out Host
	return &out, c.do(ctx, get("hosts", name), &out)
}

// ChangeHost changes a host's names, addresses or placements.
func (c *Client) ChangeHost(ctx context.Context, name string, in ChangeHostRequest) (*Host, error) {
	var out Host
	return &out, c.do(ctx, call{method: http.MethodPatch, path: path("hosts", name)}.with(in), &out)
}

// RemoveHost ends a host and revokes what it holds, for a reason; an empty one is cessationOfOperation.
func (c *Client) RemoveHost(ctx context.Context, name, reason string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: path("hosts", name)}.where(values("reason", reason)), nil)
}

// ReplaceHost makes a token by which another machine takes the host's place.
func (c *Client) ReplaceHost(ctx context.Context, name string, in ReplaceHostRequest) (*HostToken, error) {
	var out HostToken
	return &out, c.do(ctx, post("hosts", name, "replace").with(in), &out)
}

// NewHostToken makes another join token for a host that has not joined; the one before is no longer good.
func (c *Client) NewHostToken(ctx context.Context, name string, in HostTokenRequest) (*HostToken, error) {
	var out HostToken
	return &out, c.do(ctx, post("hosts", name, "token").with(in), &out)
}
