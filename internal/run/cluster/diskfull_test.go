package cluster_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/run/cluster"
	"chancery/internal/store/access"
	"chancery/internal/upkeep/datadir"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"
)

var officer = access.Principal{ID: "t", Name: "t", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}

// issuing issues and revokes without end, and keeps what was acknowledged. A call whose outcome nobody knows is repeated with its key.
type issuing struct {
	s   *setup.Services
	csr []byte

	mu      sync.Mutex // guards what follows
	good    []*ca.Certificate
	revoked []*ca.Certificate
	odd     []error // refusals that do not say what is wrong
	refused int
}

func newIssuing(t *testing.T, s *setup.Services) *issuing {
	t.Helper()
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	if err != nil {
		t.Fatal(err)
	}
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &issuing{s: s, csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}
}

// again repeats a call until it is acknowledged, or the test is over.
func (i *issuing) again(ctx context.Context, call func() error) bool {
	for ctx.Err() == nil {
		err := call()
		if err == nil {
			return true
		}
		i.mu.Lock()
		if i.refused++; !fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
			i.odd = append(i.odd, err)
		}
		i.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return false
}

func (i *issuing) run(ctx context.Context, worker int) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("w%d-%d", worker, n)
		var made *ca.Certificate
		if !i.again(ctx, func() (err error) {
			made, err = i.s.CA.Issue(ctx, officer, ca.Order{Profile: "server", Names: []string{"dns:" + name + ".test"}, CSR: i.csr, IdempotencyKey: name})
			return err
		}) {
			return
		}
		revoke := n%3 == 0
		if revoke && !i.again(ctx, func() error {
			_, err := i.s.CA.Revoke(ctx, officer, ca.Ref{Issuer: made.Issuer.ID, Serial: made.Serial}, ca.RevokeOrder{Reason: crl.Superseded, IdempotencyKey: "r" + name})
			return err
		}) {
			return
		}
		i.mu.Lock()
		if revoke {
			i.revoked = append(i.revoked, made)
		} else {
			i.good = append(i.good, made)
		}
		i.mu.Unlock()
	}
}

func (i *issuing) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.good) + len(i.revoked)
}

// check wants everything that was acknowledged, as it was.
func (i *issuing) check(t *testing.T) {
	t.Helper()
	for state, all := range map[ca.State][]*ca.Certificate{ca.Valid: i.good, ca.Revoked: i.revoked} {
		if len(all) == 0 {
			t.Errorf("nothing was acknowledged that is to be %s", state)
		}
		for _, c := range all {
			found, err := i.s.CA.Find(t.Context(), officer, ca.Ref{Issuer: c.Issuer.ID, Serial: c.Serial})
			if err != nil || found.State != state {
				t.Errorf("%s was acknowledged as %s: %v", cert.FormatSerial(c.Serial), state, err)
			}
		}
	}
	for _, err := range i.odd {
		t.Errorf("a refusal that is none of the database's: %v", err)
	}
	t.Logf("%d certificates, %d revoked, %d refusals", len(i.good), len(i.revoked), i.refused)
	findings, err := verify.Store(t.Context(), i.s, verify.Shown{})
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range findings {
		if err != nil || f.Level == finding.Error {
			t.Errorf("verify finds %+v, %v", f, err)
		}
	}
}

// fill takes what room is left on a member's disk.
func fill(t *testing.T, m *cluster.Member) (ballast string) {
	t.Helper()
	ballast = filepath.Join(m.Data(), "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<16); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return ballast
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// takeOver is what docs/database.md has an operator type who wants another than that member to be the primary now: he looks which standby is
// the synchronous one, since no other need have all that was acknowledged. It tells whether there is one, or another primary already. A primary
// that ends and starts again may have withdrawn who was synchronous before a standby followed it: then Patroni promotes nobody.
func takeOver(t *testing.T, from *cluster.Member) (possible bool) {
	t.Helper()
	patronictl := func(args ...string) []byte {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "patronictl", append([]string{"-c", filepath.Join(from.Dir, "patroni.yml")}, args...)...)
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		t.Logf("patronictl %s: %v\n%s%s", strings.Join(args, " "), err, out, &complaint)
		return out
	}
	var members []struct{ Member, Role string }
	if err := json.Unmarshal(patronictl("list", "--format", "json"), &members); err != nil {
		return true // etcd did not answer in time, say
	}
	var leader, synchronous string
	for _, m := range members {
		switch m.Role {
		case "Leader":
			leader = m.Member
		case "Sync Standby":
			synchronous = m.Member
		}
	}
	if leader != "" && leader != from.Name {
		return true
	}
	if synchronous != "" {
		patronictl("failover", "--candidate", synchronous, "--force")
	}
	return synchronous != ""
}

// TestDiskOfOneMemberFillsUp fills the disk of one member after the other, under load: a standby that nobody waits for, the synchronous
// one, and the primary. Whatever was acknowledged is there, the authority goes on by those that have room, and doctor names the member.
func TestDiskOfOneMemberFillsUp(t *testing.T) {
	c, err := cluster.Start(t.Context(), cluster.Options{Disk: "256m", Parameters: map[string]string{"max_wal_size": "64MB", "min_wal_size": "32MB"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}()
	url, err := c.Database(t.Context(), "small")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := datadir.Dir(filepath.Join(t.TempDir(), "authority"))
	if _, err := setup.Init(t.Context(), setup.Options{Dir: dir, DatabaseFile: file, Online: true}); err != nil {
		t.Fatal(err)
	}
	config, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	s, err := setup.Open(t.Context(), dir, config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()

	load := newIssuing(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	for worker := range 2 {
		workers.Go(func() { load.run(ctx, worker) })
	}
	defer workers.Wait()
	defer cancel()
	for _, role := range []string{"other", "synchronous", "primary"} {
		primary, err := c.Primary(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synchronous, err := c.Synchronous(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		victim := map[string]*cluster.Member{"primary": primary, "synchronous": synchronous}[role]
		for _, m := range c.Members {
			if victim == nil && m != primary && m != synchronous {
				victim = m
			}
		}
		began := time.Now()
		ballast := fill(t, victim)
		// More of the log than any segment that is there already has room for.
		for range 4 {
			if err := primary.Exec(t.Context(), "postgres", "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 16000000))"); err != nil {
				t.Logf("the log of the primary while the disk of the %s is full: %v", role, err)
				break
			}
		}
		var named []string
		await(t, "doctor names the "+role+" whose disk is full", func() error {
			found, err := doctor.DatabaseLook(t.Context(), doctor.Database{URL: url, Durability: "synchronous", Patience: 3 * time.Second})
			if err != nil {
				return err
			}
			named = nil
			for _, f := range found {
				if f.Level != finding.OK && (strings.Contains(f.Object, victim.Address) || strings.Contains(f.Object, victim.Name) || strings.Contains(f.Seen, victim.Address)) {
					named = append(named, fmt.Sprintf("%s %s: %s (%s)", f.Check, f.Object, f.Message, f.Seen))
				}
			}
			if len(named) == 0 {
				return fmt.Errorf("it says %+v", found)
			}
			return nil
		})
		seen := time.Since(began)
		had, told, possible := load.count(), time.Now(), time.Now()
		await(t, "the authority goes on while the disk of the "+role+" is full", func() error {
			if load.count() >= had+20 {
				return nil
			}
			// As long as its log has room a primary does not end, and refuses each write: then the operator has another take over, or makes
			// room where there is nobody who may.
			if role == "primary" && time.Since(told) > 5*time.Second {
				if takeOver(t, victim) {
					possible = time.Now()
				} else if time.Since(possible) > time.Minute {
					t.Log("nobody may take over from the primary: it gets room")
					if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
						return err
					}
				}
				told = time.Now()
			}
			return fmt.Errorf("%d calls of 20 were acknowledged", load.count()-had)
		})
		t.Logf("%s %s: named after %s, goes on after %s\n%s", role, victim.Name, seen, time.Since(began), strings.Join(named, "\n"))
		if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		await(t, "the "+role+" follows again, whose disk has room", func() error { return c.WaitHealthy(t.Context()) })
	}
	cancel()
	workers.Wait()
	load.check(t)
}
