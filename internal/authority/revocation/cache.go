package revocation

import (
	"bytes"
	"container/list"
	"crypto"
	"math/big"
	"sync"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/ocsp"
)

// cache keeps the statuses of certificates that were asked about, and the answers about one of them that were signed
// without a nonce. It is bounded, and what was used longest ago goes first.
//
// A status is true while nothing changed since it was read. So it carries the number of the last change that it knows of,
// and is not taken in when a later change of its issuer was dropped already: it may be about that one. Changes are numbered within one
// history of the database: when another begins, all is forgotten.
type cache struct {
	mu       sync.Mutex
	limit    int
	byKey    map[certificateKey]*list.Element
	recent   *list.List       // of *known, the latest used first
	dropped  map[string]int64 // by issuer: up to which change statuses were dropped
	followed time.Time        // all that changed before was dropped
	history  int64            // of the database, of which all that is kept was read

	// What the server beside the node may lack, of what this process has seen elsewhere: see vouch.
	beside bool                     // there is one
	unseen map[certificateKey]int64 // certificates with their newest change
	least  map[string]int64         // by issuer: the change that a state must know of, since those up to there are in no list
}

// certificateKey names a certificate.
type certificateKey struct {
	issuer string // ID
	serial string
}

// known is a certificate with its status, and at most one answer for each hash that it can be asked about by.
type known struct {
	key     certificateKey
	status  ca.Status
	readAt  time.Time
	answers []answer
}

type answer struct {
	hash     crypto.Hash
	certID   []byte // as it was echoed; one that is written differently is answered afresh
	response Response
	of       period // in which it was signed; in the next one it is signed anew
}

// followedRecently is how long ago changes may have been looked for at most, for a kept status to be signed again.
const followedRecently = 2 * time.Second

func newCache() *cache {
	return &cache{limit: 10_000, byKey: make(map[certificateKey]*list.Element), recent: list.New(),
		dropped: make(map[string]int64), unseen: make(map[certificateKey]int64), least: make(map[string]int64)}
}

func keyOf(issuer string, serial *big.Int) certificateKey {
	return certificateKey{issuer, string(serial.Bytes())}
}

// find returns what is known of a certificate, nil where that is nothing. c.mu is held.
func (c *cache) find(key certificateKey) *known {
	e, ok := c.byKey[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*known)
}

// answer returns a signed answer to a plain request about one certificate, whose status takes a change into account: that of a
// period, or of any (nil).
func (c *cache) answer(key certificateKey, id *ocsp.CertID, of *period, now time.Time, change int64) (Response, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.find(key); k != nil && k.status.Change >= change {
		for _, a := range k.answers {
			if a.hash == id.Hash && (of == nil || a.of == *of) && now.Before(a.response.NextUpdate) && bytes.Equal(a.certID, id.Raw) {
				return a.response, true
			}
		}
	}
	return Response{}, false
}

// status returns a status, and the time at which it is known to be so: when it was read, or when changes were last looked
// for. Without a recent look there is no such time, and it is read again.
func (c *cache) status(key certificateKey, now time.Time) (status ca.Status, asOf time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.find(key)
	if k == nil || now.Sub(c.followed) > followedRecently || now.Before(c.followed) {
		return ca.Status{}, time.Time{}, false
	}
	asOf = k.readAt
	if c.followed.After(asOf) {
		asOf = c.followed
	}
	return k.status, asOf, true
}

// last returns a status for when nothing can be read, and the time at which it was known to be so.
func (c *cache) last(key certificateKey) (status ca.Status, asOf time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.find(key)
	if k == nil {
		return ca.Status{}, time.Time{}, false
	}
	asOf = k.readAt
	if c.followed.After(asOf) {
		asOf = c.followed
	}
	return k.status, asOf, true
}

// begin forgets all where another history of the database has begun, and reports whether that is so.
func (c *cache) begin(history int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if history == c.history {
		return false
	}
	c.history, c.followed = history, time.Time{}
	clear(c.dropped)
	clear(c.byKey)
	clear(c.unseen)
	clear(c.least)
	c.recent.Init()
	return true
}

// keep takes a status in that was read at a time in a history, and the answer about it where one was signed.
func (c *cache) keep(key certificateKey, status ca.Status, readAt time.Time, history int64, signed *answer, limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if status.Change < c.dropped[key.issuer] || history != c.history {
		return
	}
	if limit > 0 {
		c.limit = limit
	}
	k := c.find(key)
	if k == nil {
		k = &known{key: key}
		c.byKey[key] = c.recent.PushFront(k)
	}
	if status.Change < k.status.Change {
		return // somebody read a newer one meanwhile, and nobody may hear the older one after it
	}
	if !sameStatus(status, k.status) {
		k.answers = nil
	}
	k.status, k.readAt = status, readAt
	if signed != nil {
		k.answers = append(without(k.answers, signed.hash), *signed)
	}
	for c.recent.Len() > c.limit {
		oldest := c.recent.Back()
		delete(c.byKey, oldest.Value.(*known).key)
		c.recent.Remove(oldest)
	}
}

func sameStatus(a, b ca.Status) bool {
	return a.Issued == b.Issued && a.State == b.State && a.Reason == b.Reason && a.RevokedAt.Equal(b.RevokedAt)
}

func without(all []answer, hash crypto.Hash) []answer {
	kept := all[:0]
	for _, a := range all {
		if a.hash != hash {
			kept = append(kept, a)
		}
	}
	return kept
}

// drop forgets certificates of an issuer that changed, and refuses from now on what was read before change. elsewhere says that this
// was not seen at the server beside the node.
func (c *cache) drop(issuer string, changed []changedSerial, change int64, elsewhere bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped[issuer] = max(change, c.dropped[issuer])
	for _, one := range changed {
		key := keyOf(issuer, one.serial)
		if e, ok := c.byKey[key]; ok {
			delete(c.byKey, key)
			c.recent.Remove(e)
		}
		if elsewhere {
			c.note(key, one.change)
		}
	}
}

// dropAll forgets everything, where it is not known what changed up to change but the newest followRecent.
func (c *cache) dropAll(issuer string, recent []changedSerial, change int64, elsewhere bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped[issuer] = max(change, c.dropped[issuer])
	if elsewhere {
		c.least[issuer] = max(change-followRecent, c.least[issuer])
		for _, one := range recent {
			c.note(keyOf(issuer, one.serial), one.change)
		}
	}
	clear(c.byKey)
	c.recent.Init()
}

// hasLooked reports whether changes were looked for in this history.
func (c *cache) hasLooked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.followed.IsZero()
}

// looked notes that all that changed before a time was dropped. Statuses that are kept learn of it: they know of every
// change that was dropped.
func (c *cache) looked(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.followed) {
		c.followed = at
	}
}

// upTo is the change of an issuer up to which kept statuses are true.
func (c *cache) upTo(issuer string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped[issuer]
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.byKey)
	c.recent.Init()
}

func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len()
}
