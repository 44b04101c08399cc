package revocation

import (
	"math/big"

	"chancery/internal/authority/ca"
)

// A node reads at the server beside it, and where that is behind or away, at the primary. Once the primary is away too, only the server beside
// it is left, and may be older than what this node has told already: a certificate that was said to be revoked would be good again. So
// what is seen elsewhere is remembered until the server beside the node has shown it, and a status from there that may not know of a change
// is not said.

// mostUnseen is how many certificates are remembered; of an issuer with more, nothing is said from a state that lacks any of its changes.
const mostUnseen = 20_000

// note remembers a change that was not seen at the server beside the node. c.mu is held.
func (c *cache) note(key certificateKey, change int64) {
	if _, ok := c.unseen[key]; !ok && len(c.unseen) >= mostUnseen {
		c.least[key.issuer] = max(change, c.least[key.issuer])
		return
	}
	c.unseen[key] = max(change, c.unseen[key])
}

// told remembers of a certificate that is said to be revoked by a state of elsewhere up to which change that knew. Follow may not have
// looked there yet, and the primary may be away when it does.
func (c *cache) told(key certificateKey, change, history int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.beside && history == c.history && change > c.least[key.issuer] {
		c.note(key, change)
	}
}

// shown forgets what the server beside the node has shown: the newest change of each issuer, by ID. It does not go back behind that.
func (c *cache) shown(last map[string]int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for issuer, change := range last {
		c.least[issuer] = max(change, c.least[issuer])
	}
	for key, change := range c.unseen {
		if change <= c.least[key.issuer] {
			delete(c.unseen, key)
		}
	}
}

// vouch says whether a status that was read may be said: no change of the certificate that this process has seen is missing in it. Then it
// is as good as one that knows of all changes that were seen. Without a server beside the node nothing is remembered, and nothing is lacking.
func (c *cache) vouch(key certificateKey, status ca.Status) (ca.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.beside {
		return status, true
	}
	if status.Change < c.least[key.issuer] || status.Change < c.unseen[key] {
		return status, false
	}
	status.Change = max(status.Change, c.dropped[key.issuer])
	return status, true
}

// newer returns what is kept of a certificate where that knows of later changes than a state with which it is compared.
func (c *cache) newer(issuer string, serial *big.Int, change int64) (ca.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.find(keyOf(issuer, serial))
	if k == nil || max(k.status.Change, c.dropped[issuer]) <= change {
		return ca.Status{}, false
	}
	known := k.status
	known.Change = max(known.Change, c.dropped[issuer])
	return known, true
}
