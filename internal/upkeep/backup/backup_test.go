package backup_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/upkeep/backup"
)

// auditKey signs the backups of these tests.
var auditKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func known() []crypto.PublicKey { return []crypto.PublicKey{auditKey.Public()} }

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// fill puts events into the audit, which is a table with texts, numbers and octets.
func fill(t *testing.T, d *db.DB, n int) {
	t.Helper()
	log, err := audit.New(d, "node1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			return log.Append(t.Context(), tx, audit.Event{Time: time.Now(), Actor: "operator:test", Action: "test.fill", Object: fmt.Sprint(i), Detail: map[string]string{"ü": "\u2028"}})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// contents is every row of every table that a backup carries, as text.
func contents(t *testing.T, d *db.DB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := d.ReadSnapshot(t.Context(), func(tx *db.Tx) error {
		tables, err := db.Tables(t.Context(), tx)
		if err != nil {
			return err
		}
		for _, table := range tables {
			if slices.Contains([]string{"leases", "clock", "schema_version"}, table.Name) {
				continue
			}
			for row, err := range table.Rows(t.Context(), tx) {
				if err != nil {
					return err
				}
				all[table.Name] = append(all[table.Name], fmt.Sprintf("%q", row))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func write(t *testing.T, d *db.DB, to *age.X25519Identity) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := backup.Write(t.Context(), &file, d, to.Recipient().String(), backup.Header{Authority: "a", Node: "node1", Version: "test"}, auditKey); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func load(ctx context.Context, d *db.DB, file []byte, id age.Identity) error {
	return d.TxAlone(ctx, func(tx *db.Tx) error {
		s, err := backup.Open(bytes.NewReader(file), id)
		if err != nil {
			return err
		}
		_, err = s.Load(ctx, tx, known())
		return err
	})
}

// TestRoundTrip carries a database from each engine to each engine.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	var files [][]byte
	var want []map[string][]string
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		fill(t, d, 450)
		want = append(want, contents(t, d))
		files = append(files, write(t, d, id))
	})
	if len(files) != 2 {
		t.Fatalf("%d engines", len(files))
	}
	for i, file := range files {
		if len(want[i]["audit_event"]) != 450 {
			t.Fatalf("only %d rows to carry", len(want[i]["audit_event"]))
		}
		pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
			if err := load(t.Context(), d, file, id); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want[i], contents(t, d)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if err := load(t.Context(), d, file, id); !fault.Is(err, fault.Conflict) {
				t.Errorf("into a database that is not empty: %v", err)
			}
		})
	}
}

// TestConsistentWhileWritten takes a backup in the middle of writes: what it holds is one state, whose chain verifies.
func TestConsistentWhileWritten(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		fill(t, d, 50)
		log, err := audit.New(d, "node1")
		if err != nil {
			t.Fatal(err)
		}
		id := newIdentity(t)
		var file bytes.Buffer
		// The pipe holds the backup up after its first octets, until more was written to the database.
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := backup.Write(t.Context(), w, d, id.Recipient().String(), backup.Header{}, auditKey)
			w.CloseWithError(err)
			done <- err
		}()
		if _, err := io.CopyN(&file, r, 10); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if err := d.Tx(t.Context(), func(tx *db.Tx) error {
				return log.Append(t.Context(), tx, audit.Event{Time: time.Now(), Actor: "a", Action: "later"})
			}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.Copy(&file, r); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		pkitest.EachDB(t, func(t *testing.T, restored *db.DB) {
			if err := load(t.Context(), restored, file.Bytes(), id); err != nil {
				t.Fatal(err)
			}
			log, err := audit.New(restored, "node2")
			if err != nil {
				t.Fatal(err)
			}
			findings, seen, err := log.Verify(t.Context(), audit.Evidence{})
			if err != nil || len(findings) > 0 {
				t.Fatalf("findings %v, error %v", findings, err)
			}
			if seen.Events < 50 {
				t.Errorf("only %d events", seen.Events)
			}
		})
	})
}

func TestDamageIsFound(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		fill(t, d, 30)
		file := write(t, d, id)
		cases := map[string][]byte{
			"empty":     {},
			"not age":   []byte("hello"),
			"cut":       file[:len(file)-1],
			"cut early": file[:300],
			"longer":    append(slices.Clone(file), 0),
		}
		for _, at := range []int{250, len(file) / 2, len(file) - 5} {
			flipped := slices.Clone(file)
			flipped[at] ^= 1
			cases[fmt.Sprint("flipped at ", at)] = flipped
		}
		pkitest.EachDB(t, func(t *testing.T, target *db.DB) {
			for name, damaged := range cases {
				if err := load(t.Context(), target, damaged, id); !fault.Is(err, fault.Invalid) {
					t.Errorf("%s: error %v", name, err)
				}
				if rows := contents(t, target)["audit_event"]; len(rows) != 0 {
					t.Errorf("%s: %d rows were left behind", name, len(rows))
				}
			}
			if err := load(t.Context(), target, file, id); err != nil {
				t.Errorf("the whole file: %v", err)
			}
		})
	})
}

func TestAnotherKeyDoesNotOpen(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		file := write(t, d, newIdentity(t))
		_, err := backup.Open(bytes.NewReader(file), newIdentity(t))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "does not open with this recovery key") {
			t.Errorf("error %v", err)
		}
		if bytes.Contains(file, []byte("audit_event")) {
			t.Error("the backup shows what it holds")
		}
	})
}

func TestHostilePlainText(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	for name, plain := range map[string]string{
		"nothing":       "",
		"another magic": "chancery backup 9\n", "unsigned format": "chancery backup 1\n\x02{}",
		"huge frame":    "chancery backup 2\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
		"bad header":    "chancery backup 2\n\x02[]",
		"later release": "chancery backup 2\n\x0f{\"schema\":99999}",
	} {
		var file bytes.Buffer
		w, err := age.Encrypt(&file, id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Open(&file, id); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestHeaderTellsWhen(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s, err := backup.Open(bytes.NewReader(write(t, d, id)), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.Header.Engine != string(d.Dialect()) || time.Since(s.Header.At) > time.Minute || s.Header.Node != "node1" {
			t.Errorf("header %+v", s.Header)
		}
	})
}

// Anybody who knows the recovery recipient can encrypt to it. What the authority's audit key did not sign comes neither into
// a database nor past Check.
func TestBackupOfAStrangerWasRestored(t *testing.T) {
	t.Parallel()
	id := newIdentity(t)
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		fill(t, d, 30)
		for _, c := range []struct {
			name  string
			key   crypto.Signer
			known []crypto.PublicKey
			good  bool
		}{
			{"the authority's", auditKey, known(), true},
			{"one of two", auditKey, []crypto.PublicKey{curve.Public(), auditKey.Public()}, true},
			{"another kind of key", curve, []crypto.PublicKey{curve.Public()}, true},
			{"a stranger's", stranger, known(), false},
			{"no key known", auditKey, nil, false},
		} {
			var file bytes.Buffer
			if err := backup.Write(t.Context(), &file, d, id.Recipient().String(), backup.Header{Authority: "a"}, c.key); err != nil {
				t.Fatal(err)
			}
			header, err := backup.Check(bytes.NewReader(file.Bytes()), id, c.known)
			if c.good && (err != nil || header.Authority != "a") || !c.good && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: header %+v, error %v", c.name, header, err)
			}
			if !c.good && c.known != nil {
				pkitest.EachDB(t, func(t *testing.T, target *db.DB) {
					if err := load(t.Context(), target, file.Bytes(), id); !fault.Is(err, fault.Invalid) {
						t.Errorf("%s: error %v", c.name, err)
					}
					for table, rows := range contents(t, target) {
						t.Errorf("%s: %d rows of %s were left behind", c.name, len(rows), table)
					}
				})
			}
		}
	})
}
