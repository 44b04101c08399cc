// Package settings holds the authority's configuration: what is the same on every node, and therefore lives in the
// database. What concerns one node alone (listen addresses, database URLs, its key) is not here.
//
// The settings are one versioned row. A change names the version it was made from, so two operators cannot overwrite
// each other unseen, and it is audited with the old and the new value of each field that moved. Reading is cheap: Get
// returns a shared value that nobody may modify and that is at most a second behind the database.
package settings

import (
	"time"

	"chancery/internal/pki/cert"
)

// Settings is the authority's configuration. The JSON names are its wire form, its stored form, and the paths that
// messages and the command line use. A field that is absent from a document has the value that Defaults gives it.
type Settings struct {
	// Version counts the changes; it is not part of the document.
	Version int64 `json:"-"`

	// Authority identifies this authority among others. It is made once and never changes: audit checkpoints and
	// backups carry it, so that those of one authority are not taken for those of another.
	Authority string `json:"authority"`
	// Organization is the name shown to people, and the O of the issuers that init makes.
	Organization string `json:"organization"`
	// Address is where clients find the API: https://HOST:PORT.
	Address string `json:"address"`
	// PublicURL is the stable prefix of the CRL, OCSP and caIssuers URLs in certificates. It is plain http, because a
	// relying party that fetches a CRL over https may need that very CRL to do so, and it is never a node's own address.
	// Certificates issued while it is empty carry no such URLs.
	PublicURL string `json:"public_url"`
	// Durability says what an acknowledged act survives: local, synchronous or provider.
	Durability Durability `json:"durability"`

	CRL       CRL       `json:"crl"`
	OCSP      OCSP      `json:"ocsp"`
	Expiry    Expiry    `json:"expiry"`
	Limits    Limits    `json:"limits"`
	Retention Retention `json:"retention"`
	Backup    Backup    `json:"backup"`
}

// Durability says what an acknowledged act survives.
type Durability string

const (
	// Local means the disk of this machine: enough where there is one node.
	Local Durability = "local"
	// Synchronous means a second database as well: a node is read-only while PostgreSQL names no synchronous standby.
	Synchronous Durability = "synchronous"
	// Provider means that the operator vouches for the database's own replication.
	Provider Durability = "provider"
)

// CRL is the schedule of CRLs (RFC 5280 §5).
type CRL struct {
	// Validity is nextUpdate minus thisUpdate of a full CRL.
	Validity Duration `json:"validity"`
	// Refresh is how often a full CRL is signed again although nothing was revoked.
	Refresh Duration `json:"refresh"`
	// DeltaValidity is nextUpdate minus thisUpdate of a delta CRL or a partition.
	DeltaValidity Duration `json:"delta_validity"`
	// WholeUpTo is the number of entries up to which a revocation makes the whole CRL be signed again; above it only the
	// delta or the partition is.
	WholeUpTo int64 `json:"whole_up_to"`
	// Gather is how long a revocation may wait for others, so that a burst of them costs one signature.
	Gather Duration `json:"gather"`
	// OfflineValidity is nextUpdate minus thisUpdate of the CRL that an offline root signs.
	OfflineValidity Duration `json:"offline_validity"`
	// OfflineWarning is how long before its end doctor asks for a new CRL of an offline root.
	OfflineWarning Duration `json:"offline_warning"`
}

// OCSP is how responses are made (RFC 6960).
type OCSP struct {
	// Validity is nextUpdate minus thisUpdate of a response.
	Validity Duration `json:"validity"`
	// ResponderValidity is the life of a delegated responder's certificate. It carries id-pkix-ocsp-nocheck, so a short
	// life is the only way to end it (RFC 6960 §4.2.2.2.1).
	ResponderValidity Duration `json:"responder_validity"`
	// CacheEntries bounds the responses that a node keeps in memory.
	CacheEntries int64 `json:"cache_entries"`
}

// Expiry is what counts as close to its end.
type Expiry struct {
	// Thresholds are days before notAfter, largest first, at which a certificate is reported; 0 is the end itself.
	Thresholds []int64 `json:"thresholds"`
}

// Rate is a token bucket for each caller.
type Rate struct {
	PerSecond float64 `json:"per_second"`
	Burst     int64   `json:"burst"`
}

// Limits bound what a caller may ask for, so that a client in a loop cannot fill the store.
type Limits struct {
	// HostRate holds for hosts, OperatorRate for people and their programs.
	HostRate     Rate `json:"host_rate"`
	OperatorRate Rate `json:"operator_rate"`
	// PublicRate holds for each address that asks for CRLs, certificates and OCSP answers, and SignatureRate for the OCSP
	// answers among these that must be signed for it because none is at hand. Trusted proxies are not counted.
	PublicRate    Rate `json:"public_rate"`
	SignatureRate Rate `json:"signature_rate"`
	// Duplicates is how many certificates of one profile for the same names a host may get within DuplicateWindow, and
	// OperatorDuplicates how many another caller may.
	Duplicates         int64    `json:"duplicates"`
	OperatorDuplicates int64    `json:"operator_duplicates"`
	DuplicateWindow    Duration `json:"duplicate_window"`
	// PendingRequests is how many undecided requests one caller may have.
	PendingRequests int64 `json:"pending_requests"`
	// CSRBytes is the largest certification request (RFC 2986), in DER.
	CSRBytes int64 `json:"csr_bytes"`
	// Names is how many subject alternative names a certificate may have.
	Names int64 `json:"names"`
	// OCSPBytes is the largest OCSP request; one of 100 certificates, the most that are answered, fits into the default.
	OCSPBytes int64 `json:"ocsp_bytes"`
}

// Retention is how long rows are kept that nothing needs any more. Zero keeps them for ever.
type Retention struct {
	// Idempotency is how long a repeated call still gets the first call's answer.
	Idempotency Duration `json:"idempotency"`
	// Requests is how long decided requests are kept, Certificates how long certificates are kept after notAfter, and
	// CRLs how long past CRLs are kept after nextUpdate.
	Requests     Duration `json:"requests"`
	Certificates Duration `json:"certificates"`
	CRLs         Duration `json:"crls"`
	// Audit is how long audit events are kept. Only events behind a signed checkpoint are ever removed.
	Audit Duration `json:"audit"`
}

// Backup is what a node does by itself about backups.
type Backup struct {
	// Drill is how often a node restores a fresh backup into a scratch place, tries it, and removes it; 0 is never. It needs
	// about twice the size of the database as free space in the node's data directory.
	Drill Duration `json:"drill"`
}

const day = Duration(24 * time.Hour)

// Defaults returns the settings of a new authority; Authority is still empty.
func Defaults() Settings {
	return Settings{
		Durability: Local,
		CRL: CRL{
			Validity: 7 * day, Refresh: day, DeltaValidity: day, WholeUpTo: 10_000, Gather: Duration(200 * time.Millisecond),
			OfflineValidity: 400 * day, OfflineWarning: 60 * day,
		},
		OCSP:   OCSP{Validity: day / 2, ResponderValidity: 30 * day, CacheEntries: 100_000},
		Expiry: Expiry{Thresholds: []int64{30, 14, 7, 0}},
		Limits: Limits{
			HostRate: Rate{PerSecond: 5, Burst: 100}, OperatorRate: Rate{PerSecond: 20_000, Burst: 40_000},
			PublicRate: Rate{PerSecond: 100_000, Burst: 200_000}, SignatureRate: Rate{PerSecond: 20_000, Burst: 40_000},
			Duplicates: 10, OperatorDuplicates: 100, DuplicateWindow: Duration(time.Hour), PendingRequests: 1000,
			CSRBytes: 64 << 10, Names: 200, OCSPBytes: 16 << 10,
		},
		Retention: Retention{Idempotency: 7 * day, Requests: 400 * day, CRLs: 400 * day},
	}
}

// Duration is a time.Duration that is read and written with days, as in profiles and on the command line.
type Duration = cert.Duration

// ParseDuration reads the text form.
func ParseDuration(text string) (Duration, error) { return cert.ParseDuration(text) }
