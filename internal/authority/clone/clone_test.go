package clone_test

import (
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
)

// TestJoin follows a machine from its invitation to a node that signs with the authority's keys, and that takes in a third.
func TestJoin(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	token := a.invite()
	if token.Address != "https://one.test:8443" { // the node's, and not the authority's, which may lead to a machine that is lost
		t.Errorf("the token leads to %s", token.Address)
	}
	m := a.machine("n2", token)
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	if again, err := a.Clones.Join(ctx, m.in); err != nil || again.Fingerprint != waits.Fingerprint || again.State != client.CloneWaiting {
		t.Fatalf("asked again: %+v, %v", again, err)
	}
	if n := a.count(`SELECT COUNT(*) FROM key_wrap WHERE recipient_id = 'n2'`); n != 0 {
		t.Fatalf("a node that waits has %d wraps", n)
	}
	two := a.open(m)
	refused(t, two.Clones.Register(ctx, m.in.Address, time.Now()), fault.Denied, "has not approved it yet")

	other := strings.Repeat("0", 64)
	_, err = a.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: other})
	refused(t, err, fault.Conflict, "begins with "+waits.Fingerprint[:8], other)
	spelt := strings.ToUpper(waits.Fingerprint[:32]) + " " + waits.Fingerprint[32:48] + ":" + waits.Fingerprint[48:]
	shown, err := a.Clones.Approve(ctx, a.admin, "n2", client.CloneApproval{Fingerprint: spelt})
	must(t, err)
	if shown.State != client.CloneActive || shown.Ready || !strings.Contains(strings.Join(shown.NotReady, ""), "not started") {
		t.Fatalf("approved as %+v", shown)
	}
	joined, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	crt := leaf(t, joined.Certificate)
	if joined.State != client.CloneActive || crt.Subject.CommonName != "n2" || !slices.Contains(crt.DNSNames, "n2.test") || joined.RecipientList < 2 ||
		!strings.Contains(joined.AuditKeys, "PUBLIC KEY") {
		t.Fatalf("joined as %+v, %v", joined, crt.DNSNames)
	}
	who, err := a.Access.AuthenticateCertificate(ctx, must1(t)(a.Identity.Issuers(ctx))[0], crt.RawSubjectPublicKeyInfo)
	if err != nil || who.Kind != access.KindNode || len(who.Roles) != 0 {
		t.Fatalf("its certificate proves %+v, %v", who, err)
	}

	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{Release: "r2"}, time.Now()))
	all, _, err := a.Clones.List(ctx, a.admin, "", 10)
	must(t, err)
	if len(all) != 2 || !all[0].Self || !all[1].Ready || all[1].Release != "r2" || all[1].Keys.Open != all[1].Keys.Entitled || all[1].Keys.Open < 5 {
		t.Fatalf("listed: %+v", all)
	}
	if findings, seen, err := two.Keys.Check(ctx, a.recovery); err != nil || len(findings) > 0 || seen.Opened < 10 {
		t.Fatalf("the second node finds %+v, %+v, %v", findings, seen, err)
	}

	// A clone of a clone: the second takes in a third, which the first never heard of, and the first wraps to it.
	a2 := &authority{Services: two, t: t, url: a.url, anchors: a.anchors, admin: a.admin}
	_, three := a2.join("n3")
	must(t, a.DB.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM key_wrap WHERE recipient_id = 'n3'`)
		return err
	}))
	must(t, a.Clones.Finish(ctx, time.Now()))
	if open, err := three.Keys.Openable(ctx); err != nil || open.Open != open.Entitled || open.Open < 5 {
		t.Fatalf("the third node opens %+v, %v", open, err)
	}
}

func must1(t *testing.T) func(v []string, err error) []string {
	return func(v []string, err error) []string {
		t.Helper()
		must(t, err)
		return v
	}
}

// TestOCSPOnly looks into the table of wraps: a node that answers OCSP requests only has none of an issuer's key, nor of the audit's.
func TestOCSPOnly(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	key := a.responderKey()
	m, two := a.join("o1", "ocsp")
	wraps := `SELECT COUNT(*) FROM key_wrap JOIN sealed_key ON id = key_id WHERE recipient_id = 'o1' AND purpose `
	if n, own := a.count(wraps+`<> 'ocsp'`), a.count(wraps+`= 'ocsp'`); n != 0 || own == 0 {
		t.Fatalf("it has %d wraps of issuers and the audit, and %d of responders", n, own)
	}
	if _, err := two.Keys.Signer(ctx, key); err != nil {
		t.Fatal(err)
	}
	// A key that is made later is not wrapped to it either, whatever the database says of its subsystems.
	a.exec(`UPDATE key_recipient SET subsystems = 'ca,ocsp' WHERE id = 'o1'`)
	a.exec(`UPDATE node SET subsystems = 'ca,ocsp' WHERE name = 'o1'`)
	if _, err := a.Keys.Rewrap(ctx, "o1", "test"); !fault.Is(err, fault.Conflict) {
		t.Fatalf("a node that was made more in the database: %v", err)
	}
	if err := a.Clones.Finish(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := a.count(wraps + `<> 'ocsp'`); n != 0 {
		t.Fatalf("it got %d wraps", n)
	}
	a.exec(`UPDATE key_recipient SET subsystems = 'ocsp' WHERE id = 'o1'`)
	a.exec(`UPDATE node SET subsystems = 'ocsp' WHERE name = 'o1'`)

	// It can approve nobody, and says who can.
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	_, err := two.Clones.Approve(ctx, a.admin, "o1", client.CloneApproval{})
	refused(t, err, fault.Conflict, "runs ocsp only; ca runs on n1 at https://one.test:8443")

	// It cannot be certified for where tokens are sent.
	for _, name := range []string{"dns:one.test", "dns:PKI.test"} {
		bad := a.machine("o2", a.invite("ocsp"))
		bad.in.Names = []string{name}
		_, err := a.Clones.Join(ctx, bad.in)
		refused(t, err, fault.Denied, "is where clients reach")
	}
}

// TestRefusedBeforeAnythingIsMade tries what a machine should not say of itself.
func TestRefusedBeforeAnythingIsMade(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	token := a.invite()
	stranger := a.machine("x", &client.CloneToken{Secret: "s3cret"})
	_, wrong := a.Clones.Join(ctx, stranger.in)
	refused(t, wrong, fault.Denied, "not of this authority, was used by another machine")
	ended := a.invite()
	a.exec(`UPDATE node_invitation SET expires_at = 1 WHERE id = (SELECT MAX(id) FROM node_invitation)`)
	late := a.machine("x", ended)
	if _, err := a.Clones.Join(ctx, late.in); err == nil || err.Error() != wrong.Error() {
		t.Fatalf("an ended token is told apart from a wrong one: %v", err)
	}

	good := a.machine("n2", token)
	der := a.machine("n2", token)
	for what, c := range map[string]struct {
		change func(in *client.CloneJoin)
		kind   fault.Kind
		says   string
	}{
		"no name":           {func(in *client.CloneJoin) { in.Name = "" }, fault.Invalid, "1 to 54"},
		"a hostile name":    {func(in *client.CloneJoin) { in.Name = "x\r\nSet-Cookie: a" }, fault.Invalid, "a-z, 0-9"},
		"a path":            {func(in *client.CloneJoin) { in.Name = "../../etc" }, fault.Invalid, "a-z, 0-9"},
		"capitals":          {func(in *client.CloneJoin) { in.Name = "N2" }, fault.Invalid, "a-z, 0-9"},
		"a long name":       {func(in *client.CloneJoin) { in.Name = strings.Repeat("a", 55) }, fault.Invalid, "1 to 54"},
		"the enroller":      {func(in *client.CloneJoin) { in.Name = "identity" }, fault.Invalid, "of the authority's own"},
		"a recovery":        {func(in *client.CloneJoin) { in.Name = "recovery-1" }, fault.Invalid, "of the authority's own"},
		"a name that is":    {func(in *client.CloneJoin) { in.Name = "n1" }, fault.Conflict, "no name is given twice"},
		"an hour ahead":     {func(in *client.CloneJoin) { in.Time = in.Time.Add(time.Hour) }, fault.Conflict, "1h0m0s apart"},
		"an hour behind":    {func(in *client.CloneJoin) { in.Time = in.Time.Add(-time.Hour) }, fault.Conflict, "the authority's says"},
		"an old program":    {func(in *client.CloneJoin) { in.Schema = 3 }, fault.Conflict, "needs one that knows"},
		"a new program":     {func(in *client.CloneJoin) { in.Schema += 7 }, fault.Conflict, "would change the database under the nodes there are"},
		"plain http":        {func(in *client.CloneJoin) { in.Address = "http://n2.test" }, fault.Invalid, "https://HOST:PORT"},
		"a user":            {func(in *client.CloneJoin) { in.Address = "https://u:p@n2.test" }, fault.Invalid, "another form"},
		"a path behind":     {func(in *client.CloneJoin) { in.Address = "https://n2.test/x" }, fault.Invalid, "another form"},
		"everywhere":        {func(in *client.CloneJoin) { in.Address = "https://0.0.0.0:1" }, fault.Invalid, "nobody reaches"},
		"a wild host":       {func(in *client.CloneJoin) { in.Address = "https://*.test" }, fault.Invalid, "no host name"},
		"a port":            {func(in *client.CloneJoin) { in.Address = "https://n2.test:99999" }, fault.Invalid, "port"},
		"another sort":      {func(in *client.CloneJoin) { in.Names = []string{"email:a@b.test"} }, fault.Invalid, "neither dns:NAME"},
		"a wildcard":        {func(in *client.CloneJoin) { in.Names = []string{"dns:*.test"} }, fault.Invalid, "neither dns:NAME"},
		"no key":            {func(in *client.CloneJoin) { in.PublicKey = "age1x" }, fault.Invalid, "age X25519"},
		"no request":        {func(in *client.CloneJoin) { in.CSR = "x" }, fault.Invalid, ""},
		"a foreign request": {func(in *client.CloneJoin) { in.CSR = tampered(t, in.CSR) }, fault.Invalid, "proof of possession"},
		"a weak key":        {func(in *client.CloneJoin) { in.CSR = weak(t) }, fault.Invalid, ""},
		"one key for two":   {func(in *client.CloneJoin) { in.DatabaseCSR = in.CSR }, fault.Invalid, "each has its own"},
		"a long release":    {func(in *client.CloneJoin) { in.Release = "\x1b[2J" }, fault.Invalid, "printable"},
	} {
		in := der.in
		in.Time = time.Now()
		c.change(&in)
		_, err := a.Clones.Join(ctx, in)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM node`); n != 1 {
		t.Fatalf("%d nodes are known", n)
	}

	// The token is as good as it was. Once it is used, it is its machine's.
	_, err := a.Clones.Join(ctx, good.in)
	must(t, err)
	for range 12 {
		in := der.in
		_, err := a.Clones.Join(ctx, in)
		if err == nil || err.Error() != wrong.Error() {
			t.Fatalf("another key under a used token: %v", err)
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM audit_event WHERE action = 'clone.join-refused'`); n != 10 {
		t.Fatalf("the audit has %d refusals", n)
	}
	renamed := good.in
	renamed.Name = "n9"
	if _, err := a.Clones.Join(ctx, renamed); err == nil || err.Error() != wrong.Error() {
		t.Fatalf("another name under a used token: %v", err)
	}
}

// tampered is a request whose signature is not its own.
func tampered(t *testing.T, text string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	block.Bytes[len(block.Bytes)-1] ^= 1 // of the signature's last number, so that the request is one still
	return string(pem.EncodeToMemory(block))
}

func TestWhoMay(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m := a.machine("n2", a.invite())
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	for _, role := range []access.Role{access.Officer, access.Operator, access.Auditor} {
		p, err := a.Access.CreatePrincipal(ctx, access.System("n1"), access.Principal{Name: string(role), Kind: access.KindOperator, Roles: []access.Role{role}}, once.Call{})
		must(t, err)
		_, err = a.Clones.Invite(ctx, p, client.CloneInvitation{}, "")
		refused(t, err, fault.Denied)
		_, err = a.Clones.Approve(ctx, p, "n2", client.CloneApproval{Fingerprint: waits.Fingerprint})
		refused(t, err, fault.Denied)
		_, err = a.Clones.Leave(ctx, p, "n1", once.Call{})
		refused(t, err, fault.Denied)
		refused(t, a.Clones.Remove(ctx, p, "n2", clone.Removal{Force: true}, once.Call{}), fault.Denied)
		_, err = a.Clones.RenewIdentity(ctx, p, client.CloneIdentity{CSR: m.in.CSR}, "")
		refused(t, err, fault.Denied, "is no node")
	}
	for _, in := range []client.CloneInvitation{{Subsystems: []string{"kra"}}, {Subsystems: []string{"ca"}}, {Subsystems: []string{"ca", "ca"}}, {Life: "1s"}, {Life: "8d"}, {Life: "soon"}} {
		_, err := a.Clones.Invite(ctx, a.admin, in, "")
		refused(t, err, fault.Invalid)
	}
}

// TestDurability holds both ways to two nodes on a database that nobody vouches for shut.
func TestDurability(t *testing.T) {
	t.Parallel()
	a, ctx := newLocal(t, pkitest.URL(t, db.Postgres)), t.Context()
	_, err := a.Clones.Invite(ctx, a.admin, client.CloneInvitation{}, "")
	refused(t, err, fault.Conflict, "durability is local")
	must(t, a.set("durability", "provider"))
	m := a.machine("n2", a.invite())
	must(t, a.set("durability", "local"))
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	approval := client.CloneApproval{Fingerprint: waits.Fingerprint}
	_, err = a.Clones.Approve(ctx, a.admin, "n2", approval)
	refused(t, err, fault.Conflict, "durability is local")
	if n := a.count(`SELECT (SELECT COUNT(*) FROM key_recipient WHERE id = 'n2') + (SELECT COUNT(*) FROM principal WHERE kind = 'node' AND name = 'node/n2')`); n != 0 {
		t.Fatal("what was refused left something behind")
	}
	must(t, a.set("durability", "provider"))
	_, err = a.Clones.Approve(ctx, a.admin, "n2", approval)
	must(t, err)
	refused(t, a.set("durability", "local"), fault.Conflict, "while the authority has 2 nodes")
	must(t, a.set("organization", "Other"))
}

func TestSQLiteHasOneNode(t *testing.T) {
	t.Parallel()
	a := newLocal(t, pkitest.URL(t, db.SQLite))
	_, err := a.Clones.Invite(t.Context(), a.admin, client.CloneInvitation{}, "")
	refused(t, err, fault.Conflict, "SQLite")
	all, _, err := a.Clones.List(t.Context(), a.admin, "", 10)
	if err != nil || len(all) != 1 || all[0].State != client.CloneActive {
		t.Fatalf("%+v, %v", all, err)
	}
	_, err = a.Clones.Leave(t.Context(), a.admin, "n1", once.Call{})
	refused(t, err, fault.Conflict, "is the last that runs ca")
}

// TestTwoAdministrators approve, and one of them refuses, at once: one act each, and one node.
func TestTwoAdministrators(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.join("n2")
	m := a.machine("n3", a.invite())
	waits, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	approval := client.CloneApproval{Fingerprint: waits.Fingerprint}
	errs := make(chan error, 4)
	for _, s := range []*clone.Service{a.Clones, two.Clones, a.Clones, two.Clones} {
		go func() {
			_, err := s.Approve(ctx, a.admin, "n3", approval)
			errs <- err
		}()
	}
	for range 4 {
		must(t, <-errs)
	}
	for query, want := range map[string]int64{
		`SELECT COUNT(*) FROM audit_event WHERE action = 'clone.approve' AND object = 'n3'`:                       1,
		`SELECT COUNT(*) FROM principal WHERE name = 'node/n3'`:                                                   1,
		`SELECT COUNT(*) FROM certificate WHERE subject = 'CN=n3'`:                                                1,
		`SELECT MAX(version) FROM recipient_list`:                                                                 3,
		`SELECT COUNT(*) FROM sealed_key WHERE id NOT IN (SELECT key_id FROM key_wrap WHERE recipient_id = 'n3')`: 0,
	} {
		if n := a.count(query); n != want {
			t.Errorf("%s: %d", query, n)
		}
	}
}

// TestRemoved takes a node out that runs on, with all that it had, and with a hand in the database that puts its rows back.
func TestRemoved(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	_, two := a.join("n2")
	m, three := a.join("n3")
	must(t, three.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, three.Clones.Report(ctx, clone.Self{}, time.Now()))
	joined, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	crt := leaf(t, joined.Certificate)
	issuer := must1(t)(a.Identity.Issuers(ctx))[0]
	must(t, a.Identity.Good(ctx, issuer, crt.SerialNumber))
	if _, ok, err := three.DB.Acquire(ctx, audit.Lease, "n3", time.Hour); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for _, table := range []string{"key_recipient", "key_endorsement", "node", "recipient_list"} {
		a.exec(`CREATE TABLE kept_` + table + ` AS SELECT * FROM ` + table)
	}

	must(t, three.Clones.Report(ctx, clone.Self{}, time.Now()))
	refused(t, a.Clones.Remove(ctx, a.admin, "n3", clone.Removal{}, once.Call{}), fault.Conflict, "was seen")
	refused(t, a.Clones.Remove(ctx, a.admin, "n1", clone.Removal{Force: true}, once.Call{}), fault.Conflict, "to remove itself")
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, a.Clones.Remove(ctx, a.admin, "n3", clone.Removal{Force: true}, once.Call{}))
	refused(t, a.Clones.Remove(ctx, a.admin, "n3", clone.Removal{Force: true}, once.Call{}), fault.Conflict, "has been gone since")

	// It is nobody, has nothing, and writes nothing.
	if err := a.Identity.Good(ctx, issuer, crt.SerialNumber); err == nil {
		t.Error("its identity is good still")
	}
	if n := a.count(`SELECT COUNT(*) FROM certificate WHERE subject = 'CN=n3' AND state = 'revoked'`); n != 1 {
		t.Errorf("%d of its certificates are revoked", n)
	}
	if n := a.count(`SELECT (SELECT COUNT(*) FROM key_wrap WHERE recipient_id = 'n3') + (SELECT COUNT(*) FROM key_recipient WHERE id = 'n3')`); n != 0 {
		t.Error("it has wraps")
	}
	if l, ok, err := a.DB.Acquire(ctx, audit.Lease, "n1", time.Minute); err != nil || !ok {
		t.Errorf("its lease is not free: %+v, %v", l, err)
	}
	if err := three.Clones.Report(ctx, clone.Self{}, time.Now()); !clone.Ended(err) || !strings.Contains(err.Error(), "left or was removed") {
		t.Errorf("it reports: %v", err)
	}
	if err := three.Clones.Registered(ctx); !clone.Ended(err) {
		t.Errorf("it goes on: %v", err)
	}
	refused(t, three.Clones.Register(ctx, m.in.Address, time.Now()), fault.Denied, "left or was removed")
	if again, err := a.Clones.Join(ctx, m.in); err != nil || again.State != client.CloneGone || len(again.Certificate) > 0 {
		t.Errorf("it asks again: %+v, %v", again, err)
	}
	fresh := a.machine("n3", a.invite())
	_, err = a.Clones.Join(ctx, fresh.in)
	refused(t, err, fault.Conflict, "no name is given twice")

	// Whoever can write to the database puts back what was there: it gets no wrap, not even with the list that named it.
	a.exec(`DELETE FROM node WHERE name = 'n3'`)
	for _, table := range []string{"key_recipient", "key_endorsement", "node"} {
		a.exec(`INSERT INTO ` + table + ` SELECT * FROM kept_` + table + ` ON CONFLICT DO NOTHING`)
	}
	for what, s := range map[string]*keys.Store{"the one that removed it": a.Keys, "another": two.Keys} {
		if _, err := s.Rewrap(ctx, "n3", "test"); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s wraps to a node that was removed: %v", what, err)
		}
	}
	_ = a.Clones.Finish(ctx, time.Now())
	a.exec(`DELETE FROM recipient_list WHERE version = (SELECT MAX(version) FROM recipient_list)`)
	for what, s := range map[string]*keys.Store{"the one that removed it": a.Keys, "another": two.Keys} {
		if _, err := s.Rewrap(ctx, "n3", "test"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "this node has seen") {
			t.Errorf("%s takes an old list: %v", what, err)
		}
	}
	if n := a.count(`SELECT COUNT(*) FROM key_wrap WHERE recipient_id = 'n3'`); n != 0 {
		t.Errorf("it got %d wraps", n)
	}
}

// TestLeave has nodes leave, but not the last.
func TestLeave(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, two := a.join("n2")
	_, err := a.Clones.Leave(ctx, a.admin, "n1", once.Call{})
	refused(t, err, fault.Conflict, "no other node that runs ca was seen")
	must(t, two.Clones.Register(ctx, m.in.Address, time.Now()))
	must(t, a.Clones.Report(ctx, clone.Self{}, time.Now()))
	must(t, two.Clones.Report(ctx, clone.Self{}, time.Now()))
	joined, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	self, err := a.Access.AuthenticateCertificate(ctx, must1(t)(a.Identity.Issuers(ctx))[0], leaf(t, joined.Certificate).RawSubjectPublicKeyInfo)
	must(t, err)
	_, err = two.Clones.Leave(ctx, self, "n1", once.Call{}) // a node asks for itself only
	refused(t, err, fault.Denied)
	left, err := two.Clones.Leave(ctx, self, "n2", once.Call{})
	must(t, err)
	if left.State != client.CloneLeaving {
		t.Fatalf("it is %+v", left)
	}
	if err := two.Clones.Report(ctx, clone.Self{Stopped: true}, time.Now()); !clone.Ended(err) {
		t.Fatalf("it goes on: %v", err)
	}
	must(t, a.Clones.Finish(ctx, time.Now()))
	gone, err := a.Clones.Show(ctx, a.admin, "n2")
	if err != nil || gone.State != client.CloneGone || gone.Ready {
		t.Fatalf("it is %+v, %v", gone, err)
	}
	_, err = a.Clones.Leave(ctx, a.admin, "n1", once.Call{})
	refused(t, err, fault.Conflict, "is the last that runs ca")
	if list, err := a.Keys.NewestList(ctx); err != nil || len(list.Recipients) != 2 {
		t.Fatalf("the list is %+v, %v", list, err)
	}
}

// TestRenewIdentity has a node that cannot issue get its next certificate, and one that is gone get none.
func TestRenewIdentity(t *testing.T) {
	t.Parallel()
	a, ctx := newAuthority(t), t.Context()
	m, _ := a.join("o1", "ocsp")
	joined, err := a.Clones.Join(ctx, m.in)
	must(t, err)
	issuer := must1(t)(a.Identity.Issuers(ctx))[0]
	self, err := a.Access.AuthenticateCertificate(ctx, issuer, leaf(t, joined.Certificate).RawSubjectPublicKeyInfo)
	must(t, err)
	next := a.machine("o1", &client.CloneToken{})
	renewed, err := a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR}, "k")
	must(t, err)
	again, err := a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR}, "k")
	must(t, err)
	if !slices.Equal(renewed.Certificate, again.Certificate) || leaf(t, renewed.Certificate).Subject.CommonName != "o1" {
		t.Fatal("a repeated call got another certificate")
	}
	if who, err := a.Access.AuthenticateCertificate(ctx, issuer, leaf(t, renewed.Certificate).RawSubjectPublicKeyInfo); err != nil || who.ID != self.ID {
		t.Fatalf("it proves %+v, %v", who, err)
	}
	_, err = a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR, Names: []string{"dns:pki.test"}}, "")
	refused(t, err, fault.Denied)
	must(t, a.Clones.Remove(ctx, a.admin, "o1", clone.Removal{Force: true}, once.Call{}))
	_, err = a.Clones.RenewIdentity(ctx, self, client.CloneIdentity{CSR: next.in.CSR}, "")
	refused(t, err, fault.Denied)
	for _, path := range [][]string{joined.Certificate, renewed.Certificate} {
		if err := a.Identity.Good(ctx, issuer, leaf(t, path).SerialNumber); err == nil {
			t.Error("a certificate of a node that is gone is good")
		}
	}
}
