package access_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

func TestTokens(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		bob := create(t, s, admin, "bob", access.KindOperator, access.Operator)
		first, text := token(t, s, alice, alice) // her own
		if _, _, err := s.CreateToken(ctx, alice, access.TokenOrder{Principal: bob.ID, Life: time.Hour}); !fault.Is(err, fault.Denied) {
			t.Fatalf("a token for another: %v", err)
		}
		if _, _, err := s.CreateToken(ctx, admin, access.TokenOrder{Principal: "nobody", Life: time.Hour}); !fault.Is(err, fault.NotFound) {
			t.Fatalf("a token for nobody: %v", err)
		}
		for _, life := range []time.Duration{0, -time.Hour, time.Second, access.MaxTokenLife + 1} {
			if _, _, err := s.CreateToken(ctx, alice, access.TokenOrder{Principal: alice.ID, Life: life}); !fault.Is(err, fault.Invalid) {
				t.Fatalf("a life of %s: %v", life, err)
			}
		}
		if _, _, err := s.CreateToken(ctx, alice, access.TokenOrder{Principal: alice.ID, Label: "a\nb", Life: time.Hour}); !fault.Is(err, fault.Invalid) {
			t.Fatalf("a label with a line end: %v", err)
		}
		if p, err := s.Authenticate(ctx, text); err != nil || p.ID != alice.ID || p.Actor() != "operator:alice" {
			t.Fatalf("got %+v, %v", p, err)
		}
		if err := s.FlushUse(ctx); err != nil {
			t.Fatal(err)
		}
		unused, other := token(t, s, admin, alice)
		used := map[string]bool{} // by id
		for after := ""; ; {
			list, next, err := s.Tokens(ctx, alice, alice.ID, after, 1)
			if err != nil || len(list) != 1 || next != "" && next != list[0].ID {
				t.Fatalf("listed %+v, %q, %v", list, next, err)
			}
			used[list[0].ID] = !list[0].LastUsed.IsZero()
			if after = next; next == "" {
				break
			}
		}
		if len(used) != 2 || !used[first.ID] || used[unused.ID] {
			t.Fatalf("listed %v", used)
		}
		if _, _, err := s.Tokens(ctx, bob, alice.ID, "", 1); !fault.Is(err, fault.Denied) {
			t.Fatalf("listed by another: %v", err)
		}
		if err := s.DeleteToken(ctx, bob, first.ID, once.Call{}); !fault.Is(err, fault.NotFound) {
			t.Fatalf("deleted by another: %v", err)
		}
		if err := s.DeleteToken(ctx, alice, first.ID, once.Call{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Authenticate(ctx, text); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("a deleted token: %v", err)
		}
		if _, err := s.Authenticate(ctx, other); err != nil {
			t.Fatal(err)
		}
		if n, err := s.PruneTokens(ctx, time.Now().Add(2*time.Hour), 10); err != nil || n != 1 {
			t.Fatalf("pruned %d, %v", n, err)
		}
	})
}

// The text of a token is nowhere in the database, and everything wrong with one has the same answer.
func TestTokensAreStoredAsHashesAndRefusedAlike(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		_, text := token(t, s, admin, alice)
		err := d.Read(ctx, func(tx *db.Tx) error {
			tables, err := db.Tables(ctx, tx)
			if err != nil {
				return err
			}
			rows := 0
			for _, table := range tables {
				for row, err := range table.Rows(ctx, tx) {
					if err != nil {
						return err
					}
					rows++
					for _, v := range row {
						stored := fmt.Sprint(v)
						if b, ok := v.([]byte); ok {
							stored = string(b)
						}
						if strings.Contains(stored, text[4:30]) {
							t.Errorf("table %s has the token in it", table.Name)
						}
					}
				}
			}
			if rows < 5 {
				t.Errorf("only %d rows were searched", rows)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		_, expired := token(t, s, admin, alice)
		hash, _ := access.Hashed(expired)
		run(t, d, `UPDATE access_token SET expires = $1 WHERE hash = $2`, db.Micros(time.Now())-1, hash[:])
		_, orphan := token(t, s, admin, alice)
		hash, _ = access.Hashed(orphan)
		run(t, d, `UPDATE access_token SET principal_id = 'nobody' WHERE hash = $1`, hash[:])
		yes := true
		disabled := create(t, s, admin, "carol", access.KindOperator, access.Operator)
		_, hers := token(t, s, admin, disabled)
		if _, err := s.UpdatePrincipal(ctx, admin, disabled.ID, access.Change{Disabled: &yes}, once.Call{}); err != nil {
			t.Fatal(err)
		}
		var answers []string
		for _, wrong := range []string{"", "chy_", access.NewTokenText(), text[:len(text)-1], text + "A", strings.ToUpper(text), expired, orphan, hers,
			"chy_" + strings.Repeat("A", 48), "' OR 1=1 --", strings.Repeat("x", 1<<20)} {
			_, err := s.Authenticate(ctx, wrong)
			if !fault.Is(err, fault.Unauthenticated) {
				t.Fatalf("%.60q: %v", wrong, err)
			}
			answers = append(answers, err.Error())
		}
		if slices.Sort(answers); len(slices.Compact(answers)) != 1 {
			t.Fatalf("the answers differ: %q", answers)
		}
		if _, err := s.Authenticate(ctx, text); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add(access.NewTokenText())
	f.Add("chy_" + strings.Repeat("A", 48))
	f.Add("chy_" + strings.Repeat("A", 44) + "\r\n==")
	f.Fuzz(func(t *testing.T, text string) {
		hash, ok := access.Hashed(text)
		if !ok {
			if hash != [32]byte{} {
				t.Fatal("a hash of no token")
			}
			return
		}
		if len(text) != 52 || !strings.HasPrefix(text, "chy_") || strings.ContainsAny(text, "\r\n= ") {
			t.Fatalf("%q passed", text)
		}
		// One token has one text: no change of a letter is another text of it.
		for i := range len(text) {
			changed := []byte(text)
			changed[i] ^= 1
			if again, ok := access.Hashed(string(changed)); ok && again == hash {
				t.Fatalf("%q and %q are one token", text, changed)
			}
		}
	})
}

func TestTokenTexts(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		text := access.NewTokenText()
		if _, ok := access.Hashed(text); !ok || seen[text] {
			t.Fatalf("%q is no new token", text)
		}
		seen[text] = true
		mistyped := []byte(text)
		at := 4 + int(randomByte(t))%48
		if mistyped[at] = 'A'; bytes.Equal(mistyped, []byte(text)) {
			mistyped[at] = 'B'
		}
		if _, ok := access.Hashed(string(mistyped)); ok {
			t.Fatalf("%q passed, mistyped at %d", mistyped, at)
		}
	}
	files, err := os.ReadDir("testdata/fuzz/FuzzToken")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files of corpus, %v", len(files), err)
	}
}

func randomByte(t *testing.T) byte {
	t.Helper()
	var b [1]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

func TestTokensAreHiddenWhereTheyDoNotBelong(t *testing.T) {
	text := access.NewTokenText()
	for _, c := range [][2]string{
		{"/api/v1/tokens/" + text, "/api/v1/tokens/chy_[redacted]"},
		{"there is no token " + text[:20] + "…", "there is no token chy_[redacted]…"},
		{text + "," + text, "chy_[redacted],chy_[redacted]"},
		{"/api/v1/operators/bob", "/api/v1/operators/bob"},
		{"chy_", "chy_"},
		{"/api/v1/hosts/chancery-join-1.eyJhIjoiaHR0cHM6Ly94In0", "/api/v1/hosts/chancery-join-1.[redacted]"},
	} {
		if got := access.Redact(c[0]); got != c[1] {
			t.Errorf("%q becomes %q", c[0], got)
		}
	}
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		err := newStore(t, d, "n1").DeleteToken(t.Context(), access.System("test"), text, once.Call{})
		if !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), text) {
			t.Errorf("a secret for an ID: %v", err)
		}
	})
}

// TestStolenTokenMakesNoneThatOutlastsIt has a token's holder make others, by the token and by a certificate.
func TestStolenTokenMakesNoneThatOutlastsIt(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		_, text := token(t, s, admin, alice) // an hour
		_, adminText := token(t, s, admin, admin)
		by, err := s.Authenticate(ctx, text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.CreateToken(ctx, by, access.TokenOrder{Principal: alice.ID, Life: 2 * time.Hour}); !fault.Is(err, fault.Denied) {
			t.Errorf("a token that outlasts its maker: %v", err)
		}
		if _, _, err := s.CreateToken(ctx, by, access.TokenOrder{Principal: alice.ID, Life: 30 * time.Minute}); err != nil {
			t.Errorf("a shorter one: %v", err)
		}
		if _, _, err := s.CreateToken(ctx, alice, access.TokenOrder{Principal: alice.ID, Life: 2 * time.Hour}); err != nil {
			t.Errorf("by a certificate: %v", err)
		}
		byAdmin, err := s.Authenticate(ctx, adminText)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.CreateToken(ctx, byAdmin, access.TokenOrder{Principal: alice.ID, Life: 2 * time.Hour}); err != nil {
			t.Errorf("by an administrator's: %v", err)
		}
	})
}

// TestFirstUseOfATokenShowsAtOnce: for five minutes it was listed as never used, as if its secret had gone astray.
func TestFirstUseOfATokenShowsAtOnce(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		alice := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		_, text := token(t, s, admin, alice)
		if _, err := s.Authenticate(ctx, text); err != nil {
			t.Fatal(err)
		}
		deadline := time.After(time.Minute)
		for used := false; !used; {
			list, _, err := s.Tokens(ctx, alice, alice.ID, "", 10)
			if err != nil || len(list) != 1 {
				t.Fatalf("listed %+v, %v", list, err)
			}
			used = !list[0].LastUsed.IsZero()
			select {
			case <-deadline:
				t.Fatal("its use never showed")
			case <-time.After(5 * time.Millisecond):
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestTokenLimitIsSaidInDays: the refusal said "from 1m to 8784h0m0s can be had".
func TestTokenLimitIsSaidInDays(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := newStore(t, d, "n1")
		admin := bootstrap(t, d, s)
		p := create(t, s, admin, "alice", access.KindOperator, access.Operator)
		_, _, err := s.CreateToken(t.Context(), admin, access.TokenOrder{Principal: p.ID, Life: 367 * 24 * time.Hour})
		if want := "a token that is valid for 367d was asked for; from 1m to 366d can be had"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	})
}
