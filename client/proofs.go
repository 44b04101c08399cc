package client

import (
	"context"
	"time"
)

// What became of a trial of a revoked certificate.
const (
	ProofWaiting  = "waiting"   // not tried yet: the detail says for what it waits
	ProofRefused  = "refused"   // it was refused, and a good certificate of the same issuer was taken
	ProofAccepted = "accepted"  // it was taken: the alarm
	ProofOpen     = "open"      // the server asks for no client certificate: it lets everybody in
	ProofUnclear  = "unclear"   // it was refused, and so was a good one
	ProofNotTried = "not tried" // nothing was shown to it; Untried says why, and the detail what its files hold
	ProofSilent   = "silent"    // the host has not said anything
)

// Why nothing was shown to a consumer.
const (
	UntriedNoPort    = "no port"    // there is nothing to show it to, so it does not count
	UntriedDown      = "down"       // nothing listens
	UntriedNoCRL     = "no crl"     // it is given none, so it would take whatever its issuer has signed
	UntriedNoTwin    = "no twin"    // the host may have none, and does not have the certificate's key
	UntriedOtherPool = "other pool" // the same, since it is of another pool, which trusts the issuer
)

// Proof is a revocation that a host is to try upon its consumers: it shows them the certificate where it has its key, or a
// twin of it that was issued and revoked in one transaction, and says who still takes it.
type Proof struct {
	ID        string    `json:"id"`
	Serial    string    `json:"serial" doc:"of the revoked certificate"`
	Issuer    string    `json:"issuer" doc:"its issuer's name"`
	IssuedBy  string    `json:"issued_by" doc:"SHA-256, in hexadecimal, of its issuer's certificate"`
	Algorithm string    `json:"algorithm" doc:"of its key; a twin's is of the same kind"`
	Controls  bool      `json:"controls,omitempty" doc:"the host may have a good certificate to hold a refusal against"`
	NoTwin    string    `json:"no_twin,omitempty" doc:"why the host may have no twin; without the certificate's key it shows nothing then"`
	Ends      time.Time `json:"ends" doc:"until when it is worth an answer"`
}

// ProveRequest begins a proof.
type ProveRequest struct {
	NoControls bool     `json:"no_controls,omitempty" doc:"issue no good certificates to hold refusals against"`
	Twins      bool     `json:"twins,omitempty" doc:"issue twins although no key is said to be compromised: of what is on hold, or revoked for another reason"`
	Hosts      []string `json:"hosts,omitempty" maxItems:"1000" doc:"only these; all that could be shown it where absent"`
	DryRun     bool     `json:"dry_run,omitempty" doc:"begin nothing, and say who would try it and who could get a twin"`
}

// ProofTrial is what was seen at one placement.
type ProofTrial struct {
	Host      string `json:"host,omitempty"`
	Placement string `json:"placement" maxLength:"64"`
	// With is the serial number of what was shown: the certificate's own, or a twin's. It is empty where nothing was.
	With    string    `json:"with,omitempty" maxLength:"64"`
	Twin    bool      `json:"twin,omitempty" doc:"what was shown is a twin"`
	CRL     string    `json:"crl,omitempty" maxLength:"64" doc:"the number of the complete CRL that the placement's files hold, and that lists what was shown"`
	Result  string    `json:"result" enum:"waiting,refused,accepted,open,unclear,not tried,silent"`
	Untried string    `json:"untried,omitempty" enum:"no port,down,no crl,no twin,other pool" doc:"why nothing was shown"`
	Detail  string    `json:"detail,omitempty" maxLength:"1000"`
	At      time.Time `json:"at,omitzero"`
}

// ProofResult is a proof with what is known of it by now.
type ProofResult struct {
	ID        string       `json:"id"`
	Serial    string       `json:"serial" doc:"of the revoked certificate"`
	Issuer    string       `json:"issuer"`
	Subject   string       `json:"subject"`
	State     string       `json:"state" enum:"revoked,held"`
	StartedBy string       `json:"started_by"`
	StartedAt time.Time    `json:"started_at"`
	Ends      time.Time    `json:"ends"`
	Twins     []string     `json:"twins,omitempty" doc:"the hosts that may get a twin, by name"`
	Trials    []ProofTrial `json:"trials"`
	Message   string       `json:"message,omitempty" doc:"what else should be known of it"`
}

// Count counts the trials with a result.
func (p *ProofResult) Count(result string) int {
	n := 0
	for _, t := range p.Trials {
		if t.Result == result {
			n++
		}
	}
	return n
}

// Done reports whether no trial is still waited for. A host that is silent is not waited for.
func (p *ProofResult) Done() bool { return p.Count(ProofWaiting) == 0 }

// Ports counts the trials of what has a port, or may have one: those that have to refuse.
func (p *ProofResult) Ports() int { return len(p.Trials) - p.Untried(UntriedNoPort) }

// Untried counts the trials in which nothing was shown for a reason.
func (p *ProofResult) Untried(reason string) int {
	n := 0
	for _, t := range p.Trials {
		if t.Result == ProofNotTried && t.Untried == reason {
			n++
		}
	}
	return n
}

// Proven reports whether everything that has a port was seen to refuse the certificate. Where nobody refused it nothing is proven.
func (p *ProofResult) Proven() bool {
	refused := p.Count(ProofRefused)
	return refused > 0 && refused == p.Ports()
}

// ProvenWhereTried is Proven with everything left out to which nothing was shown. Who says nothing, and who asks for no
// certificate, is not left out.
func (p *ProofResult) ProvenWhereTried() bool {
	refused := p.Count(ProofRefused)
	return refused > 0 && refused == len(p.Trials)-p.Count(ProofNotTried)
}

// ProofKeyRequest asks, as an agent, for a certificate of a proof: a request that proves the possession of a key and asks for
// nothing else.
type ProofKeyRequest struct {
	CSR     string `json:"csr" maxLength:"16384" doc:"PEM"`
	Control bool   `json:"control,omitempty" doc:"a good certificate with the host's own names; a revoked twin where it is absent"`
}

// ProofCertificate is a certificate of a proof.
type ProofCertificate struct {
	Serial string `json:"serial"`
	PEM    string `json:"pem"`
	Chain  string `json:"chain,omitempty" doc:"PEM, the root left out"`
}

// ProofReport is what an agent saw of a proof.
type ProofReport struct {
	Trials []ProofTrial `json:"trials" maxItems:"64"`
}

// ProveRevoked begins a proof that all who should refuse a revoked certificate do. Issuer may be empty where one issuer only
// used the serial number.
func (c *Client) ProveRevoked(ctx context.Context, issuer, serial string, in ProveRequest) (*ProofResult, error) {
	var out ProofResult
	return &out, c.do(ctx, post("certificates", serial, "prove").where(values("issuer", issuer)).with(in), &out)
}

// LastProof returns the newest proof of a certificate's revocation.
func (c *Client) LastProof(ctx context.Context, issuer, serial string) (*ProofResult, error) {
	var out ProofResult
	return &out, c.do(ctx, get("certificates", serial, "proof").where(values("issuer", issuer)), &out)
}

// Proof returns a proof.
func (c *Client) Proof(ctx context.Context, id string) (*ProofResult, error) {
	var out ProofResult
	return &out, c.do(ctx, get("proofs", id), &out)
}

// ProofKey gets, as an agent, a certificate of a proof. The same request gets the same certificate.
func (c *Client) ProofKey(ctx context.Context, proof string, in ProofKeyRequest) (*ProofCertificate, error) {
	var out ProofCertificate
	return &out, c.do(ctx, post("agent", "proofs", proof, "twin").with(in), &out)
}

// ReportProof tells, as an agent, what was seen of a proof.
func (c *Client) ReportProof(ctx context.Context, proof string, in ProofReport) error {
	return c.do(ctx, post("agent", "proofs", proof).with(in), nil)
}
