package clone_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
)

// restarted is the first node after a restart: it remembers neither issuers nor keys.
func (a *authority) restarted() *setup.Services {
	a.t.Helper()
	return a.open(&machine{name: "n1", key: a.key, floor: filepath.Join(a.t.TempDir(), "recipients")})
}

// doctor is what the first node's doctor says of the others, a line each.
func (a *authority) doctor() (said []string) {
	a.t.Helper()
	s := a.restarted()
	for f, err := range (&doctor.Node{DB: s.DB, Keys: s.Keys, Clones: s.Clones.Troubles}).Look(a.t.Context(), time.Now()) {
		if must(a.t, err); f.Check == "clones" {
			said = append(said, string(f.Level)+" "+f.Object+": "+f.Message)
		}
	}
	return said
}

// TestNoNodeIsAddedToSpoiltKeys spoils an issuer's key in each way: nobody is invited, and a machine that waits is not approved, before
// anything of it is in the database; doctor at the first node names the other one that cannot sign.
func TestNoNodeIsAddedToSpoiltKeys(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	a.start(two, m.in.Address)
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	waiting := a.machine("n3", a.invite())
	waits, err := a.Clones.Join(ctx, waiting.in)
	must(t, err)
	if said := a.doctor(); len(said) != 1 || !strings.HasPrefix(said[0], string(finding.OK)+" : 1 other nodes are ready") {
		t.Fatalf("nothing is wrong, and doctor says %q", said)
	}
	const left = `SELECT (SELECT COUNT(*) FROM node WHERE name = 'n3' AND (state <> 'waiting' OR database_role <> '')) +
		(SELECT COUNT(*) FROM key_recipient WHERE id = 'n3') + (SELECT COUNT(*) FROM key_wrap WHERE recipient_id = 'n3') +
		(SELECT COUNT(*) FROM principal WHERE name = 'node/n3') + (SELECT COUNT(*) FROM node_invitation WHERE used_by = '')`
	a.exec(`CREATE TABLE kept AS SELECT * FROM issuer WHERE name = 'default'`)
	for _, spoilt := range []struct{ how, back, says string }{
		{`UPDATE issuer SET key_id = (SELECT key_id FROM issuer WHERE name = 'identity') WHERE name = 'default'`,
			`UPDATE issuer SET key_id = (SELECT key_id FROM kept) WHERE name = 'default'`, "is not the one in its certificate"},
		{`UPDATE issuer SET key_id = 'lost' WHERE name = 'default'`,
			`UPDATE issuer SET key_id = (SELECT key_id FROM kept) WHERE name = 'default'`, "is not in the store"},
	} {
		a.exec(spoilt.how)
		s := a.restarted()
		_, err = s.Clones.Invite(ctx, a.admin, client.CloneInvitation{}, "")
		refused(t, err, fault.Conflict, spoilt.says, "CA private key is null!")
		_, err = s.Clones.Approve(ctx, a.admin, "n3", client.CloneApproval{Fingerprint: waits.Fingerprint})
		refused(t, err, fault.Conflict, spoilt.says, "CA private key is null!")
		if n := a.count(left); n != 0 {
			t.Errorf("%s: %d rows are left behind", spoilt.says, n)
		}
		must(t, a.open(m).Clones.Report(ctx, clone.Self{}, time.Now()))
		if said := strings.Join(a.doctor(), "\n"); !strings.HasPrefix(said, string(finding.Error)+" n2: node n2 cannot sign") || !strings.Contains(said, `on node n2 the key of "`) ||
			!strings.Contains(said, spoilt.says) {
			t.Errorf("doctor at the first node says %q", said)
		}
		a.exec(spoilt.back)
	}
	// The key of a retired issuer may be lost for good: that keeps nobody out, and doctor names it.
	late := a.machine("n4", a.invite())
	lateWaits, err := a.Clones.Join(ctx, late.in)
	must(t, err)
	a.exec(`UPDATE issuer SET key_id = 'lost', state = 'retired', is_default = 0 WHERE name = 'default'`)
	s := a.restarted()
	_, err = s.Clones.Invite(ctx, a.admin, client.CloneInvitation{}, "")
	must(t, err)
	_, err = s.Clones.Approve(ctx, a.admin, "n4", client.CloneApproval{Fingerprint: lateWaits.Fingerprint})
	must(t, err)
	must(t, a.open(m).Clones.Report(ctx, clone.Self{}, time.Now()))
	if said := strings.Join(a.doctor(), "\n"); !strings.Contains(said, "n2: node n2 cannot sign") || !strings.Contains(said, "is not in the store") {
		t.Errorf("the key of a retired issuer is lost, and doctor says %q", said)
	}
	a.exec(`UPDATE issuer SET (key_id, state, is_default) = (SELECT key_id, state, is_default FROM kept) WHERE name = 'default'`)
	// A key that a running node remembers is not there for another.
	remembers := a.restarted()
	problems, _, err := remembers.CA.KeyProblems(ctx)
	if must(t, err); len(problems) > 0 {
		t.Fatal(problems)
	}
	a.exec(`UPDATE sealed_key SET id = 'away' WHERE id = (SELECT key_id FROM kept)`)
	_, err = remembers.Clones.Approve(ctx, a.admin, "n3", client.CloneApproval{Fingerprint: waits.Fingerprint})
	refused(t, err, fault.Conflict, "the key of issuer default ", "is not in the store", "CA private key is null!")
	a.exec(`UPDATE sealed_key SET id = (SELECT key_id FROM kept) WHERE id = 'away'`)
	_, err = a.restarted().Clones.Approve(ctx, a.admin, "n3", client.CloneApproval{Fingerprint: waits.Fingerprint})
	must(t, err)
}
