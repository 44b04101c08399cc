package faults_test

import (
	"context"
	"crypto"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/authority/clone"
	"chancery/internal/authority/revocation"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/schema"
)

// cloneActs are those by which nodes come and go. SQLite has one node.
var cloneActs = []act{
	{name: "clone invite", prepare: func(f *faulty, _ int) (func(context.Context) (string, error), func() (bool, int)) {
		before := f.events("clone.invite", "", "")
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.InviteClone(ctx, client.CloneInvitation{})
			if err != nil {
				return "", err
			}
			if _, err := client.ParseCloneToken(out.Token); err != nil {
				f.t.Errorf("it gave no token: %v", err)
			}
			return out.ID, nil
		}
		return call, func() (bool, int) { n := f.events("clone.invite", "", "") - before; return n == 1, n }
	}},
	{name: "clone join", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		in := f.machine(n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.JoinClone(ctx, in)
			if err != nil {
				return "", err
			}
			return out.Fingerprint, nil
		}
		return call, func() (bool, int) {
			c, err := f.admin.Clone(f.t.Context(), in.Name)
			return err == nil && c.State == client.CloneWaiting, f.events("clone.join", in.Name, "")
		}
	}},
	{name: "clone approve", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		in := f.machine(n)
		waits, err := f.admin.JoinClone(f.t.Context(), in)
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.ApproveClone(ctx, in.Name, waits.Fingerprint)
			if err != nil {
				return "", err
			}
			joined, err := f.admin.JoinClone(f.t.Context(), in)
			must(f.t, err)
			if joined.State != client.CloneActive || len(joined.Certificate) == 0 {
				f.t.Errorf("the node that was approved hears %+v", joined)
			}
			return out.Name + strings.Join(joined.Certificate, ""), nil
		}
		return call, func() (bool, int) {
			c, err := f.admin.Clone(f.t.Context(), in.Name)
			must(f.t, err)
			lacking, err := f.Keys.Lacking(f.t.Context())
			must(f.t, err)
			done := c.State == client.CloneActive && !lacking[in.Name] && !strings.Contains(strings.Join(c.NotReady, ""), "cut short")
			return done, f.events("clone.approve", in.Name, "")
		}
	}},
	{name: "clone refuse", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		in := f.machine(n)
		_, err := f.admin.JoinClone(f.t.Context(), in)
		must(f.t, err)
		return func(ctx context.Context) (string, error) { return "", f.admin.RemoveClone(ctx, in.Name, false) }, f.cloneGone(in.Name, "clone.refuse")
	}},
	{name: "clone remove", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := f.approved(n)
		return func(ctx context.Context) (string, error) { return "", f.admin.RemoveClone(ctx, name, true) }, f.cloneGone(name, "clone.remove")
	}},
	{name: "clone leave", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := f.approved(n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.LeaveClone(ctx, name)
			if err != nil {
				return "", err
			}
			return out.State, nil
		}
		return call, func() (bool, int) {
			c, err := f.admin.Clone(f.t.Context(), name)
			must(f.t, err)
			return c.State == client.CloneLeaving, f.events("clone.leave", name, "")
		}
	}},
	{name: "clone promote", waits: true, prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		f.givenTo(n)
		return f.turned(f.Audit.Node(), "promote", n%2 == 0)
	}},
	{name: "clone demote", waits: true, prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		return f.turned(f.givenTo(n), "demote", false)
	}},
	{name: "clone left", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		long := time.Now().Add(time.Hour)
		must(f.t, f.Clones.Finish(f.t.Context(), long))
		name := f.approved(n)
		_, err := f.admin.LeaveClone(f.t.Context(), name)
		must(f.t, err)
		must(f.t, f.Clones.Finish(f.t.Context(), time.Now())) // its silence counts from here
		return func(ctx context.Context) (string, error) { return "", unavailable(f.Clones.Finish(ctx, long)) }, f.cloneGone(name, "clone.left")
	}},
}

// givenTo pins the lease that signs CRLs to a node that does not run, so that the one that does takes it only when it is given to it. That one
// was seen last.
func (f *faulty) givenTo(n int) string {
	f.t.Helper()
	name := f.approved(n)
	must(f.t, f.DB.Tx(f.t.Context(), func(tx *db.Tx) error {
		_, err := db.HandOver(f.t.Context(), tx, revocation.Lease, name, true, time.Minute, time.Now())
		return err
	}))
	must(f.t, f.Clones.Report(f.t.Context(), clone.Self{}, time.Now()))
	return name
}

// turned promotes or demotes a node, of the lease that signs CRLs: the one that runs has it then, in a higher epoch, signs in it, and
// is the one that it is pinned to, where that was asked for.
func (f *faulty) turned(name, verb string, pin bool) (func(context.Context) (string, error), func() (bool, int)) {
	f.t.Helper()
	runs, action := f.Audit.Node(), "clone."+verb
	of := func() (l db.Lease) {
		must(f.t, f.DB.ReadSnapshot(f.t.Context(), func(tx *db.Tx) (err error) {
			l, err = db.LeaseOf(f.t.Context(), tx, revocation.Lease)
			return err
		}))
		return l
	}
	events, had, number := f.events(action, runs, ""), of(), f.number()
	call := func(ctx context.Context) (string, error) {
		if _, err := f.admin.TurnClone(ctx, name, verb, client.CloneTurn{Pin: pin}); err != nil {
			return "", err
		}
		until(f.t, "it signs", func() bool { return f.number().Cmp(number) > 0 })
		return "", nil
	}
	return call, func() (bool, int) {
		l, pinned := of(), ""
		if pin {
			pinned = runs
		}
		if l.Holder != runs && (l.Holder != had.Holder || l.Pinned != had.Pinned || l.Epoch != had.Epoch) {
			f.t.Errorf("%s of %s left %+v of %+v", verb, name, l, had)
		}
		return l.Holder == runs && l.Pinned == pinned && l.Epoch > had.Epoch, f.events(action, runs, "") - events
	}
}

// unavailable is what a loop's error, which nobody is told, is to a caller.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return &client.Problem{Status: 503, Type: "urn:chancery:problem:unavailable", Detail: err.Error()}
}

// cloneGone looks whether a node is gone with all that it had, and counts the events that say so.
func (f *faulty) cloneGone(name, action string) func() (bool, int) {
	return func() (bool, int) {
		c, err := f.admin.Clone(f.t.Context(), name)
		must(f.t, err)
		all, err := f.Keys.Recipients(f.t.Context())
		must(f.t, err)
		for _, r := range all {
			if r.ID == name && c.State == client.CloneGone {
				f.t.Errorf("node %s is gone, and a key recipient", name)
			}
		}
		return c.State == client.CloneGone, f.events(action, name, "")
	}
}

// asNode does what a node does before it serves, where nodes are wanted.
func (f *faulty) asNode(dir string) {
	f.t.Helper()
	ctx, now := f.t.Context(), time.Now()
	text, err := f.Keys.Find(ctx, keys.Audit, "")
	must(f.t, err)
	var anchors []crypto.PublicKey
	for _, k := range text {
		public, err := cert.ParsePublicKey(k.SPKI)
		must(f.t, err)
		anchors = append(anchors, public)
	}
	must(f.t, f.Keys.Anchor(anchors, filepath.Join(dir, "ca", "recipients")))
	_, err = f.Keys.FirstList(ctx, "test", now)
	must(f.t, err)
	must(f.t, f.Clones.Register(ctx, "https://localhost:8443", now))
}

// vouched has the operator vouch for the database.
func (f *faulty) vouched() {
	f.t.Helper()
	now, err := f.admin.Settings(f.t.Context())
	must(f.t, err)
	_, err = f.admin.ChangeSettings(f.t.Context(), client.SettingsChange{Set: []client.Setting{{Path: "durability", Value: "provider"}}}, now.ETag)
	must(f.t, err)
}

// machine is what one says of itself that has just been invited.
func (f *faulty) machine(n int) client.CloneJoin {
	f.t.Helper()
	made, err := f.admin.InviteClone(f.t.Context(), client.CloneInvitation{})
	must(f.t, err)
	token, err := client.ParseCloneToken(made.Token)
	must(f.t, err)
	name := fmt.Sprintf("c%d", n)
	key, err := keys.CreateNodeKey(filepath.Join(f.t.TempDir(), "node.key"))
	must(f.t, err)
	tls, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(f.t, err)
	der, err := cert.CreateCSR(&cert.CSRTemplate{}, tls)
	must(f.t, err)
	return client.CloneJoin{
		Secret: token.Secret, Name: name, Address: "https://" + name + ".test:8443", PublicKey: key.Public(), Release: "test", Schema: schema.Newest(),
		Time: time.Now(), CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
	}
}

// approved is the name of a node that was approved; the first node has just been seen.
func (f *faulty) approved(n int) string {
	f.t.Helper()
	in := f.machine(n)
	waits, err := f.admin.JoinClone(f.t.Context(), in)
	must(f.t, err)
	_, err = f.admin.ApproveClone(f.t.Context(), in.Name, waits.Fingerprint)
	must(f.t, err)
	must(f.t, f.Clones.Report(f.t.Context(), clone.Self{}, time.Now()))
	return in.Name
}
