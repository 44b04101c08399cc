package client

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// joinTokenPrefix begins the text of a join token, and says its version.
const joinTokenPrefix = "chancery-join-1."

// JoinToken is what a join token says: where to go, whom to believe there, and the secret that is worth one identity.
type JoinToken struct {
	Address     string // https://HOST:PORT
	Fingerprint []byte // Fingerprint of the root of identities
	Secret      string
}

// joinToken is a JoinToken as it is encoded.
type joinToken struct {
	Address     string `json:"a"`
	Fingerprint string `json:"f"`
	Secret      string `json:"s"`
}

// Fingerprint is the SHA-256 of a certificate's DER.
func Fingerprint(der []byte) []byte {
	sum := sha256.Sum256(der)
	return sum[:]
}

// String is the text of the token.
func (t *JoinToken) String() string {
	text, err := json.Marshal(joinToken{Address: t.Address, Fingerprint: hex.EncodeToString(t.Fingerprint), Secret: t.Secret})
	if err != nil { // strings always encode
		panic(err)
	}
	return joinTokenPrefix + base64.RawURLEncoding.EncodeToString(text)
}

// CloneToken is a token with which a new node asks to join. It says what a join token says, and neither is taken for the other.
type CloneToken JoinToken

// cloneTokenPrefix begins the text of a node's token, and says its version.
const cloneTokenPrefix = "chancery-clone-1."

// String is the text of the token.
func (t *CloneToken) String() string {
	return cloneTokenPrefix + strings.TrimPrefix((*JoinToken)(t).String(), joinTokenPrefix)
}

// ParseCloneToken reads the text of a node's token. No error repeats any of it.
func ParseCloneToken(text string) (*CloneToken, error) {
	if strings.HasPrefix(text, joinTokenPrefix) {
		return nil, errors.New("this is the join token of a host; a node's is made by chancery clone invite")
	}
	rest, ok := strings.CutPrefix(text, cloneTokenPrefix)
	if !ok {
		return nil, fmt.Errorf("a node's token begins with %s, and this text does not", cloneTokenPrefix)
	}
	t, err := ParseJoinToken(joinTokenPrefix + rest)
	return (*CloneToken)(t), err
}

// ParseJoinToken reads the text of a token. No error repeats any of it.
func ParseJoinToken(text string) (*JoinToken, error) {
	encoded, ok := strings.CutPrefix(text, joinTokenPrefix)
	if !ok {
		return nil, fmt.Errorf("a join token begins with %s, and this text does not", joinTokenPrefix)
	}
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return nil, errors.New("the join token is cut short or changed: what follows its prefix is no base64url")
	}
	var wire joinToken
	if err := json.Unmarshal(decoded, &wire); err != nil {
		return nil, errors.New("the join token is cut short or changed: it cannot be decoded")
	}
	t := &JoinToken{Address: wire.Address, Secret: wire.Secret}
	if t.Fingerprint, err = hex.DecodeString(wire.Fingerprint); err != nil || len(t.Fingerprint) != sha256.Size {
		return nil, errors.New("the join token names no SHA-256 of a root")
	}
	if u, err := url.Parse(t.Address); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the join token names no address https://HOST:PORT")
	}
	if t.Secret == "" {
		return nil, errors.New("the join token holds no secret")
	}
	return t, nil
}

// JoinRoots asks a node that is not trusted yet for the roots of identities, and returns (PEM) the one that has the
// fingerprint. Nothing is sent but the question, and nothing that is answered counts but that root.
func JoinRoots(ctx context.Context, address string, fingerprint []byte) (string, error) {
	c, err := New(Options{Address: address, Roots: x509.NewCertPool()})
	if err != nil {
		return "", err
	}
	defer c.Close()
	// The answer proves itself by its fingerprint, so it does not matter who gives it.
	c.http.Transport.(*connections).now.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	k := get("join", "roots")
	k.accept = "application/x-pem-file"
	var text []byte
	if err := c.do(ctx, k, &text); err != nil {
		return "", err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if subtle.ConstantTimeCompare(Fingerprint(block.Bytes), fingerprint) != 1 {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", fmt.Errorf("read the root of identities: %w", err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})), nil
	}
	return "", fmt.Errorf("%s does not show the root of identities that the join token names: it is not that authority, or something stands between",
		c.Address())
}

// Join redeems a join token. Redeemed again with the same key, it gives the same identity.
func (c *Client) Join(ctx context.Context, in JoinRequest) (*Joined, error) {
	var out Joined
	return &out, c.do(ctx, post("join").with(in), &out)
}

// RenewIdentity gives the calling agent a new identity for a new key.
func (c *Client) RenewIdentity(ctx context.Context, in RenewIdentityRequest) (*Joined, error) {
	var out Joined
	return &out, c.do(ctx, post("agent", "identity").with(in), &out)
}

// longestPoll is how long one call waits: a node that does not begin to answer for two minutes is taken for dead.
const longestPoll = 100 * time.Second

// Desired is what the calling host shall hold; nil where that is still what has the etag. The node waits up to wait for a
// change before it says so; a longer wait than one call's is made of several.
func (c *Client) Desired(ctx context.Context, etag string, wait time.Duration) (*Desired, error) {
	for ; wait > longestPoll; wait -= longestPoll {
		begun := time.Now()
		desired, err := c.desired(ctx, etag, longestPoll)
		// A node that ends answers at once, and the next one is asked by the caller.
		if desired != nil || err != nil || time.Since(begun) < longestPoll/2 {
			return desired, err
		}
	}
	return c.desired(ctx, etag, wait)
}

func (c *Client) desired(ctx context.Context, etag string, wait time.Duration) (*Desired, error) {
	k := get("agent", "desired")
	if etag != "" {
		k.header = http.Header{"If-None-Match": {`"` + strings.Trim(etag, `"`) + `"`}}
	}
	if wait > 0 {
		k.query = values("wait", strconv.Itoa(int(wait/time.Second)))
	}
	var out Desired
	err := c.do(ctx, k, &out)
	if p, ok := errors.AsType[*Problem](err); ok && p.Status == http.StatusNotModified {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// Report tells the authority what the agent saw.
func (c *Client) Report(ctx context.Context, in Report) error {
	return c.do(ctx, post("agent", "report").with(in), nil)
}

// TrustCRL writes the newest CRL of a trust anchor that is none of the authority's to w, in DER. The calling host must be of
// a pool that trusts it.
func (c *Client) TrustCRL(ctx context.Context, w io.Writer, entry string) error {
	k := get("agent", "trust", entry, "crl")
	k.accept = "application/pkix-crl"
	return c.stream(ctx, k, w)
}
