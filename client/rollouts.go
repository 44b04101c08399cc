package client

import (
	"context"
	"iter"
	"time"
)

// The kinds of a rollout.
const (
	RolloutReissue    = "reissue"       // re-key all leaves under the present issuer
	RolloutIssuer     = "rotate-issuer" // a new issuer below the same root
	RolloutRoot       = "rotate-root"   // a new root and a new issuer
	RolloutIdentities = "identities"    // new identities for the agents
	RolloutAlgorithm  = "algorithm"     // another key algorithm for the leaves
	RolloutRotateAway = "rotate-away"   // from a trust anchor that was brought in, to the pool's own root
)

// The states of a rollout.
const (
	RolloutWaiting = "waiting" // for what an offline root is to sign
	RolloutRunning = "running"
	RolloutPaused  = "paused"
	RolloutDone    = "done"
	RolloutUndone  = "undone"
	RolloutAborted = "aborted"
)

// The stages of a rollout, in their order. Undoing goes through them again, with the old and the new in each other's place;
// after a compromise leaving comes first.
const (
	StagePrepare = "prepare" // keys, certificates and first CRLs are made
	StageTrust   = "trust"   // all hosts are given the new trust beside the old
	StageRekey   = "rekey"   // hosts get certificates under the new issuer
	StageLeave   = "leave"   // the old trust is taken away
)

// StartRolloutRequest starts a rollout, or says what it would do.
type StartRolloutRequest struct {
	Kind string `json:"kind" enum:"reissue,rotate-issuer,rotate-root,identities,algorithm,rotate-away"`
	Pool string `json:"pool,omitempty" maxLength:"56" doc:"default where absent"`
	// Select narrows a re-issue or a change of algorithm to hosts: NAME, or label:KEY=VALUE.
	Select      []string `json:"select,omitempty" maxItems:"1000"`
	Waves       []string `json:"waves,omitempty" maxItems:"20" doc:"5%, host:NAME, label:KEY=VALUE or 100%, one after the other; one canary, 10%, 50%, 100% where absent"`
	Except      []string `json:"except,omitempty" maxItems:"1000" doc:"hosts, or serial numbers of certificates that nobody replaces, that are not waited for"`
	Because     string   `json:"because,omitempty" maxLength:"500" doc:"why; needed with except and compromised"`
	Algorithm   string   `json:"algorithm,omitempty" maxLength:"32" doc:"of the new root and issuer, or for kind algorithm of the leaves"`
	Key         string   `json:"key,omitempty" maxLength:"2048" doc:"the new issuer's key: the PKCS #11 URI (RFC 7512) of one in a token that the node reaches, or software; needed where the issuer before has its key in a token"`
	Validity    string   `json:"validity,omitempty" maxLength:"32" doc:"of a new root"`
	Online      bool     `json:"online,omitempty" doc:"the new root's key is made and kept in the authority"`
	From        string   `json:"from,omitempty" maxLength:"64" doc:"rotate-away: the trust entry, or its fingerprint"`
	Compromised bool     `json:"compromised,omitempty" doc:"drop the old trust first, at once and everywhere"`
	NoNodeProbe bool     `json:"no_node_probe,omitempty" doc:"do not look at the hosts' ports from the node"`
	DryRun      bool     `json:"dry_run,omitempty"`
}

// Rollout is a staged change over the hosts of a pool.
type Rollout struct {
	ID          string        `json:"id" doc:"a small number"`
	Kind        string        `json:"kind"`
	Pool        string        `json:"pool"`
	State       string        `json:"state" enum:"waiting,running,paused,done,undone,aborted"`
	Backwards   bool          `json:"backwards,omitempty" doc:"it is being undone"`
	Compromised bool          `json:"compromised,omitempty"`
	Stage       string        `json:"stage" enum:"prepare,trust,rekey,leave"`
	Wave        int           `json:"wave" doc:"counted from 1"`
	Waves       []RolloutWave `json:"waves"`
	Message     string        `json:"message,omitempty" doc:"why it is paused, or what it waits for"`
	Holding     []RolloutHost `json:"holding,omitempty" doc:"hosts and certificates that hold the present wave, at most 100"`
	Excepted    []RolloutHost `json:"excepted,omitempty"`
	Plan        RolloutPlan   `json:"plan"`
	CSR         string        `json:"csr,omitempty" doc:"PEM: the request of the new issuer, which waits for a root elsewhere"`
	Root        string        `json:"root,omitempty" doc:"the name of the root that is to sign csr"`
	RootSubject string        `json:"root_subject,omitempty" doc:"RFC 4514: its subject, where it is a new one"`
	Actor       string        `json:"actor"`
	CreatedAt   time.Time     `json:"created_at"`
	ChangedAt   time.Time     `json:"changed_at"`
	EndedAt     time.Time     `json:"ended_at,omitzero"`
}

// RolloutWave is some of the hosts.
type RolloutWave struct {
	Text  string `json:"text"`
	Hosts int    `json:"hosts"`
	Done  int    `json:"done" doc:"of the present stage"`
}

// RolloutHost is a host, or a certificate that no host holds, and what is to be said of it.
type RolloutHost struct {
	Host    string    `json:"host,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	Message string    `json:"message"`
	SeenAt  time.Time `json:"seen_at,omitzero"`
}

// RolloutPlan is what a rollout does, said beforehand.
type RolloutPlan struct {
	Hosts      int             `json:"hosts"`
	Old        string          `json:"old,omitempty" doc:"the issuer or anchor that is left"`
	New        string          `json:"new,omitempty"`
	Files      int             `json:"files" doc:"that are written, over all hosts and stages"`
	Reloads    int             `json:"reloads"`
	Interrupts int             `json:"interrupts" doc:"reloads that lose connections"`
	Seconds    int64           `json:"seconds" doc:"an estimate, while nobody holds it"`
	Actions    []RolloutAction `json:"actions,omitempty" doc:"by host, at most 1,000"`
	Would      []RolloutHost   `json:"would_hold,omitempty" doc:"who would hold it as things are"`
	Breaks     []RolloutHost   `json:"breaks,omitempty" doc:"with compromised: who is refused by its peers until it is re-keyed"`
	Notes      []string        `json:"notes,omitempty"`
}

// RolloutAction is what a rollout does at one placement.
type RolloutAction struct {
	Host       string   `json:"host"`
	Placement  string   `json:"placement"`
	Wave       int      `json:"wave"`
	Files      []string `json:"files,omitempty"`
	Reload     string   `json:"reload,omitempty"`
	Interrupts bool     `json:"interrupts,omitempty"`
}

// ResumeRolloutRequest goes on, and may leave out hosts that hold it.
type ResumeRolloutRequest struct {
	NoNodeProbe bool     `json:"no_node_probe,omitempty" doc:"from now on do not look at the hosts' ports from the node, which sees others there; needs because"`
	Except      []string `json:"except,omitempty" maxItems:"1000"`
	Because     string   `json:"because,omitempty" maxLength:"500"`
}

// CompleteRolloutRequest brings in what an offline root signed.
type CompleteRolloutRequest struct {
	Root   string `json:"root,omitempty" maxLength:"65536" doc:"PEM: a new root's own certificate"`
	Issuer string `json:"issuer" maxLength:"65536" doc:"PEM"`
	CRL    string `json:"crl,omitempty" maxLength:"1048576" doc:"PEM: a new root's first CRL"`
}

// StartRollout starts a rollout, or with DryRun says what it would do.
func (c *Client) StartRollout(ctx context.Context, in StartRolloutRequest) (*Rollout, error) {
	var out Rollout
	return &out, c.do(ctx, post("rollouts").with(in), &out)
}

// Rollout shows one.
func (c *Client) Rollout(ctx context.Context, id string) (*Rollout, error) {
	var out Rollout
	return &out, c.do(ctx, get("rollouts", id), &out)
}

// Rollouts lists rollouts, the newest first, of all pools or of one.
func (c *Client) Rollouts(ctx context.Context, pool string) iter.Seq2[Rollout, error] {
	return pages[Rollout](ctx, c, get("rollouts").where(values("pool", pool)))
}

// PauseRollout stops a rollout where it is.
func (c *Client) PauseRollout(ctx context.Context, id string) (*Rollout, error) {
	return c.driveRollout(ctx, id, "pause", Nothing{})
}

// ResumeRollout goes on with one, and may leave out hosts and certificates that hold it.
func (c *Client) ResumeRollout(ctx context.Context, id string, in ResumeRolloutRequest) (*Rollout, error) {
	return c.driveRollout(ctx, id, "resume", in)
}

// UndoRollout goes back through the stages of one.
func (c *Client) UndoRollout(ctx context.Context, id string) (*Rollout, error) {
	return c.driveRollout(ctx, id, "undo", Nothing{})
}

// AbortRollout ends one where it is; the old and the new stay trusted.
func (c *Client) AbortRollout(ctx context.Context, id string) (*Rollout, error) {
	return c.driveRollout(ctx, id, "abort", Nothing{})
}

// CompleteRollout brings in what an offline root signed for one.
func (c *Client) CompleteRollout(ctx context.Context, id string, in CompleteRolloutRequest) (*Rollout, error) {
	return c.driveRollout(ctx, id, "complete", in)
}

func (c *Client) driveRollout(ctx context.Context, id, verb string, in any) (*Rollout, error) {
	var out Rollout
	return &out, c.do(ctx, post("rollouts", id, verb).with(in), &out)
}
