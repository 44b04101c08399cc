package revocation

import (
	"context"
	"os"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
	"chancery/internal/store/token"
)

// library is a PKCS #11 library in front of a token that holds the keys of issuers, and hangs when it is told to.
type library struct {
	t    *testing.T
	path string
}

// withToken gives an office two issuers whose keys lie in one token.
func withToken(t *testing.T, o *office) (in [2]*ca.Issuer, l library) {
	t.Helper()
	soft := pkitest.NewSoftHSM(t)
	l = library{t, pkitest.HostileLibrary(t)}
	pins := soft.Init("lists", "4711-Secret")
	// Neither is a helper taken for hung while the test lasts, nor does a signature come to the end of its own bound, however slow the machine.
	tokens := token.New(token.Options{Node: "node-a", Dir: t.TempDir(), Helper: pkitest.TokenHelper(t), Answer: 10 * time.Minute,
		Places: []token.Place{{Token: "lists", Module: l.path, PINFile: pins}}})
	t.Cleanup(func() { l.mode(""); must(t, tokens.Close()) })
	o.keys.UseTokens(tokens)
	for i, name := range []string{"first", "second"} {
		soft.Generate("lists", "4711-Secret", "EC:prime256v1", name, "0"+string(rune('1'+i)))
		var err error
		in[i], _, err = o.ca.CreateIssuer(t.Context(), o.by, ca.IssuerSpec{Name: name, Subject: "CN=" + name, Token: "pkcs11:token=lists;object=" + name})
		must(t, err)
		_, err = o.keys.SignerFor(t.Context(), in[i].KeyID, in[i].Certificate) // opened, so it is the signature of the list that hangs
		must(t, err)
	}
	return in, l
}

func (l library) mode(line string) {
	l.t.Helper()
	must(l.t, os.WriteFile(l.path+".mode", []byte(line), 0o600))
}

// signs is how often it was asked to sign.
func (l library) signs() int {
	l.t.Helper()
	text, err := os.ReadFile(l.path + ".signs")
	must(l.t, err)
	return len(text)
}

// TestLongListsAtATokenThatHangs: the first list of an issuer is the long loop's. That of an issuer in software is made while a token hangs, and
// of the two issuers in that one alone stands there, whatever is looked at meanwhile.
func TestLongListsAtATokenThatHangs(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		o := newOffice(t, d, ca.CRLMode{}, nil)
		in, l := withToken(t, o)
		w := newWorker(o.service, o.lease(), true)
		l.mode("hang-sign")
		before := l.signs()
		for o.none("one") || l.signs() == before { // the token's may come first, or last
			pass(t, w)
		}
		for range 3 {
			pass(t, w)
		}
		if n := l.signs() - before; n != 1 || len(w.busy) != 1 {
			t.Fatalf("%d signatures are asked of a token that hangs, and in %d places lists take long", n, len(w.busy))
		}
		l.mode("")
		await(t, "the lists of both issuers in the token", func() bool {
			must(t, w.once(t.Context(), time.Now()))
			return !o.none(in[0].Name) && !o.none(in[1].Name)
		})
		if len(w.busy)+len(w.failing) > 0 {
			t.Fatalf("busy %v, failing %v", w.busy, w.failing)
		}
	})
}

// pass has a loop make what is due, and does not wait for a token that hangs.
func pass(t *testing.T, w *worker) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- w.once(t.Context(), time.Now().Add(2*look)) }()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(time.Minute):
		t.Fatal("a pass waits for the token's signature")
	}
	if len(w.failing) > 0 {
		t.Fatalf("failing %+v", w.failing)
	}
}

// none says that an issuer has no complete list.
func (o *office) none(issuer string) bool {
	_, err := o.service.Current(o.t.Context(), issuer, Complete)
	return err != nil
}

// TestLeaseOfAHolderWhoseTokenHangs: it is handed over, and let go of at the end, while a signature hangs; another node signs meanwhile.
func TestLeaseOfAHolderWhoseTokenHangs(t *testing.T) {
	url := pkitest.URL(t, db.Postgres)
	a := newOffice(t, pkitest.Open(t, db.Options{URL: url}), ca.CRLMode{}, nil)
	_, l := withToken(t, a)
	b := node(t, pkitest.Open(t, db.Options{URL: url}), "node-b", t.TempDir(), a)
	b.issuer = a.issuer
	_, err := a.keys.Rewrap(t.Context(), "node-b", "test")
	must(t, err)
	l.mode("hang-sign")
	before := l.signs()
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.service.Run(ctx) }()
	a.list(Complete, func(*crl.List) bool { return true })
	await(t, "the token is asked to sign", func() bool { return l.signs() > before })
	signed := make(chan struct{})
	go func() { a.service.running.Wait(); close(signed) }()
	end()
	await(t, "the lease is let go of", func() bool {
		all, err := b.db.Leases(t.Context())
		must(t, err)
		return len(all) == 1 && !all[0].Released.IsZero() // and has not merely come to its end
	})
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the holder does not end while its token hangs")
	}
	select {
	case <-signed:
		t.Fatal("the token does not hang any more")
	default:
	}
	b.run()
	c := b.issue("meanwhile.example")
	b.revoke(c, crl.Superseded)
	b.list(Complete, has(c.SerialNumber, crl.Superseded))
	l.mode("")
	<-signed
}
