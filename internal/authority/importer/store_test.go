package importer_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/authority/importer"
	"chancery/internal/authority/profile"
	"chancery/internal/authority/revocation"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/store/settings"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// authority is a node on a fresh database.
func authority(t *testing.T, d *db.DB) (*ca.CA, *revocation.Service) {
	t.Helper()
	ctx, now := t.Context(), time.Now()
	log, err := audit.New(d, "node-a")
	must(t, err)
	key, err := keys.CreateNodeKey(filepath.Join(t.TempDir(), "node.key"))
	must(t, err)
	recovery, err := keys.GenerateRecovery()
	must(t, err)
	store, set := keys.New(d, log, "node-a", key), settings.New(d, log)
	first := settings.Defaults()
	first.Authority, first.Organization, first.PublicURL = "0197c6a8-6c58-7a4e-8f57-c6dbd7f1d9a5", "Fleet", "http://pki.example"
	must(t, d.Tx(ctx, func(tx *db.Tx) error {
		if err := set.Create(ctx, tx, first, "test", now); err != nil {
			return err
		}
		if err := store.AddRecipient(ctx, tx, keys.Recipient{ID: "node-a", Kind: keys.KindNode, Name: "node-a",
			Subsystems: []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP}, PublicKey: key.Public()}, "test", now); err != nil {
			return err
		}
		return store.AddRecipient(ctx, tx, keys.Recipient{ID: "recovery", Kind: keys.KindRecovery, Name: "recovery",
			PublicKey: recovery.Public()}, "test", now)
	}))
	c := ca.New(ca.Options{DB: d, Keys: store, Profiles: profile.New(d, log), Settings: set, Audit: log})
	return c, revocation.New(revocation.Options{DB: d, CA: c, Keys: store, Settings: set, Audit: log, Logger: slog.New(slog.DiscardHandler)})
}

// A CA that lived in openssl goes on here: its records are there, its CRL has what its own had and a greater number even
// where its numbers ran ahead of the clock, and what is issued now verifies beside what was issued then.
func TestImportedCAGoesOn(t *testing.T) {
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for name, text := range map[string]string{"c.cnf": importer.OpenSSLConfig, "index.txt": "", "serial": "1000\n", "newcerts/.x": "",
		"crlnumber": "0FFFFFFFFFFFFFFFFF\n", "private/.x": ""} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "private/cakey.pem", "-out", "cacert.pem", "-days", "400", "-subj", "/CN=Old Root")
	for _, name := range []string{"host0", "host1", "host2"} {
		run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "k", "-out", "r", "-subj", "/CN="+name)
		run("ca", "-config", "c.cnf", "-batch", "-in", "r", "-notext", "-out", name+".pem")
	}
	run("ca", "-config", "c.cnf", "-revoke", "host0.pem", "-crl_compromise", "20260101000000Z")
	run("ca", "-config", "c.cnf", "-revoke", "host1.pem", "-crl_reason", "certificateHold")
	run("ca", "-config", "c.cnf", "-gencrl", "-out", "crl.pem")

	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		read, err := importer.Read(importer.Source{CA: dir}, time.Now())
		must(t, err)
		c, service := authority(t, d)
		by := access.Principal{ID: "admin", Name: "admin", Kind: access.KindOperator, Roles: []access.Role{access.Admin, access.Officer}}
		into := importer.Into{Name: "old-root", Default: true, IdempotencyKey: "once"}
		_, err = read.Import(t.Context(), c, access.Principal{ID: "x", Kind: access.KindOperator, Roles: []access.Role{access.Auditor}}, into)
		if !fault.Is(err, fault.Denied) {
			t.Fatalf("an auditor imported a CA: %v", err)
		}
		issuer, err := read.Import(t.Context(), c, by, into)
		must(t, err)
		again, err := read.Import(t.Context(), c, by, into)
		if err != nil || again.ID != issuer.ID {
			t.Fatalf("the same call again: %v", err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		var loops sync.WaitGroup
		defer loops.Wait()
		defer cancel()
		loops.Go(func() {
			if err := service.Run(ctx); ctx.Err() == nil {
				t.Errorf("the loop that signs CRLs ended: %v", err)
			}
		})
		current, err := service.IssueCRL(ctx, by, issuer.ID, revocation.Wish{}, once.Call{})
		must(t, err)
		var der strings.Builder
		must(t, service.WriteTo(t.Context(), &der, current))
		list, err := x509.ParseRevocationList([]byte(der.String()))
		must(t, err)
		must(t, list.CheckSignatureFrom(read.Certificate))
		last, _ := new(big.Int).SetString("0FFFFFFFFFFFFFFFFF", 16)
		if list.Number.Cmp(last) <= 0 {
			t.Errorf("the CRLNumber went back to %x", list.Number)
		}
		reasons := map[int64]int{}
		for _, e := range list.RevokedCertificateEntries {
			reasons[e.SerialNumber.Int64()] = e.ReasonCode
		}
		if len(reasons) != 2 || reasons[0x1000] != int(crl.KeyCompromise) || reasons[0x1001] != int(crl.CertificateHold) {
			t.Errorf("the CRL revokes %v", reasons)
		}
		_, err = c.Release(t.Context(), by, ca.Ref{Issuer: issuer.ID, Serial: big.NewInt(0x1001)}, "")
		must(t, err)

		key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
		must(t, err)
		spki, err := x509.MarshalPKIXPublicKey(key.Public())
		must(t, err)
		issued, err := c.Issue(t.Context(), by, ca.Order{IdempotencyKey: "new", Profile: "server", PublicKey: spki, Subject: "CN=host9",
			Names: []string{"dns:host9"}})
		must(t, err)
		leaf, err := x509.ParseCertificate(issued.DER)
		must(t, err)
		out := filepath.Join(t.TempDir(), "new.pem")
		must(t, keyfile.WriteFile(out, keyfile.EncodeCertificates(leaf), 0o600))
		run("verify", "-CAfile", "cacert.pem", out, "host2.pem")
	})
}
