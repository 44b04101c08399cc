package setup_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/setup"
	"chancery/internal/upkeep/verify"
)

// TestBackupWhileTwoNodesIssue takes a backup of PostgreSQL while two nodes issue: it is one state of both, in which everything is that was
// acknowledged before it began, whose chains are whole, and which restores to an authority that verifies and issues, on PostgreSQL too.
func TestBackupWhileTwoNodesIssue(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	result, err := setup.Init(t.Context(), setup.Options{RecoveryWork: pkitest.RecoveryWork, Dir: newDir(t), DatabaseFile: databaseFile(t, url), Online: true})
	if err != nil {
		t.Fatal(err)
	}
	one := open(t, result.Dir)
	nodes := []*setup.Services{one, secondNode(t, one, url)}
	var acknowledged []*ca.Certificate
	for i := range 10 {
		acknowledged = append(acknowledged, issue(t, nodes[i%2], fmt.Sprintf("before%d.example", i)))
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	made := make(chan struct{}, 1<<16)
	failed := sync.OnceFunc(func() { // so that nobody waits for more
		for range 1000 {
			made <- struct{}{}
		}
	})
	for n, s := range nodes {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := tryIssue(t, s, fmt.Sprintf("during%d-%d.example", n, i)); err != nil {
					t.Errorf("node %d: %v", n, err)
					failed()
					return
				}
				made <- struct{}{}
			}
		})
	}
	key := recovery(t, result)
	signer, err := one.AuditSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// What reads the backup waits after its first octets until both have issued more.
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(backup.Write(t.Context(), w, one.DB, key.Public(), backup.Header{Node: "node1", Authority: "x"}, signer))
	}()
	var file bytes.Buffer
	if _, err := io.CopyN(&file, r, 100); err != nil {
		t.Fatal(err)
	}
	for len(made) > 0 {
		<-made
	}
	for range 10 {
		<-made
	}
	_, err = io.Copy(&file, r)
	close(stop)
	writers.Wait()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := newDir(t)
	_, err = setup.Restore(t.Context(), setup.RestoreOptions{
		Dir: dir, Backup: path, Recovery: key, AuditKeys: auditKeys(t, filepath.Join(result.Dir.Offline(), "audit-key.pem")),
		DatabaseFile: databaseFile(t, pkitest.URL(t, db.Postgres)),
	})
	if err != nil {
		t.Fatal(err)
	}
	restored := open(t, dir)
	for _, c := range acknowledged {
		if _, err := restored.CA.Find(t.Context(), officer, ca.Ref{Serial: c.Serial}); err != nil {
			t.Errorf("a certificate that was acknowledged before: %v", err)
		}
	}
	findings, seen, err := restored.Audit.Verify(t.Context(), audit.Evidence{})
	if err != nil || len(findings) > 0 || seen.Chains < 3 {
		t.Errorf("%d chains, findings %v, %v", seen.Chains, findings, err)
	}
	all, err := verify.Store(t.Context(), restored, verify.Shown{})
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for f, err := range all {
		if err != nil {
			t.Fatal(err)
		}
		if looked++; f.Level == finding.Error {
			t.Errorf("%+v", f)
		}
	}
	if looked < 5 {
		t.Fatalf("verify looked at %d things", looked)
	}
	issue(t, restored, "restored.example")
}
