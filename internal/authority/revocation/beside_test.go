package revocation

import (
	"crypto"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	xocsp "golang.org/x/crypto/ocsp"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/ocsp"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/schema"
)

// TestAnswersOfAStandbyThatLacks: the primary is away, and the standby beside a node lacks what that has written. What is read there is signed
// once; what it shows is followed; and neither it nor its absence calls good what was said to be revoked.
func TestAnswersOfAStandbyThatLacks(t *testing.T) {
	t.Parallel()
	primary := pkitest.Postgres(t, "fsync=off", "full_page_writes=off", "wal_keep_size=64MB")
	primary.Exec(t, "CREATE DATABASE chancery")
	d := pkitest.Open(t, db.Options{URL: primary.TCP("chancery")})
	must(t, schema.Migrate(t.Context(), d))
	a := newOffice(t, d, ca.CRLMode{}, nil)
	a.withResponder()
	standby := primary.Standby(t, "n1", "fsync=off")
	near := pkitest.Open(t, db.Options{URL: primary.TCP("chancery") + "&connect_timeout=2", ReadURL: standby.URL("chancery") + "&connect_timeout=2",
		Node: "near", Patience: 2 * time.Second})
	b := a.join(near, "near")
	watched(t, near)
	applied := map[string]int64{}
	look := func() { t.Helper(); must(t, b.service.follow(t.Context(), applied)) }
	says := func(what string, c *x509.Certificate, want int) {
		t.Helper()
		if got, r := b.ask(c, crypto.SHA1); got == nil || got.Status != want {
			t.Fatalf("%s: %v, with status %d where it is an answer, and %d is wanted", what, r.Status, statusIn(got), want)
		}
	}
	later, seen, told, own, kept, fresh := a.issue("later.example"), a.issue("seen.example"), a.issue("told.example"), a.issue("own.example"), a.issue("kept.example"), a.issue("fresh.example")
	await(t, "a heartbeat", func() bool { return near.Heartbeat(t.Context(), time.Now()) == nil })
	standby.Replayed(t, primary)
	await(t, "a look", func() bool { return b.service.follow(t.Context(), applied) == nil })
	for _, c := range []*x509.Certificate{later, seen} {
		b.respond(c, xocsp.Good)
	}
	a.revoke(later, crl.KeyCompromise)
	standby.Replayed(t, primary)
	standby.Exec(t, "SELECT pg_wal_replay_pause()")
	await(t, "its own revocation", func() bool {
		_, err := b.ca.Revoke(t.Context(), b.by, b.ref(own), ca.RevokeOrder{Reason: crl.Superseded})
		return err == nil
	})

	primary.Freeze(t)
	await(t, "the absence of the primary", func() bool { return near.Away() != nil })
	says("what nobody asked about", kept, xocsp.Good)
	if !b.keeps(kept) {
		t.Error("what is read at a standby that lacks something is signed for each question")
	}
	look()
	says("what the standby shows to be revoked", later, xocsp.Revoked)
	if !b.keeps(later) {
		t.Error("that it is revoked is signed for each question")
	}
	if _, r := b.ask(own, crypto.SHA1); r.Status != ocsp.TryLater {
		t.Errorf("what this node has revoked, and its standby has not heard of: %v", r.Status)
	}
	standby.Freeze(t)
	await(t, "the absence of the standby", func() bool { return near.Unread() != nil })
	b.forgetAnswers()
	says("without the standby, what it showed to be revoked", later, xocsp.Revoked)
	says("without the standby, what it showed to be good", kept, xocsp.Good)
	standby.Thaw(t)
	primary.Thaw(t)
	await(t, "both servers", func() bool { return near.Away() == nil && near.Unread() == nil })

	// Another node's revocation is seen at the primary alone, before the node looked for changes there.
	a.revoke(told, crl.KeyCompromise)
	b.respond(told, xocsp.Revoked)
	if b.service.answers.unseenOf(keyOf(a.issuer.ID, told.SerialNumber)) == 0 {
		t.Error("what was said to be revoked is forgotten with the answer, and the standby calls it good")
	}
	// And after it did. Then that goes away again, and what was kept was replaced by other things.
	a.revoke(seen, crl.KeyCompromise)
	await(t, "a look at the primary", func() bool {
		err := b.service.follow(t.Context(), applied)
		return err == nil && b.service.answers.unseenOf(keyOf(a.issuer.ID, seen.SerialNumber)) > 0
	})
	b.respond(seen, xocsp.Revoked)
	primary.Freeze(t)
	await(t, "the second absence of the primary", func() bool { return near.Away() != nil })
	b.forgetAnswers()
	says("what the primary showed to be revoked", seen, xocsp.Revoked)
	b.service.answers.clear()
	if got, r := b.ask(seen, crypto.SHA1); r.Status != ocsp.TryLater {
		t.Errorf("what was said to be revoked, and the standby calls good: %v, with status %d", r.Status, statusIn(got))
	}
	says("what has not changed", fresh, xocsp.Good)
	if !b.keeps(fresh) {
		t.Error("what has not changed is signed for each question, since something else has")
	}
	standby.Exec(t, "SELECT pg_wal_replay_resume()")
	b.respond(seen, xocsp.Revoked)
	b.respond(own, xocsp.Revoked)
	look()
	if n := b.service.answers.unseenOf(keyOf(a.issuer.ID, seen.SerialNumber)); n != 0 {
		t.Errorf("the standby has shown change %d, and it is remembered still", n)
	}
}

// statusIn is what an answer says; -1 where it is none.
func statusIn(answer *xocsp.Response) int {
	if answer == nil {
		return -1
	}
	return answer.Status
}

// unseenOf is the change of a certificate that the server beside the node has not shown.
func (c *cache) unseenOf(key certificateKey) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unseen[key]
}

// TestWhatAServerMayLack: a status is said that knows of all changes that were seen of its certificate, and no other.
func TestWhatAServerMayLack(t *testing.T) {
	c := newCache()
	c.beside = true
	key := func(n int64) certificateKey { return keyOf("one", big.NewInt(n)) }
	vouch := func(n, change int64) int64 {
		if s, ok := c.vouch(key(n), ca.Status{Issued: true, Change: change}); ok {
			return s.Change
		}
		return 0
	}
	c.dropAll("one", []changedSerial{{big.NewInt(6), followRecent + 5}}, followRecent+5, true)
	if vouch(1, 4) != 0 || vouch(1, 5) != followRecent+5 || vouch(6, followRecent+4) != 0 || vouch(6, followRecent+5) != followRecent+5 {
		t.Error("it is not known what changed up to 5, and what did after that is")
	}
	c.begin(2)
	c.dropAll("one", nil, 5, false)
	c.drop("one", []changedSerial{{big.NewInt(7), 6}, {big.NewInt(8), 7}}, 7, true)
	if vouch(1, 5) != 7 || vouch(7, 5) != 0 || vouch(7, 6) != 7 || vouch(8, 6) != 0 || vouch(8, 7) != 7 {
		t.Error("of 6 and 7 it is known what they changed")
	}
	c.shown(map[string]int64{"one": 6})
	if vouch(1, 5) != 0 || vouch(7, 6) != 7 || vouch(8, 6) != 0 || len(c.unseen) != 1 {
		t.Error("the server has shown 6, and no more")
	}
	c.keep(key(9), ca.Status{Issued: true, State: ca.Revoked, Change: 7}, time.Now(), 2, nil, 100)
	if s, ok := c.newer("one", big.NewInt(9), 6); !ok || s.State != ca.Revoked {
		t.Error("what is kept is newer than what was read")
	}
	if _, ok := c.newer("one", big.NewInt(9), 7); ok {
		t.Error("what was read knows as much")
	}
	for n := range int64(mostUnseen + 10) {
		c.drop("two", []changedSerial{{big.NewInt(n), n + 1}}, n+1, true)
	}
	if s, ok := c.vouch(keyOf("two", big.NewInt(mostUnseen+100)), ca.Status{Issued: true, Change: mostUnseen}); len(c.unseen) != mostUnseen || ok {
		t.Errorf("%d are remembered; with more than that, nothing older is said, and %+v is", len(c.unseen), s)
	}
	c.begin(1)
	if vouch(1, 1) != 1 || len(c.unseen)+len(c.least) != 0 {
		t.Error("what was seen in a history that has ended counts")
	}
	c.beside = false
	c.dropAll("one", nil, 5, false)
	if vouch(1, 4) != 4 {
		t.Error("without a server beside the node, a status counts for more than was read")
	}
}
