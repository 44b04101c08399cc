package client

import "time"

// The states of a node.
const (
	CloneWaiting = "waiting" // it has shown its keys, and no administrator has approved it yet
	CloneActive  = "active"  // approved; Ready says whether it answers
	CloneLeaving = "leaving" // it gives its leases back and ends
	CloneGone    = "gone"    // it left or was removed; its wraps are deleted and its identity is revoked
)

// CloneInvitation asks for a one-time token with which a new node may ask to join.
type CloneInvitation struct {
	Subsystems []string `json:"subsystems,omitempty" maxItems:"4" doc:"what it shall run, of ca and ocsp; both where absent"`
	Life       string   `json:"life,omitempty" maxLength:"32" doc:"how long the token is good; 1h where absent, at most 7d"`
}

// CloneInvited is an invitation. Token is shown once and stored nowhere.
type CloneInvited struct {
	ID         string    `json:"id"`
	Token      string    `json:"token,omitempty"`
	Subsystems []string  `json:"subsystems"`
	By         string    `json:"by"`
	Expires    time.Time `json:"expires"`
	UsedBy     string    `json:"used_by,omitempty" doc:"the node that used it"`
}

// CloneJoin is what a new node says of itself. It is repeated, the same, until the answer's state is no longer waiting.
type CloneJoin struct {
	Secret      string    `json:"secret" maxLength:"256"`
	Name        string    `json:"name" maxLength:"63" doc:"of the node; it never changes"`
	Address     string    `json:"address" maxLength:"300" doc:"where clients reach its API, https://HOST:PORT"`
	PublicKey   string    `json:"public_key" maxLength:"200" doc:"age1…, to which keys are wrapped"`
	CSR         string    `json:"csr" maxLength:"20000" doc:"PEM; for the key of its TLS identity"`
	DatabaseCSR string    `json:"database_csr,omitempty" maxLength:"20000" doc:"PEM; for the key of its login at the database"`
	Names       []string  `json:"names,omitempty" maxItems:"50" doc:"further names of its TLS certificate, dns:… and ip:…"`
	Release     string    `json:"release" maxLength:"100"`
	Schema      int64     `json:"schema" doc:"the newest migration that its program has"`
	Time        time.Time `json:"time" doc:"its clock, so that one that is wrong is refused before anything is made"`
}

// CloneJoined is how far a node that joins has come. All but State and Fingerprint are there once it is approved.
type CloneJoined struct {
	State       string   `json:"state" enum:"waiting,active,gone"`
	Fingerprint string   `json:"fingerprint" doc:"what an administrator compares"`
	Subsystems  []string `json:"subsystems"`
	Certificate []string `json:"certificate,omitempty" doc:"PEM; its TLS identity, and what is above it below the root"`
	AuditKeys   string   `json:"audit_keys,omitempty" doc:"PEM; the public keys of checkpoints"`

	DatabaseRole        string   `json:"database_role,omitempty" doc:"its own login at the database; empty where the engine has none"`
	DatabaseCertificate []string `json:"database_certificate,omitempty" doc:"PEM; for that login, from the pool database"`
	DatabaseRoots       string   `json:"database_roots,omitempty" doc:"PEM; the roots of the pool database, which certify the servers"`
	RecipientList       int64    `json:"recipient_list,omitempty" doc:"the version of the list of key recipients, below which the node takes none"`
}

// CloneIdentity is what a node asks new certificates for.
type CloneIdentity struct {
	CSR         string   `json:"csr,omitempty" maxLength:"20000" doc:"PEM; for the next key of its TLS identity, where that is renewed"`
	DatabaseCSR string   `json:"database_csr,omitempty" maxLength:"20000" doc:"PEM; for the next key of its login at the database, where that is renewed"`
	Names       []string `json:"names,omitempty" maxItems:"50" doc:"further names of its TLS certificate, dns:… and ip:…; those it joined with where absent"`
}

// Clone is a node as all nodes see it.
type Clone struct {
	Name            string        `json:"name"`
	State           string        `json:"state"`
	Subsystems      []string      `json:"subsystems"`
	Address         string        `json:"address"`
	Names           []string      `json:"names,omitempty" doc:"further names that it asked for, of its TLS certificate"`
	Fingerprint     string        `json:"fingerprint"`
	Release         string        `json:"release"`
	Schema          int64         `json:"schema"`
	Self            bool          `json:"self,omitempty" doc:"the node that was asked"`
	Ready           bool          `json:"ready"`
	NotReady        []string      `json:"not_ready,omitempty" doc:"why it is not"`
	Created         time.Time     `json:"created"`
	Approved        time.Time     `json:"approved,omitzero"`
	Seen            time.Time     `json:"seen,omitzero" doc:"when it last reported"`
	CertificateEnds time.Time     `json:"certificate_ends,omitzero" doc:"of its TLS identity"`
	Leases          []CloneLease  `json:"leases,omitempty"`
	Database        CloneDatabase `json:"database"`
	Keys            CloneKeys     `json:"keys"`
	Issuers         CloneIssuers  `json:"issuers" doc:"whose certificates' status it answers"`
	Switches        []CloneSwitch `json:"switches,omitempty" doc:"what each switch of RHCS section 9.5 would be on this node"`
	Differences     []string      `json:"differences,omitempty" doc:"in what it differs from the other nodes"`
	Unreached       []string      `json:"unreached,omitempty" doc:"its listeners that only its own machine reaches, though its address is elsewhere"`
}

// CloneLease is singleton work that a node has, or is to have.
type CloneLease struct {
	Name    string    `json:"name" doc:"crl signs CRLs and renews OCSP responders; audit signs checkpoints; rollout drives rollouts"`
	Holder  string    `json:"holder"`
	Epoch   int64     `json:"epoch"`
	Expires time.Time `json:"expires"`
	Pinned  string    `json:"pinned,omitempty" doc:"the only node that takes it, even while that one is away"`
}

// CloneDatabase is how a node reaches the database.
type CloneDatabase struct {
	Engine     string    `json:"engine"`
	Role       string    `json:"role,omitempty"`
	LoginEnds  time.Time `json:"login_ends,omitzero" doc:"when the certificate of its own login ends; absent where it has none"`
	LocalReads bool      `json:"local_reads" doc:"it reads from a database of its own (database_read)"`
	Age        float64   `json:"age" doc:"seconds; how old what it reads may be"`
	Lag        *float64  `json:"lag,omitempty" doc:"seconds; since when the standby that it reads at has not had all that the primary has, as it saw both last; absent where it reads at none, and while the two are not known"`
	LagOctets  int64     `json:"lag_octets,omitempty" doc:"octets of the primary's log that the standby had not replayed then"`
	Primary    string    `json:"primary,omitempty" doc:"reached, or why not"`
}

// CloneKeys says which of the keys that a node is entitled to it can open.
type CloneKeys struct {
	Entitled int `json:"entitled"`
	Open     int `json:"open"`
}

// CloneIssuers says for which issuers a node answers OCSP requests. Nodes that have one digest have one list.
type CloneIssuers struct {
	Count  int    `json:"count"`
	Digest string `json:"digest,omitempty" doc:"SHA-256 over the SHA-256 of each issuer's certificate, sorted"`
}

// CloneSwitch is a switch that RHCS has in CS.cfg, as it stands on a node here.
type CloneSwitch struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Meaning string `json:"meaning"`
}

// CloneApproval approves a node whose keys have this fingerprint.
type CloneApproval struct {
	Fingerprint string `json:"fingerprint" maxLength:"200"`
}

// CloneTurn gives a lease to a node (promote), or away from it (demote).
type CloneTurn struct {
	Lease string `json:"lease,omitempty" enum:"crl,audit,rollout" doc:"crl where absent"`
	Pin   bool   `json:"pin,omitempty" doc:"no other node takes it from then on, even when this one is away"`
}
