package host_test

import (
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/pool"
	"chancery/internal/pki/crl"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// TestHostsOfTheDatabaseAreTheAdministrators: who may add a server of the authority's own database, give it names or placements, or make a token
// by which another machine becomes it, may be whom that database lets in. An operator, who keeps all other hosts, may only end these.
func TestHostsOfTheDatabaseAreTheAdministrators(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		admin := access.Principal{ID: "alice", Name: "alice", Kind: access.KindOperator, Roles: []access.Role{access.Admin}}
		officer := access.Principal{ID: "olga", Name: "olga", Kind: access.KindOperator, Roles: []access.Role{access.Officer, access.Operator}}
		for _, name := range []string{ca.DatabasePool, ca.ControlPool} {
			must[*pool.Pool](t)(a.Pools.Add(ctx, admin, "", pool.Spec{Name: name, Online: true}))
			one := "one." + name
			add := client.AddHostRequest{Name: one, Pool: name, Profiles: []string{"server", "client"}}
			must[*client.HostToken](t)(a.Hosts.Add(ctx, admin, add, ""))
			demoted := admin
			demoted.Roles = officer.Roles
			machine := a.redeem(must[*client.HostToken](t)(a.Hosts.NewToken(ctx, admin, one, client.HostTokenRequest{}, "")).Token)
			waiting := add
			waiting.Name = "two." + name
			must[*client.HostToken](t)(a.Hosts.Add(ctx, admin, waiting, "key "+name))
			for _, by := range []access.Principal{operator, officer} {
				_, err := a.Hosts.Add(ctx, by, client.AddHostRequest{Name: "three." + name, Pool: name}, "")
				refused(t, err, fault.Denied, "an administrator adds its hosts")
				_, err = a.Hosts.NewToken(ctx, by, waiting.Name, client.HostTokenRequest{}, "")
				refused(t, err, fault.Denied, `is of pool "`+name+`"`)
				for _, reason := range []string{"", crl.KeyCompromise.String()} {
					_, err = a.Hosts.Replace(ctx, by, one, client.ReplaceHostRequest{Reason: reason}, "")
					refused(t, err, fault.Denied, `is of pool "`+name+`"`)
				}
				for _, in := range []client.ChangeHostRequest{
					{DNS: &[]string{one, "db2"}}, {IP: &[]string{"192.0.2.1"}}, {Profiles: &[]string{"peer"}},
					{Placements: &[]client.PlacementOrder{{Recipe: "nginx"}}},
				} {
					_, err = a.Hosts.Set(ctx, by, one, in, "")
					refused(t, err, fault.Denied, by.Actor()+" is none")
				}
				why := "in repair"
				must[*client.Host](t)(a.Hosts.Set(ctx, by, one, client.ChangeHostRequest{Labels: &map[string]string{"site": "b"}, Absent: &why}, ""))
			}
			_, err := a.Hosts.Add(ctx, demoted, waiting, "key "+name) // the call of an administrator, repeated when he is none
			refused(t, err, fault.Denied, "an administrator adds its hosts")
			if h := a.host(one); h.State != client.HostJoined || len(h.DNS) != 1 || len(h.IP) != 0 || len(h.Placements) != 0 || len(h.Profiles) != 2 {
				t.Errorf("after what was refused: %+v", h)
			}

			// The host itself gets its own names, and an administrator changes them.
			order := func(subject string) error {
				_, err := a.CA.Issue(ctx, machine.principal, ca.Order{Profile: "client", CSR: []byte(newCSR(t)), Subject: subject})
				return err
			}
			check(t, order("CN="+one))
			refused(t, order("CN=db2"), fault.Denied, "db2")
			must[*client.Host](t)(a.Hosts.Set(ctx, admin, one, client.ChangeHostRequest{DNS: &[]string{one, "db2." + name}}, ""))
			check(t, order("CN=db2."+name))
			check(t, d.Tx(ctx, func(tx *db.Tx) error {
				of, names, err := a.Hosts.PoolAndNames(ctx, tx, machine.principal)
				if of != name || len(names) != 2 {
					t.Errorf("a host of pool %q, %q", of, names)
				}
				return err
			}))
			must[*client.HostToken](t)(a.Hosts.Replace(ctx, admin, one, client.ReplaceHostRequest{}, ""))
			check(t, a.Hosts.Remove(ctx, operator, one, "", ""))
			check(t, d.Tx(ctx, func(tx *db.Tx) error {
				of, names, err := a.Hosts.PoolAndNames(ctx, tx, machine.principal)
				if of != "" || len(names) != 0 {
					t.Errorf("a host that was removed is of pool %q, %q", of, names)
				}
				return err
			}))
		}
		must[*client.HostToken](t)(a.Hosts.Add(ctx, operator, client.AddHostRequest{Name: "db9", Pool: "lab"}, ""))
	})
}
