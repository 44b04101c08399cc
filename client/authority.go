package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"
)

func put(segments ...string) call { return call{method: http.MethodPut, path: path(segments...)} }

func remove(segments ...string) call { return call{method: http.MethodDelete, path: path(segments...)} }

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// The roles of operators.
const (
	RoleAdmin    = "admin"    // sets up and configures
	RoleOfficer  = "officer"  // approves, revokes, recovers
	RoleOperator = "operator" // hosts, placements, uploads
	RoleAuditor  = "auditor"  // reads all, changes nothing
)

// Operator is a person or program that works with the authority, or another caller that is known to it.
type Operator struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Kind      string    `json:"kind" doc:"operator, node, host or agent"`
	Roles     []string  `json:"roles" nullable:"false"`
	Disabled  bool      `json:"disabled,omitempty"`
	CreatedAt time.Time `json:"created_at,omitzero"`
}

// CreateOperatorRequest makes an operator.
type CreateOperatorRequest struct {
	Name  string   `json:"name" minLength:"1" maxLength:"200"`
	Roles []string `json:"roles" minItems:"1" maxItems:"5" nullable:"false" enum:"admin,officer,operator,auditor"`
}

// ChangeOperatorRequest changes what is given, and leaves the rest.
type ChangeOperatorRequest struct {
	Roles    []string `json:"roles,omitempty" maxItems:"5" enum:"admin,officer,operator,auditor"`
	Disabled *bool    `json:"disabled,omitempty" doc:"a disabled operator's tokens and identities are refused at once"`
}

// Caller shows who the node takes the caller for.
func (c *Client) Caller(ctx context.Context) (*Operator, error) {
	var out Operator
	return &out, c.do(ctx, get("caller"), &out)
}

// Operators lists the operators.
func (c *Client) Operators(ctx context.Context) iter.Seq2[Operator, error] {
	return pages[Operator](ctx, c, get("operators"))
}

// CreateOperator makes an operator.
func (c *Client) CreateOperator(ctx context.Context, in CreateOperatorRequest) (*Operator, error) {
	var out Operator
	return &out, c.do(ctx, post("operators").with(in), &out)
}

// Operator shows one, by name.
func (c *Client) Operator(ctx context.Context, name string) (*Operator, error) {
	var out Operator
	return &out, c.do(ctx, get("operators", name), &out)
}

// ChangeOperator changes an operator's roles, or disables or enables it.
func (c *Client) ChangeOperator(ctx context.Context, name string, in ChangeOperatorRequest) (*Operator, error) {
	var out Operator
	k := call{method: http.MethodPatch, path: path("operators", name)}.with(in)
	return &out, c.do(ctx, k, &out)
}

// RemoveOperator removes an operator with its tokens and identities.
func (c *Client) RemoveOperator(ctx context.Context, name string) error {
	return c.do(ctx, remove("operators", name), nil)
}

// EnrolRequest asks for a short-lived identity certificate.
type EnrolRequest struct {
	CSR string `json:"csr" minLength:"1" maxLength:"65536" doc:"a PKCS #10 request; only its key is used"`
}

// Identity is an identity certificate with its path.
type Identity struct {
	Operator string    `json:"operator"`
	NotAfter time.Time `json:"not_after"`
	PEM      string    `json:"pem" doc:"the certificate and its issuers, nearest first, the root left out"`
	Root     string    `json:"root,omitempty" doc:"the identity root, PEM"`
}

// Enrol gives the named operator an identity certificate; an admin calls it for others, anyone for himself ("") to renew.
func (c *Client) Enrol(ctx context.Context, operator string, in EnrolRequest) (*Identity, error) {
	var out Identity
	if operator == "" {
		return &out, c.do(ctx, post("caller", "identity").with(in), &out)
	}
	return &out, c.do(ctx, post("operators", operator, "identity").with(in), &out)
}

// Token is an operator's token. Its secret is shown once, when it is made.
type Token struct {
	ID        string    `json:"id"`
	Operator  string    `json:"operator" doc:"whose it is"`
	Label     string    `json:"label,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	LastUsed  time.Time `json:"last_used,omitzero" doc:"within some minutes"`
	Secret    string    `json:"secret,omitempty" doc:"only in the answer that makes it; the authority keeps its hash"`
}

// CreateTokenRequest makes a token.
type CreateTokenRequest struct {
	Validity string `json:"validity,omitempty" maxLength:"32" doc:"a length such as 30d, at most 366d; 90d where absent"`
	Label    string `json:"label,omitempty" maxLength:"200" doc:"what it is for"`
}

// Tokens lists an operator's tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context, operator string) iter.Seq2[Token, error] {
	return pages[Token](ctx, c, get("operators", operator, "tokens"))
}

// CreateToken makes a token. The secret of a lost answer is lost, so the call that is repeated with its key makes a token
// with another secret, and ends the one before it; a conflict says that the first was used or ended already.
func (c *Client) CreateToken(ctx context.Context, operator string, in CreateTokenRequest) (*Token, error) {
	var out Token
	return &out, c.do(ctx, post("operators", operator, "tokens").with(in), &out)
}

// RevokeToken ends a token at once.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.do(ctx, remove("tokens", id), nil)
}

// Settings are the authority's configuration, as one document and as its fields. ETag names the version read or written.
type Settings struct {
	Document json.RawMessage `json:"document" doc:"the settings as one object"`
	Fields   []Setting       `json:"fields" nullable:"false" doc:"each setting by its path"`
	ETag     string          `json:"-"`
}

// Setting is one setting as the path of its field and the text of its value.
type Setting struct {
	Path  string `json:"path" doc:"such as crl.validity"`
	Value string `json:"value" doc:"a list is separated by commas"`
}

// SettingsChange changes some settings and leaves the others.
type SettingsChange struct {
	Set []Setting `json:"set" minItems:"1" maxItems:"100" nullable:"false"`
}

// Settings reads the configuration.
func (c *Client) Settings(ctx context.Context) (*Settings, error) {
	return c.settings(ctx, get("settings"))
}

// ChangeSettings changes the settings that are named, and refuses with a conflict where etag is no longer that of the
// current version. An empty etag changes whatever is current.
func (c *Client) ChangeSettings(ctx context.Context, in SettingsChange, etag string) (*Settings, error) {
	k := call{method: http.MethodPatch, path: path("settings")}.with(in)
	if etag != "" {
		k.header = http.Header{"If-Match": {etag}}
	}
	return c.settings(ctx, k)
}

func (c *Client) settings(ctx context.Context, k call) (*Settings, error) {
	var out Settings
	h, err := c.header(ctx, k, &out)
	if err != nil {
		return nil, err
	}
	out.ETag = h.Get("ETag")
	return &out, nil
}

// AuditEvent is one link of a node's hash chain.
type AuditEvent struct {
	Node   string          `json:"node" doc:"whose chain it is in"`
	Seq    int64           `json:"seq" doc:"from 1, without gaps"`
	Time   time.Time       `json:"time"`
	Actor  string          `json:"actor" doc:"kind:name of who acted"`
	Action string          `json:"action"`
	Object string          `json:"object"`
	Detail json.RawMessage `json:"detail"`
	Prev   string          `json:"prev" doc:"the hash of the event before it"`
	Hash   string          `json:"hash"`
}

// AuditFilter narrows a search of the audit.
type AuditFilter struct {
	Node     string
	Actor    string
	Action   string // whole, or a prefix that ends in a dot: "certificate."
	Object   string
	Newest   bool // newest first
	Since    time.Time
	Until    time.Time
	PageSize int
}

// Audit searches the audit, oldest first.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditEvent, error] {
	return pages[AuditEvent](ctx, c, f.call("audit"))
}

// ExportAudit writes the events that match f to w, one JSON object a line.
func (c *Client) ExportAudit(ctx context.Context, w io.Writer, f AuditFilter) error {
	return c.stream(ctx, f.call("audit", "export"), w)
}

func (f AuditFilter) call(segments ...string) call {
	q := limit(values("node", f.Node, "actor", f.Actor, "action", f.Action, "object", f.Object), f.PageSize)
	if f.Newest {
		q.Set("newest", "true")
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if !f.Until.IsZero() {
		q.Set("until", f.Until.UTC().Format(time.RFC3339Nano))
	}
	return get(segments...).where(q)
}

// Checkpoint is a signed statement of where every audit chain stands. Whoever keeps one will see it if the past is
// rewritten.
type Checkpoint struct {
	Number int64     `json:"number"`
	Time   time.Time `json:"time"`
	Text   string    `json:"text" doc:"the signed text; keep it outside the authority"`
}

// Checkpoint fetches a checkpoint of the audit; number 0 is the newest.
func (c *Client) Checkpoint(ctx context.Context, number int64) (*Checkpoint, error) {
	which := "newest"
	if number != 0 {
		which = decimal(number)
	}
	var out Checkpoint
	return &out, c.do(ctx, get("audit", "checkpoints", which), &out)
}

// SignCheckpoint has a checkpoint signed now.
func (c *Client) SignCheckpoint(ctx context.Context) (*Checkpoint, error) {
	var out Checkpoint
	return &out, c.do(ctx, post("audit", "checkpoints").with(Nothing{}), &out)
}

// Status is how the authority does.
type Status struct {
	Version  string         `json:"version"`
	Node     string         `json:"node"`
	Time     time.Time      `json:"time"`
	Started  time.Time      `json:"started"`
	Ready    bool           `json:"ready"`
	Store    StoreStatus    `json:"store"`
	Clock    string         `json:"clock" doc:"ok, or what is wrong with it"`
	Issuers  []IssuerStatus `json:"issuers" nullable:"false"`
	Expiring []Expiring     `json:"expiring" nullable:"false" doc:"certificates that are good and end within so many days; those of a smaller threshold are counted in the larger as well"`
	Pending  int64          `json:"pending_requests"`
	Leases   []Lease        `json:"leases" nullable:"false"`
	Hosts    HostCounts     `json:"hosts"`
	Outage   OutageBudget   `json:"outage"`
	Warnings []string       `json:"warnings" nullable:"false" doc:"what an operator should see to"`
}

// OutageBudget is for how long all of the authority could be down before something that it, or an agent with its help, renews
// ends.
type OutageBudget struct {
	Seconds int64       `json:"seconds" doc:"from now to the first end; 0 where nothing ends"`
	Ended   []OutageEnd `json:"ended" nullable:"false" doc:"what has ended already and should not have: the first of each kind, the oldest first"`
	Ends    []OutageEnd `json:"ends" nullable:"false" doc:"what is to end: the first of each kind, soonest first"`
	OCSP    *OutageOCSP `json:"ocsp,omitempty" doc:"absent where certificates name no OCSP responder"`
}

// OutageOCSP is what becomes of OCSP while all of the authority is down: a question that no cache answers fails at once.
type OutageOCSP struct {
	Caches time.Time `json:"caches" doc:"until when a cache may hand out an answer that it gets now"`
}

// OutageEnd is the first end of a kind.
type OutageEnd struct {
	Kind string    `json:"kind" doc:"placed certificate, placed CRL, published CRL, published delta CRL, OCSP responder, agent's identity, node's certificate, operator's identity or issuer"`
	What string    `json:"what"`
	At   time.Time `json:"at"`
}

// StoreStatus is how the database does.
type StoreStatus struct {
	Engine     string `json:"engine"`
	Durability string `json:"durability"`
	Schema     int64  `json:"schema"`
}

// IssuerStatus is how an issuer and its CRL do.
type IssuerStatus struct {
	Name       string    `json:"name"`
	State      string    `json:"state"`
	NotAfter   time.Time `json:"not_after,omitzero"`
	CRLNumber  string    `json:"crl_number,omitempty"`
	ThisUpdate time.Time `json:"crl_this_update,omitzero"`
	NextUpdate time.Time `json:"crl_next_update,omitzero"`
	CRLAge     string    `json:"crl_age,omitempty"`
}

// Expiring counts certificates that end within so many days; 0 counts those that have ended in the last 30 days and
// were not replaced.
type Expiring struct {
	Days  int   `json:"days"`
	Count int64 `json:"count"`
}

// Lease is the right to do singleton work.
type Lease struct {
	Name    string    `json:"name"`
	Holder  string    `json:"holder"`
	Epoch   int64     `json:"epoch"`
	Expires time.Time `json:"expires"`
}

// Status shows how the authority does.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out Status
	return &out, c.do(ctx, get("status"), &out)
}

// Finding is something that is not as it should be, or was looked at.
type Finding struct {
	Level   string `json:"level" enum:"ok,warning,error" doc:"ok: looked at, and found right"`
	Check   string `json:"check" doc:"what was looked at"`
	Object  string `json:"object,omitempty"`
	Message string `json:"message"`
	Seen    string `json:"seen,omitempty" doc:"the value seen"`
	Do      string `json:"do,omitempty" doc:"what to do about it"`
	Hint    string `json:"hint,omitempty" doc:"the command that mends it"`
}

// VerifyRequest shows the verifier checkpoints kept elsewhere, so that a rollback behind them is seen.
type VerifyRequest struct {
	Checkpoints []string `json:"checkpoints,omitempty" maxItems:"100" doc:"checkpoint texts kept outside the authority"`
	AuditKeys   []string `json:"audit_keys,omitempty" maxItems:"16" doc:"the audit's public keys as known outside, PEM; the store's own is believed where there is none"`
}

// Verify checks the whole store as an outsider would, and yields findings as they are made.
func (c *Client) Verify(ctx context.Context, in VerifyRequest) iter.Seq2[Finding, error] {
	return lines[Finding](ctx, c, post("verify").with(in))
}

// Doctor looks for what is wrong with keys, wraps, files and the database.
func (c *Client) Doctor(ctx context.Context) iter.Seq2[Finding, error] {
	return lines[Finding](ctx, c, get("doctor"))
}

// lines yields the objects of a streamed answer, one a line.
func lines[T any](ctx context.Context, c *Client, k call) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		resp, err := c.send(ctx, k)
		if err != nil {
			yield(none, err)
			return
		}
		defer resp.Body.Close()
		dec := json.NewDecoder(bufio.NewReader(resp.Body))
		for {
			var item T
			if err := dec.Decode(&item); err == io.EOF {
				break
			} else if err != nil {
				yield(none, fmt.Errorf("%s %s: read answer: %w", k.method, k.path, err))
				return
			}
			if !yield(item, nil) {
				return
			}
		}
		if err := complete(resp, k); err != nil {
			yield(none, err)
		}
	}
}

// Backup writes the whole authority, encrypted to its recovery recipient, to w.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	k := post("backup")
	k.accept = "application/octet-stream"
	return c.stream(ctx, k, w)
}
