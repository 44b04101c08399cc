package faults_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/keyfile"
	"chancery/internal/pki/root"
)

var acts = []act{
	{name: "issue", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("n%d.test", n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.Issue(ctx, order(name))
			if err != nil {
				return "", err
			}
			return out.Certificate.Serial, nil
		}
		return call, func() (bool, int) { c := f.named(name); return c == 1, c }
	}},
	{name: "revoke", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		serial := f.issued(n)
		return func(ctx context.Context) (string, error) {
			return state(f.admin.Revoke(ctx, "", serial, client.RevokeRequest{Reason: "superseded"}))
		}, f.looks(serial, client.StateRevoked, "certificate.revoke")
	}},
	{name: "hold", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		serial := f.issued(n)
		return func(ctx context.Context) (string, error) { return state(f.admin.Hold(ctx, "", serial)) },
			f.looks(serial, client.StateHeld, "certificate.hold")
	}},
	{name: "release", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		serial := f.issued(n)
		_, err := f.admin.Hold(f.t.Context(), "", serial)
		must(f.t, err)
		return func(ctx context.Context) (string, error) { return state(f.admin.Release(ctx, "", serial)) },
			f.looks(serial, client.StateValid, "certificate.release")
	}},
	{name: "submit", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("s%d.test", n)
		call := func(ctx context.Context) (string, error) {
			in := order(name)
			in.Profile = "guarded"
			out, err := f.admin.Submit(ctx, in)
			if err != nil {
				return "", err
			}
			return out.Request.ID, nil
		}
		return call, func() (bool, int) {
			count := 0
			for r, err := range f.admin.Requests(f.t.Context(), client.RequestFilter{State: client.RequestPending}) {
				must(f.t, err)
				if len(r.SAN) == 1 && r.SAN[0] == "dns:"+name || r.Subject == "CN="+name {
					count++
				}
			}
			return count == 1, count
		}
	}},
	{name: "approve", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("a%d.test", n)
		in := order(name)
		in.Profile = "guarded"
		out, err := f.admin.Submit(f.t.Context(), in)
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.other.Approve(ctx, out.Request.ID)
			if err != nil {
				return "", err
			}
			return out.Certificate.Serial, nil
		}
		return call, func() (bool, int) { c := f.named(name); return c == 1, c }
	}},
	{name: "profile save", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		text := guarded(n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.SaveProfile(ctx, "guarded", client.ProfileText{YAML: text})
			if err != nil {
				return "", err
			}
			return fmt.Sprint(out.Profile.Version), nil
		}
		return call, func() (bool, int) {
			count := 0
			for v, err := range f.admin.ProfileVersions(f.t.Context(), "guarded") {
				must(f.t, err)
				if v.Description == fmt.Sprintf("version %d", n) {
					count++
				}
			}
			return count == 1, count
		}
	}},
	{name: "token create", says: "conflict", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		label := fmt.Sprintf("label %d", n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.CreateToken(ctx, "olga", client.CreateTokenRequest{Label: label})
			if err != nil {
				return "", err
			}
			if _, err := f.Access.Authenticate(f.t.Context(), out.Secret); err != nil {
				f.t.Errorf("a token that was handed out is not known: %v", err)
			}
			return out.ID, nil
		}
		return call, func() (bool, int) {
			count := 0
			for token, err := range f.admin.Tokens(f.t.Context(), "olga") {
				must(f.t, err)
				if token.Label == label {
					count++
				}
			}
			return count == 1, count
		}
	}},
	{name: "operator create", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("operator%d", n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.CreateOperator(ctx, client.CreateOperatorRequest{Name: name, Roles: []string{client.RoleAuditor}})
			if err != nil {
				return "", err
			}
			return out.ID, nil
		}
		return call, func() (bool, int) {
			_, err := f.admin.Operator(f.t.Context(), name)
			return err == nil, map[bool]int{true: 1}[err == nil]
		}
	}},
	{name: "pool add", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("pool%d", n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.AddPool(ctx, client.AddPoolRequest{Name: name, Online: true})
			if err != nil {
				return "", err
			}
			return out.Issuer.ID, nil
		}
		return call, func() (bool, int) {
			p, err := f.admin.Pool(f.t.Context(), name)
			done := err == nil && p.State == "active" && p.Issuer != nil && p.Root != nil
			return done, map[bool]int{true: 1}[done]
		}
	}},
	{name: "CRL", moves: true, prepare: func(f *faulty, _ int) (func(context.Context) (string, error), func() (bool, int)) {
		before := f.number()
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.IssueCRL(ctx, "default", client.IssueCRLRequest{})
			if err != nil {
				return "", err
			}
			return out.Number, nil
		}
		return call, func() (bool, int) { return f.number().Cmp(before) > 0, 1 }
	}},
	{name: "checkpoint", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		before := int64(0)
		if c, err := f.admin.Checkpoint(f.t.Context(), 0); err == nil {
			before = c.Number
		}
		f.issued(n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.SignCheckpoint(ctx)
			if err != nil {
				return "", err
			}
			return out.Text, nil
		}
		return call, func() (bool, int) {
			c, err := f.admin.Checkpoint(f.t.Context(), 0)
			if err != nil {
				return false, 0
			}
			return c.Number == before+1, int(c.Number - before)
		}
	}},
}

// moreActs are those of administrators, which come rarely and must be as safe.
var moreActs = []act{
	{name: "operator remove", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("gone%d", n)
		_, err := f.admin.CreateOperator(f.t.Context(), client.CreateOperatorRequest{Name: name, Roles: []string{client.RoleAuditor}})
		must(f.t, err)
		return func(ctx context.Context) (string, error) { return "", f.admin.RemoveOperator(ctx, name) }, func() (bool, int) {
			_, err := f.admin.Operator(f.t.Context(), name)
			return client.IsKind(err, "not-found"), f.events("principal.delete", "", name)
		}
	}},
	{name: "operator change", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("changed%d", n)
		_, err := f.admin.CreateOperator(f.t.Context(), client.CreateOperatorRequest{Name: name, Roles: []string{client.RoleAuditor}})
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.ChangeOperator(ctx, name, client.ChangeOperatorRequest{Disabled: new(true)})
			return out.ID, err
		}
		return call, func() (bool, int) {
			out, err := f.admin.Operator(f.t.Context(), name)
			must(f.t, err)
			return out.Disabled, 1
		}
	}},
	{name: "token revoke", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		token, err := f.admin.CreateToken(f.t.Context(), "olga", client.CreateTokenRequest{Label: "short"})
		must(f.t, err)
		return func(ctx context.Context) (string, error) { return "", f.admin.RevokeToken(ctx, token.ID) }, func() (bool, int) {
			_, err := f.Access.Authenticate(f.t.Context(), token.Secret)
			return err != nil, f.events("token.delete", token.ID, "")
		}
	}},
	{name: "profile retire", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("old%d", n)
		text := strings.Replace(guarded(n), "name: guarded", "name: "+name, 1)
		_, err := f.admin.SaveProfile(f.t.Context(), name, client.ProfileText{YAML: text})
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.RetireProfile(ctx, name)
			if err != nil {
				return "", err
			}
			return fmt.Sprint(out.Version), nil
		}
		return call, func() (bool, int) {
			out, err := f.admin.Profile(f.t.Context(), name, 0)
			must(f.t, err)
			return out.Retired, f.events("profile.retire", name, "")
		}
	}},
	{name: "settings change", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		now, err := f.admin.Settings(f.t.Context())
		must(f.t, err)
		value := fmt.Sprint(1000 + n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.ChangeSettings(ctx, client.SettingsChange{Set: []client.Setting{{Path: "limits.pending_requests", Value: value}}}, now.ETag)
			if err != nil {
				return "", err
			}
			return out.ETag, nil
		}
		return call, func() (bool, int) {
			out, err := f.admin.Settings(f.t.Context())
			must(f.t, err)
			return strings.Contains(fmt.Sprint(out.Fields), "{limits.pending_requests "+value+"}"), 1
		}
	}},
	{name: "request reject", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		in := order(fmt.Sprintf("rejected%d.test", n))
		in.Profile = "guarded"
		asked, err := f.admin.Submit(f.t.Context(), in)
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.other.Reject(ctx, asked.Request.ID, client.RejectRequest{Reason: "no"})
			return out.State, err
		}
		return call, func() (bool, int) {
			out, err := f.admin.Request(f.t.Context(), asked.Request.ID)
			must(f.t, err)
			return out.State == client.RequestRejected, f.events("request.reject", asked.Request.ID, "")
		}
	}},
	{name: "issuer retire", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("retired%d", n)
		_, err := f.admin.CreateIssuer(f.t.Context(), client.CreateIssuerRequest{Name: name, Kind: client.IssuerRoot, Subject: "CN=" + name})
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.RetireIssuer(ctx, name)
			return out.ID, err
		}
		return call, func() (bool, int) {
			out, err := f.admin.Issuer(f.t.Context(), name)
			must(f.t, err)
			return out.State == "retired", f.events("issuer.retire", "", name)
		}
	}},
	{name: "renew", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		serial := f.issued(n)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.Renew(ctx, "", serial, client.RenewRequest{})
			if err != nil {
				return "", err
			}
			return out.Certificate.Serial, nil
		}
		return call, func() (bool, int) { c := f.named(fmt.Sprintf("own%d.test", n)); return c == 2, c - 1 }
	}},
	{name: "issuer create", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("issuer%d", n)
		call := func(ctx context.Context) (string, error) {
			in := client.CreateIssuerRequest{Name: name, Kind: client.IssuerIntermediate, Parent: "default-root", Subject: "CN=" + name}
			out, err := f.admin.CreateIssuer(ctx, in)
			if err != nil {
				return "", err
			}
			return out.ID, nil
		}
		return call, func() (bool, int) {
			_, err := f.admin.Issuer(f.t.Context(), name)
			return err == nil, f.events("issuer.create", "", name)
		}
	}},
	{name: "issuer renew", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("renewed%d", n)
		before, err := f.admin.CreateIssuer(f.t.Context(), client.CreateIssuerRequest{Name: name, Kind: client.IssuerIntermediate, Parent: "default-root",
			Subject: "CN=" + name, Validity: "365d"})
		must(f.t, err)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.RenewIssuer(ctx, name, client.RenewIssuerRequest{Validity: "730d"})
			if err != nil {
				return "", err
			}
			return out.Serial, nil
		}
		return call, func() (bool, int) {
			now, err := f.admin.Issuer(f.t.Context(), name)
			must(f.t, err)
			return now.Serial != before.Serial && now.ID == before.ID, f.events("issuer.renew", "", name)
		}
	}},
	{name: "pool complete", prepare: func(f *faulty, n int) (func(context.Context) (string, error), func() (bool, int)) {
		name := fmt.Sprintf("off%d", n)
		p, err := f.admin.AddPool(f.t.Context(), client.AddPoolRequest{Name: name})
		must(f.t, err)
		in := rootSigns(f.t, p)
		call := func(ctx context.Context) (string, error) {
			out, err := f.admin.CompletePool(ctx, name, in)
			if err != nil {
				return "", err
			}
			return out.State, nil
		}
		return call, func() (bool, int) {
			p, err := f.admin.Pool(f.t.Context(), name)
			must(f.t, err)
			if p.State != "active" {
				return false, 0
			}
			count := 0
			for _, err := range f.admin.CRLs(f.t.Context(), p.Root.Name, "") {
				must(f.t, err)
				count++
			}
			return count == 1, count
		}
	}},
}

// events counts the events of an action upon an object, or with a name in their detail.
func (f *faulty) events(action, object, name string) int {
	f.t.Helper()
	count := 0
	for e, err := range f.admin.Audit(f.t.Context(), client.AuditFilter{Action: action, Object: object}) {
		must(f.t, err)
		if name == "" || e.Object == name || strings.Contains(string(e.Detail), `"`+name+`"`) {
			count++
		}
	}
	return count
}

// rootSigns is what an operator's root makes of a pool that waits for it.
func rootSigns(t *testing.T, p *client.Pool) client.CompletePoolRequest {
	t.Helper()
	block, _ := pem.Decode([]byte(p.Issuer.CSR))
	csr, err := cert.ParseCSR(block.Bytes)
	must(t, err)
	key, err := keyfile.Generate(keyfile.ECDSAP256, 0)
	must(t, err)
	now := time.Now().UTC().Truncate(time.Second)
	r, err := root.New(root.Options{Subject: cert.CommonName(p.Name + " root"), Validity: 1000 * 24 * time.Hour, PathLen: 1}, key, now)
	must(t, err)
	issuer, err := r.SignIssuer(root.Options{Subject: csr.Subject}, csr.SPKI, cert.Issuer{}, now)
	must(t, err)
	list, err := r.SignCRL(big.NewInt(now.UnixMilli()), nil, now, 100*24*time.Hour)
	must(t, err)
	return client.CompletePoolRequest{
		Root: string(keyfile.EncodeCertificates(r.Certificate)), Issuer: string(keyfile.EncodeCertificates(issuer)),
		CRL: string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})),
	}
}
