package client

import (
	"context"
	"iter"
	"strconv"
	"time"
)

// The kinds of a trust entry.
const (
	TrustAnchor       = "anchor" // a root that certification paths end at
	TrustIntermediate = "issuer" // an issuer below a root, for consumers that do not take it from the peer
	TrustPinned       = "pinned" // one certificate, trusted as it is
)

// TrustGeneral is the purpose of what consumers trust where their recipe names none.
const TrustGeneral = "general"

// TrustVersion writes the number of a version of a pool's trust for people. Numbers follow the clock, in milliseconds, so that they
// are written as when the version was made.
func TrustVersion(n int64) string {
	const clock = 1_000_000_000_000 // in 2001, before any was
	if n < clock {
		return "version " + strconv.FormatInt(n, 10)
	}
	return "version " + time.UnixMilli(n).UTC().Format("2006-01-02T15:04:05.000Z")
}

// TrustEntry is a certificate that the hosts of a pool trust.
type TrustEntry struct {
	ID          string    `json:"id"`
	Pool        string    `json:"pool"`
	Purpose     string    `json:"purpose"`
	Kind        string    `json:"kind" enum:"anchor,issuer,pinned"`
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256, in hexadecimal"`
	Issuer      string    `json:"issuer,omitempty" doc:"the name of the issuer of ours that it is"`
	Host        string    `json:"host,omitempty" doc:"whose certificate it is, where an agent announced it"`
	State       string    `json:"state" enum:"trusted,staged,leaving,announced" doc:"staged: not yet at all hosts; leaving: not any more at all"`
	NotAfter    time.Time `json:"not_after"`
	CRLNumber   string    `json:"crl_number,omitempty"`
	NextUpdate  time.Time `json:"next_update,omitzero" doc:"of its CRL"`
	Comment     string    `json:"comment,omitempty"`
	PEM         string    `json:"pem"`
	CreatedAt   time.Time `json:"created_at"`
}

// AddTrustRequest adds certificates to what the hosts of a pool trust.
type AddTrustRequest struct {
	Purpose string `json:"purpose,omitempty" maxLength:"32" doc:"general where absent"`
	Pinned  bool   `json:"pinned,omitempty" doc:"trust the certificates as they are, and nothing below them"`
	PEM     string `json:"pem" minLength:"1" maxLength:"1048576"`
	Comment string `json:"comment,omitempty" maxLength:"200"`
}

// DropTrustRequest takes an entry out. Where hosts still present certificates under it, it is refused, and they are named,
// unless Because says why that is meant.
type DropTrustRequest struct {
	Because string `json:"because,omitempty" maxLength:"500"`
}

// Trust lists what the hosts of a pool trust, by purpose; an empty purpose lists all.
func (c *Client) Trust(ctx context.Context, pool, purpose string) iter.Seq2[TrustEntry, error] {
	return pages[TrustEntry](ctx, c, get("pools", pool, "trust").where(values("purpose", purpose)))
}

// AddTrust adds certificates to what the hosts of a pool trust.
func (c *Client) AddTrust(ctx context.Context, pool string, in AddTrustRequest) ([]TrustEntry, error) {
	var out []TrustEntry
	err := c.do(ctx, post("pools", pool, "trust").with(in), &out)
	return out, err
}

// DropTrust takes an entry, by its ID or fingerprint, out of what the hosts of a pool trust.
func (c *Client) DropTrust(ctx context.Context, pool, entry string, in DropTrustRequest) error {
	return c.do(ctx, post("pools", pool, "trust", entry, "drop").with(in), nil)
}

// AddTrustCRL brings in a CRL of a trust anchor that is none of the authority's.
func (c *Client) AddTrustCRL(ctx context.Context, pool, entry string, in UploadCRLRequest) (*TrustEntry, error) {
	var out TrustEntry
	return &out, c.do(ctx, post("pools", pool, "trust", entry, "crl").with(in), &out)
}
