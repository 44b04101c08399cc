package revocation

import (
	"bytes"
	"container/list"
	"crypto"
	"math/big"
	"sync"
	"time"

	"chancery/internal/pki/ocsp"
)

// cache keeps signed answers about one certificate without nonce. It is bounded, and the answer used longest ago goes first.
//
// An answer is true while nothing changed since its status was read. So it carries the number of the last change that its
// status knew of, and is not taken in when a later change of the issuer was dropped already: it may be about that one.
type cache struct {
	mu      sync.Mutex
	limit   int
	answers map[answerKey]*list.Element
	recent  *list.List       // of *answer, the latest used first
	dropped map[string]int64 // by issuer: up to which change answers were dropped
}

// answerKey names a certificate as a request does. The hash is in it because the answer echoes the CertID.
type answerKey struct {
	issuer string // ID
	hash   crypto.Hash
	serial string
}

type answer struct {
	key      answerKey
	certID   []byte // as it was echoed; one that is written differently is answered afresh
	response Response
	renew    time.Time // when it is made anew, well before it ends
}

func newCache() *cache {
	return &cache{limit: 10_000, answers: make(map[answerKey]*list.Element), recent: list.New(), dropped: make(map[string]int64)}
}

func keyOf(issuer string, id *ocsp.CertID) answerKey {
	return answerKey{issuer, id.Hash, string(id.Serial.Bytes())}
}

func (c *cache) get(key answerKey, certID []byte, now time.Time) (Response, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.answers[key]
	if !ok {
		return Response{}, false
	}
	a := e.Value.(*answer)
	if !now.Before(a.renew) || !bytes.Equal(a.certID, certID) {
		return Response{}, false
	}
	c.recent.MoveToFront(e)
	return a.response, true
}

// put takes an answer in, whose status was read when change was the last one of its issuer.
func (c *cache) put(key answerKey, certID []byte, r Response, change int64, limit int) {
	a := &answer{key: key, certID: bytes.Clone(certID), response: r, renew: r.ThisUpdate.Add(r.NextUpdate.Sub(r.ThisUpdate) / 2)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if change < c.dropped[key.issuer] {
		return
	}
	if limit > 0 {
		c.limit = limit
	}
	if e, ok := c.answers[key]; ok {
		e.Value = a
		c.recent.MoveToFront(e)
	} else {
		c.answers[key] = c.recent.PushFront(a)
	}
	for c.recent.Len() > c.limit {
		oldest := c.recent.Back()
		delete(c.answers, oldest.Value.(*answer).key)
		c.recent.Remove(oldest)
	}
}

// drop forgets what is said of some serials of an issuer, and refuses answers that were read before change.
func (c *cache) drop(issuer string, serials []*big.Int, change int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropped[issuer] = max(change, c.dropped[issuer])
	for _, serial := range serials {
		for _, hash := range ocsp.Hashes() {
			key := answerKey{issuer, hash, string(serial.Bytes())}
			if e, ok := c.answers[key]; ok {
				delete(c.answers, key)
				c.recent.Remove(e)
			}
		}
	}
}

// clear forgets everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.answers)
	c.recent.Init()
}

func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent.Len()
}
