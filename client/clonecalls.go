package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"
)

// CloneFingerprint is what an administrator compares before a node gets keys: the SHA-256, in hexadecimal, over all that it asks to be
// approved. After a line that names the form come, each as a netstring (its length, a colon, its octets, a comma): name, address, age
// recipient, SubjectPublicKeyInfo of the TLS key, that of the key of its login at the database (empty where it has none), and each
// further name.
func CloneFingerprint(in CloneJoin, spki, databaseSPKI []byte) string {
	sum := sha256.New()
	sum.Write([]byte("chancery node 2\n"))
	for _, part := range append([]string{in.Name, in.Address, in.PublicKey, string(spki), string(databaseSPKI)}, in.Names...) {
		fmt.Fprintf(sum, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// PlainFingerprint is a fingerprint as CloneFingerprint writes it, from one in which people put spaces, colons, dashes or capitals.
func PlainFingerprint(text string) string {
	return strings.ToLower(strings.NewReplacer(" ", "", ":", "", "-", "", "\n", "", "\t", "").Replace(text))
}

// InviteClone makes a one-time token with which a new node may ask to join.
func (c *Client) InviteClone(ctx context.Context, in CloneInvitation) (*CloneInvited, error) {
	var out CloneInvited
	return &out, c.do(ctx, post("clones", "invitations").with(in), &out)
}

// CloneInvitations lists invitations; none shows its token.
func (c *Client) CloneInvitations(ctx context.Context) iter.Seq2[CloneInvited, error] {
	return pages[CloneInvited](ctx, c, get("clones", "invitations"))
}

// WithdrawCloneInvitation ends an invitation that was not used.
func (c *Client) WithdrawCloneInvitation(ctx context.Context, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: path("clones", "invitations", id)}, nil)
}

// JoinClone asks to join, and asks again how far that has come.
func (c *Client) JoinClone(ctx context.Context, in CloneJoin) (*CloneJoined, error) {
	var out CloneJoined
	return &out, c.do(ctx, post("clones", "join").with(in), &out)
}

// Clones lists the nodes by name.
func (c *Client) Clones(ctx context.Context) iter.Seq2[Clone, error] {
	return pages[Clone](ctx, c, get("clones"))
}

// Clone shows one node.
func (c *Client) Clone(ctx context.Context, name string) (*Clone, error) {
	var out Clone
	return &out, c.do(ctx, get("clones", name), &out)
}

// ApproveClone makes a node that waits one of the authority's, if its keys have this fingerprint.
func (c *Client) ApproveClone(ctx context.Context, name, fingerprint string) (*Clone, error) {
	var out Clone
	return &out, c.do(ctx, post("clones", name, "approve").with(CloneApproval{Fingerprint: fingerprint}), &out)
}

// LeaveClone has a node give back what it holds and end.
func (c *Client) LeaveClone(ctx context.Context, name string) (*Clone, error) {
	var out Clone
	return &out, c.do(ctx, post("clones", name, "leave"), &out)
}

// RemoveClone removes a node that is dead, or refuses one that waits. One that was seen just now is removed with force only.
func (c *Client) RemoveClone(ctx context.Context, name string, force bool) error {
	k := call{method: http.MethodDelete, path: path("clones", name)}
	if force {
		k = k.where(url.Values{"force": {"true"}})
	}
	return c.do(ctx, k, nil)
}

// RemoveCompromisedClone removes a node that fell into wrong hands, whether or not it was seen just now.
func (c *Client) RemoveCompromisedClone(ctx context.Context, name string) error {
	k := call{method: http.MethodDelete, path: path("clones", name)}
	return c.do(ctx, k.where(url.Values{"compromised": {"true"}}), nil)
}

// TurnClone gives a node a lease ("promote") or takes it away ("demote").
func (c *Client) TurnClone(ctx context.Context, name, verb string, in CloneTurn) (*Clone, error) {
	var out Clone
	return &out, c.do(ctx, post("clones", name, verb).with(in), &out)
}

// RenewCloneIdentity gets the calling node new certificates. The client shows the ones it has.
func (c *Client) RenewCloneIdentity(ctx context.Context, in CloneIdentity) (*CloneJoined, error) {
	var out CloneJoined
	return &out, c.do(ctx, post("clones", "identity").with(in), &out)
}
