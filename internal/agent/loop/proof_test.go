package loop_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/keyfile"
)

// stolen is a client's certificate of nobody's host, revoked, and a proof of that by this host.
func (m *machine) stolen() *client.ProofResult {
	m.t.Helper()
	ctx := m.t.Context()
	issued, err := m.node.admin.Issue(ctx, client.IssueRequest{Profile: "client", PublicKey: freshKey(m.t), Names: &client.Names{Subject: "CN=thief of " + m.name}})
	must(m.t, err)
	_, err = m.node.admin.Revoke(ctx, "", issued.Certificate.Serial, client.RevokeRequest{Reason: "keyCompromise"})
	must(m.t, err)
	p, err := m.node.admin.ProveRevoked(ctx, "", issued.Certificate.Serial, client.ProveRequest{Hosts: []string{m.name}})
	must(m.t, err)
	return p
}

// offListening is what has a port and is given CRLs, so that the host may have twins, and does not run.
func offListening() client.PlacementOrder { return plain(map[string]string{"address": "127.0.0.1:1"}) }

// freshKey is a public key, in PEM.
func freshKey(t testing.TB) string {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// trial is what the host's plain files came to, once they came to something.
func (m *machine) trial(p *client.ProofResult) client.ProofTrial {
	m.t.Helper()
	for until := time.Now().Add(2 * time.Minute); ; {
		m.once()
		now, err := m.node.admin.Proof(m.t.Context(), p.ID)
		must(m.t, err)
		if len(now.Trials) != 1 {
			m.t.Fatalf("%+v", now.Trials)
		}
		if now.Done() && now.Trials[0].Result != client.ProofSilent || time.Now().After(until) {
			return now.Trials[0]
		}
	}
}

// twins are those that were issued for a proof's certificate.
func (m *machine) twins() []client.Certificate {
	m.t.Helper()
	found, err := client.Collect(m.node.admin.Certificates(m.t.Context(), client.CertificateFilter{Name: "thief of " + m.name, Profile: "proof-twin"}))
	must(m.t, err)
	return found
}

// TestProofIsKilled kills an agent after each change that it makes to its state in the pass in which it hears of a proof. It gets one twin, whichever step it was,
// comes to the same end, and keeps nothing of a proof that is over.
func TestProofIsKilled(t *testing.T) {
	t.Parallel()
	begun := func() (*machine, *client.ProofResult) {
		m := newMachine(t, offListening())
		m.settled()
		return m, m.stolen()
	}
	first, _ := begun()
	all, err := strconv.Atoi(first.killed("state", 0))
	if err != nil || all < 4 {
		t.Fatalf("%d steps, %v", all, err)
	}
	stride := 2 // steps are before and after each change, and after one is before the next
	if testing.Short() {
		stride = 8
	}
	for at := 2; at <= all; at += stride {
		m, p := begun()
		m.killed("state", at)
		trial := m.trial(p)
		if trial.Result != client.ProofNotTried || !strings.Contains(trial.Detail, "which lists it") || trial.CRL == "" {
			t.Errorf("killed at step %d of %d: %+v", at, all, trial)
		}
		if twins := m.twins(); len(twins) != 1 || twins[0].State != client.StateRevoked {
			t.Errorf("killed at step %d of %d, it got %d twins: %+v", at, all, len(twins), twins)
		}
		m.options.Now = func() time.Time { return time.Now().Add(61 * time.Minute) }
		m.once()
		left, err := filepath.Glob(filepath.Join(m.state, "proofs", "*"))
		if err != nil || len(left) != 0 {
			t.Errorf("after the end of the proof %v is left, %v", left, err)
		}
	}
}

// TestProofThatIsUnreadable: what was kept of a proof is spoilt. The key of the twin is lost, and nobody gets a second one; that is
// said, and the placements go on.
func TestProofThatIsUnreadable(t *testing.T) {
	t.Parallel()
	m := newMachine(t, offListening())
	m.settled()
	p := m.stolen()
	m.once()
	kept, err := filepath.Glob(filepath.Join(m.state, "proofs", "*.json"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%v %v", kept, err)
	}
	if st, err := os.Stat(kept[0]); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	must(t, os.WriteFile(kept[0], []byte("{"), 0o600))
	result := m.once()
	if !result.Done() {
		t.Errorf("%+v", result)
	}
	now, err := m.node.admin.Proof(t.Context(), p.ID)
	must(t, err)
	if trial := now.Trials[0]; trial.Result != client.ProofWaiting || !strings.Contains(trial.Detail, "gets no second one") {
		t.Errorf("%+v", trial)
	}
	if got := strings.Join(result.Problems, "\n"); !strings.Contains(got, "gets no second one") {
		t.Errorf("the agent says %q", got)
	}
}

// TestProofWithoutTwin: a host that may have no twin asks for none. It says why, and what its files hold.
func TestProofWithoutTwin(t *testing.T) {
	t.Parallel()
	m := newMachine(t, plain(nil))
	m.settled()
	p := m.stolen()
	if len(p.Twins) != 0 {
		t.Errorf("twins are for %v", p.Twins)
	}
	trial := m.trial(p)
	for end := time.Now().Add(2 * time.Minute); trial.CRL == "" && time.Now().Before(end); {
		trial = m.trial(p)
	}
	if trial.Result != client.ProofNotTried || trial.Untried != client.UntriedNoPort || !strings.Contains(trial.Detail, "which lists it") {
		t.Errorf("%+v", trial)
	}
	_, err := m.node.admin.ChangeHost(t.Context(), m.name, client.ChangeHostRequest{Placements: &[]client.PlacementOrder{offListening()}})
	must(t, err)
	m.settled()
	now, err := m.node.admin.Proof(t.Context(), p.ID)
	must(t, err)
	if trial := now.Trials[0]; trial.Untried != client.UntriedNoTwin || !strings.Contains(trial.Detail, "nothing on it has a port and is given CRLs") {
		t.Errorf("%+v", trial)
	}
	if twins := m.twins(); len(twins) != 0 {
		t.Errorf("it got twins: %+v", twins)
	}
}
