package pool_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestSuccessorsHaveNamesOfTheirOwn: neither a name nor a subject is used twice, however long the pool's name is.
func TestSuccessorsHaveNamesOfTheirOwn(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		s := authority(t, d)
		ctx, by := t.Context(), access.System("n1")
		long := strings.Repeat("w", 56)
		constraints := []string{"+dns:example.com", "!ip:10.0.0.0/8"}
		for _, spec := range []pool.Spec{{Name: "web", Online: true, Algorithm: keyfile.ECDSAP384, Constraints: constraints}, {Name: long, Online: true}, {Name: "web-2", Online: true}} {
			if _, err := s.Pools.Add(ctx, by, "", spec); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"web", long} {
			seen := map[string]bool{}
			for range 3 {
				next, err := s.Pools.PlanSuccessor(ctx, name, true, true)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // the second call finds what the first one made
					if err := s.Pools.MakeSuccessor(ctx, by, name, next, pool.SuccessorSpec{Key: "k" + next.Issuer, Validity: 10 * 365 * 24 * time.Hour}); err != nil {
						t.Fatal(err)
					}
				}
				for _, made := range []string{next.Root, next.Issuer} {
					i, err := s.CA.Issuer(ctx, made)
					if err != nil {
						t.Fatal(err)
					}
					if subject := i.Certificate.Subject.String(); len(made) > 63 || seen[made] || seen[subject] || i.Pool != name || i.Default || made == "web-2" {
						t.Errorf("issuer %q of pool %q with the subject %q", made, i.Pool, subject)
					} else {
						seen[made], seen[subject] = true, true
					}
				}
			}
		}
		next, err := s.Pools.PlanSuccessor(ctx, "web", false, false)
		if err != nil || next.Parent != "web-root" || next.Outside || next.Root != "" {
			t.Fatalf("below the same root: %+v, %v", next, err)
		}
		made, err := s.CA.Issuer(ctx, "web-root-3")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := root.ConstraintsOf(made.Certificate); err != nil || !slices.Equal(got, constraints) {
			t.Errorf("the new root has the constraints %q, %v", got, err)
		}
		if got := keyfile.AlgorithmOf(made.Certificate.PublicKey); got != keyfile.ECDSAP384 {
			t.Errorf("the new root's key is %s", got)
		}
		if _, err := s.Pools.PlanSuccessor(ctx, "nosuch", true, true); !fault.Is(err, fault.NotFound) {
			t.Errorf("of no pool: %v", err)
		}
	})
}
