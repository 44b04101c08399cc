package ca

import (
	"context"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// anyNameYAML is a profile as an administrator might write it for another pool: any name for anybody. Waiting is the same, with requests that
// wait for an officer.
const anyNameYAML = `name: any-name
names:
  common_name: subject
  rules:
    - roles: [host, admin, officer, operator, auditor]
      dns: ["**"]
      uri: ["**"]
      subject: {CN: ["*"]}
usage: {key_usage: [digitalSignature], extended: [clientAuth]}
key: {algorithms: [ecdsa-p256]}
validity: {default: 30d}
approval: {automatic: [host, admin, officer, operator, auditor]}
`

const waitingYAML = `name: waiting
names:
  common_name: subject
  rules:
    - roles: [host, admin, officer, operator]
      dns: ["**"]
      subject: {CN: ["*"]}
usage: {key_usage: [digitalSignature], extended: [clientAuth]}
key: {algorithms: [ecdsa-p256]}
validity: {default: 30d}
approval: {two_person: true}
`

// databaseAuthority has the pools of the authority's own database, and one like them.
type databaseAuthority struct {
	*authority
	pools map[string]*Issuer
}

func newDatabaseAuthority(t *testing.T, d *db.DB) *databaseAuthority {
	t.Helper()
	a := &databaseAuthority{newAuthority(t, d), map[string]*Issuer{}}
	saveProfile(t, a.authority, anyNameYAML)
	saveProfile(t, a.authority, waitingYAML)
	for _, pool := range []string{DatabasePool, ControlPool, "databases"} {
		_, _, err := a.CreateIssuer(t.Context(), admin(), IssuerSpec{Name: pool + "-root", Subject: "CN=" + pool + " root", Pool: pool, PathLen: new(1)})
		check(t, err)
		a.pools[pool], _, err = a.CreateIssuer(t.Context(), admin(), IssuerSpec{Name: pool, Subject: "CN=" + pool, Parent: pool + "-root", Pool: pool, Default: true})
		check(t, err)
	}
	return a
}

// TestPoolsOfTheDatabaseIssueToAdministrators tries each way to a certificate in each role: of these pools they lead an administrator
// to one and nobody else, and of a pool that is only named alike whoever the profile lets.
func TestPoolsOfTheDatabaseIssueToAdministrators(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newDatabaseAuthority(t, d), t.Context()
		people := map[access.Role]access.Principal{access.Admin: admin(), access.Officer: officer()}
		for _, role := range []access.Role{access.Operator, access.Auditor} {
			people[role] = operator(string(role), role)
		}
		both := operator("both", access.Operator, access.Officer)
		a.known(people[access.Admin], people[access.Officer], people[access.Operator], people[access.Auditor], both)
		submitted := func(_ *Request, c *Certificate, err error) (*Certificate, error) { return c, err }
		request := func() []byte { return csr(t, newKey(t)) }
		held := map[*Issuer]Ref{}
		for _, issuer := range a.pools {
			c := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Pool: issuer.Pool, Profile: "client", CSR: request(), Subject: "CN=db1"}))
			held[issuer] = Ref{Issuer: issuer.ID, Serial: c.Serial}
		}
		ways := map[string]func(by access.Principal, issuer *Issuer) (*Certificate, error){
			"client": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Pool: i.Pool, Profile: "client", CSR: request(), Subject: "CN=db1"})
			},
			"by the issuer's name": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Issuer: i.Name, Profile: "client", CSR: request(), Subject: "CN=node1"})
			},
			"by the issuer's id": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Issuer: i.ID, Profile: "client", PublicKey: spkiOf(t, newKey(t)), Subject: "CN=db1"})
			},
			"peer": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Pool: i.Pool, Profile: "peer", CSR: csr(t, newKey(t), "dns:db1-control.example.com")})
			},
			"server": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Pool: i.Pool, Profile: "server", CSR: csr(t, newKey(t), "dns:db1.example.com")})
			},
			"another profile": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Pool: i.Pool, Profile: "any-name", CSR: request(), Subject: "CN=replicator"})
			},
			"template": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Issue(ctx, by, Order{Pool: i.Pool, Profile: "client", CSR: request(), Template: "cn = db1\n"})
			},
			"submitted": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return submitted(a.Submit(ctx, by, Order{Pool: i.Pool, Profile: "client", CSR: request(), Subject: "CN=db1"}))
			},
			"approved by an officer": func(by access.Principal, i *Issuer) (*Certificate, error) {
				r, _, err := a.Submit(ctx, by, Order{Pool: i.Pool, Profile: "waiting", CSR: request(), Subject: "CN=db1"})
				if err != nil {
					return nil, err
				}
				return submitted(a.Approve(ctx, both, r.ID))
			},
			"tried": func(by access.Principal, i *Issuer) (*Certificate, error) {
				p, err := a.DryRun(ctx, by, Order{Pool: i.Pool, Profile: "client", CSR: request(), Subject: "CN=db1"})
				if err != nil {
					return nil, err
				}
				return &Certificate{Issuer: p.Issuer}, nil
			},
			"renewed": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Renew(ctx, by, held[i], RenewOrder{})
			},
			"re-keyed": func(by access.Principal, i *Issuer) (*Certificate, error) {
				return a.Rekey(ctx, by, held[i], request(), nil, RenewOrder{})
			},
		}
		if len(ways) != 12 {
			t.Fatalf("%d ways", len(ways))
		}
		for pool, issuer := range a.pools {
			for way, try := range ways {
				for role, by := range people {
					if pool == "databases" && role != access.Operator || role == access.Auditor && way != "client" {
						continue // whoever passes there need not be tried
					}
					got, err := try(by, issuer)
					who := fmt.Sprintf("%s, %s, pool %s", role, way, pool)
					switch passes := role == access.Admin || pool == "databases"; {
					case passes && (err != nil || got.Issuer.ID != issuer.ID):
						t.Errorf("%s: %+v, %v", who, got, err)
					case !passes && !fault.Is(err, fault.Denied):
						t.Errorf("%s: got %v, want a refusal", who, err)
					case !passes && role != access.Auditor && !strings.Contains(err.Error(), fmt.Sprintf("its pool, %q", pool)):
						t.Errorf("%s: the refusal says %v", who, err)
					}
				}
			}
		}
		if n := a.count(`SELECT COUNT(*) FROM certificate c JOIN issuer i ON i.number = c.issuer WHERE i.pool LIKE 'database%' AND i.pool <> 'databases'
			AND c.requester NOT IN ('id-alice', '') AND c.profile <> 'ca'`); n != 0 {
			t.Errorf("%d certificates of others are recorded", n)
		}
	})
}

// TestPoolsOfTheDatabaseJudgeWhatTheyRecord has orders recorded after what they were judged by is gone.
func TestPoolsOfTheDatabaseJudgeWhatTheyRecord(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newDatabaseAuthority(t, d), t.Context()
		people, yes := access.New(d, a.audit), true
		a.known(admin())
		for what, change := range map[string]func(id string){
			"demoted": func(id string) {
				must[access.Principal](t)(people.UpdatePrincipal(ctx, admin(), id, access.Change{Roles: []access.Role{access.Officer}}, once.Call{}))
			},
			"disabled": func(id string) {
				must[access.Principal](t)(people.UpdatePrincipal(ctx, admin(), id, access.Change{Disabled: &yes}, once.Call{}))
			},
			"deleted": func(id string) { check(t, people.DeletePrincipal(ctx, admin(), id, once.Call{})) },
		} {
			p := must[access.Principal](t)(people.CreatePrincipal(ctx, admin(), access.Principal{
				Name: what, Kind: access.KindOperator, Roles: []access.Role{access.Admin},
			}, once.Call{}))
			r, _, err := a.Submit(ctx, p, Order{Pool: DatabasePool, Profile: "waiting", CSR: csr(t, newKey(t)), Subject: "CN=db1"})
			check(t, err)
			must[*Certificate](t)(a.Issue(ctx, p, Order{Pool: DatabasePool, Profile: "client", CSR: csr(t, newKey(t)), Subject: "CN=db1"}))
			change(p.ID)
			_, err = a.Issue(ctx, p, Order{Pool: DatabasePool, Profile: "client", CSR: csr(t, newKey(t)), Subject: "CN=db1"})
			refusedAs(t, err, fault.Denied)
			_, _, err = a.Approve(ctx, officer(), r.ID)
			refusedAs(t, err, fault.Denied)
		}
	})
}

// TestHostsOfTheDatabaseGetTheirOwnNames: a server of the database gets its own names of its own pool, whatever the profile would give it, and
// no more when they are taken away before it is recorded; no host of another pool gets anything.
func TestHostsOfTheDatabaseGetTheirOwnNames(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newDatabaseAuthority(t, d), t.Context()
		h, pool := host("db1.example.com"), DatabasePool
		names, recorded := []string{"db1.example.com", "db1"}, []string{"db1.example.com", "db1", "192.0.2.11"}
		a.known(h, admin())
		a.entitlements = func(context.Context, access.Principal) (map[string][]string, error) {
			return map[string][]string{"host.names": names, "host.addresses": {"192.0.2.11"}, hostPool: {pool}}, nil
		}
		a.hostNames = func(context.Context, *db.Tx, access.Principal) (string, []string, error) { return pool, recorded, nil }
		order := func(profile, subject string, names ...string) error {
			_, err := a.Issue(ctx, h, Order{Pool: DatabasePool, Profile: profile, CSR: csr(t, newKey(t), names...), Subject: subject})
			return err
		}
		check(t, order("server", "", "dns:DB1.example.com", "ip:192.0.2.11"))
		check(t, order("client", "CN=db1"))
		check(t, order("any-name", "CN=db1", "dns:db1"))
		for _, c := range [][]string{{"CN=db2"}, {"CN=node1"}, {"CN=postgres"}, {"CN=chancery_node2"}, {"CN=db1+CN=db2"}, {"CN=db2,CN=db1"}, {"CN=db1", "dns:db2"},
			{"", "dns:*.example.com"}, {"CN=db1", "uri:dns:db1"}} {
			refusedAs(t, order("any-name", c[0], c[1:]...), fault.Denied)
			_, err := a.DryRun(ctx, h, Order{Pool: DatabasePool, Profile: "any-name", CSR: csr(t, newKey(t), c[1:]...), Subject: c[0]})
			refusedAs(t, err, fault.Denied)
		}
		held := must[*Certificate](t)(a.Issue(ctx, admin(), Order{Pool: DatabasePool, Profile: "any-name", CSR: csr(t, newKey(t)), Subject: "CN=db2"}))
		_, err := a.db.Migrator().ExecContext(ctx, `UPDATE certificate SET requester = '`+h.ID+`' WHERE id = `+fmt.Sprint(held.ID))
		check(t, err)
		_, err = a.Rekey(ctx, h, Ref{Issuer: held.Issuer.ID, Serial: held.Serial}, csr(t, newKey(t)), nil, RenewOrder{})
		refusedAs(t, err, fault.Denied)

		recorded = recorded[:1]
		refusedAs(t, order("client", "CN=db1"), fault.Denied)
		check(t, order("server", "", "dns:db1.example.com"))
		a.hostNames = nil
		refusedAs(t, order("server", "", "dns:db1.example.com"), fault.Denied)
		agent := h
		agent.Kind = access.KindAgent
		_, err = a.Issue(ctx, agent, Order{Pool: DatabasePool, Profile: "client", CSR: csr(t, newKey(t)), Subject: "CN=db1.example.com"})
		refusedAs(t, err, fault.Denied)
		for _, pool = range []string{ControlPool, DefaultPool} {
			refusedAs(t, order("client", "CN=db1.example.com"), fault.Denied)
		}
	})
}

// TestLoginsAreIssuedToNodes: the names of nodes' logins are nobody's to ask for, an administrator's and the authority's other acts included;
// and no proof gives a host a certificate that reads like another's.
func TestLoginsAreIssuedToNodes(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newDatabaseAuthority(t, d), t.Context()
		h := host("db1")
		a.known(admin(), h)
		node := access.Principal{ID: "system:login chancery_node2", Name: "node1", Kind: access.KindNode, Roles: []access.Role{access.Admin}}
		login := must[*Certificate](t)(a.IssueLogin(ctx, node, "chancery_node2", Order{Profile: "client", CSR: csr(t, newKey(t))}))
		if login.Subject != "CN=chancery_node2" || login.Issuer.Pool != DatabasePool || login.Requester != node.ID {
			t.Errorf("the login: %+v", login)
		}
		ref := Ref{Issuer: login.Issuer.ID, Serial: login.Serial}
		for _, by := range []access.Principal{admin(), node, access.System("n1")} {
			for _, pool := range []string{DatabasePool, ControlPool} {
				for _, subject := range []string{"CN=chancery_node2", "CN=Chancery_node2", "CN=db1+CN=chancery_x"} {
					_, err := a.Issue(ctx, by, Order{Pool: pool, Profile: "any-name", CSR: csr(t, newKey(t)), Subject: subject})
					if refusedAs(t, err, fault.Denied); !isSystem(by) && !strings.Contains(err.Error(), "that of a node's login") {
						t.Errorf("%s for %s: %v", subject, by.Actor(), err)
					}
				}
			}
			_, err := a.Renew(ctx, by, ref, RenewOrder{})
			refusedAs(t, err, fault.Denied)
			_, err = a.Rekey(ctx, by, ref, csr(t, newKey(t)), nil, RenewOrder{})
			refusedAs(t, err, fault.Denied)
		}
		_, err := a.Issue(ctx, admin(), Order{Pool: DatabasePool, CSR: csr(t, newKey(t)), Template: "cn = chancery_node2\ntls_www_client\nsigning_key\nexpiration_days = 1\n"})
		refusedAs(t, err, fault.Denied)
		must[*Certificate](t)(a.Issue(ctx, admin(), Order{Pool: "databases", Profile: "any-name", CSR: csr(t, newKey(t)), Subject: "CN=chancery_node2"}))

		must[*Certificate](t)(a.Revoke(ctx, admin(), ref, RevokeOrder{Reason: crl.KeyCompromise}))
		a.entitlements = func(context.Context, access.Principal) (map[string][]string, error) {
			return map[string][]string{"host.names": {"db1"}, hostPool: {DatabasePool}}, nil
		}
		a.hostNames = func(context.Context, *db.Tx, access.Principal) (string, []string, error) {
			return DatabasePool, []string{"db1"}, nil
		}
		bare := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: must[[]byte](t)(cert.CreateCSR(&cert.CSRTemplate{}, newKey(t)))})
		grants := func(context.Context, *db.Tx, *Certificate) error { return nil }
		_, err = a.IssueTwin(ctx, h, ref, bare, grants)
		refusedAs(t, err, fault.Denied)
		control := must[*Certificate](t)(a.IssueControl(ctx, h, a.pools[DatabasePool].ID, bare, grants))
		if control.Subject != "CN=db1" {
			t.Errorf("the control is %s", control.Subject)
		}
	})
}
