package host_test

import (
	"strings"
	"testing"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pkitest"
	"chancery/internal/store/db"
)

// TestEarlierKeyIsACopy has a machine and a copy of it call in turns, as disks are cloned and processes are killed.
func TestEarlierKeyIsACopy(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		call := func(m *machine) {
			t.Helper()
			must[*client.Desired](t)(a.Hosts.Desired(ctx, m.principal, "", 0))
		}
		state := func(want string) {
			t.Helper()
			if h := a.host("web1"); h.State != want {
				t.Fatalf("the host is %s, want %s: %s", h.State, want, h.Message)
			}
		}
		longAgo := func() {
			a.exec(`UPDATE host SET identity_used = $1 WHERE name = $2 AND identity_used > 0`, db.Micros(time.Now().Add(-time.Hour)), "web1")
		}
		m := a.join(client.AddHostRequest{Name: "web1"})
		call(m)
		longAgo()
		copied, csr := *m, newCSR(t)
		must[*client.Joined](t)(a.renew(m, 1, csr, "k1"))
		// The machine ended before it kept the answer: it goes on with what it had, as long as it likes, and asks again.
		call(&copied)
		check(t, a.Hosts.Report(ctx, copied.principal, client.Report{Generation: 1}))
		state(client.HostJoined)
		crashed := copied
		must[*client.Joined](t)(a.renew(&crashed, 1, csr, "k2"))
		// The newest key is in use now. What was under way still arrives; what comes later is of another machine.
		call(m)
		call(&copied)
		check(t, a.Hosts.Report(ctx, copied.principal, client.Report{Generation: 1}))
		state(client.HostJoined)
		longAgo()
		check(t, a.Hosts.Report(ctx, m.principal, client.Report{Generation: 2}))
		state(client.HostJoined)
		call(&copied)
		state(client.HostSuspect)
		message := a.host("web1").Message
		if !strings.Contains(message, "one of them is a copy; which one, this does not say") || !strings.Contains(message, "the key of an earlier generation") {
			t.Fatalf("the host is said to be suspect because: %s", message)
		}
		_, err := a.renew(m, 2, newCSR(t), "k3")
		refused(t, err, fault.Denied, "is suspect")
		if n := a.events("host.suspect"); n != 1 {
			t.Fatalf("the audit has %d suspicions", n)
		}
	})
}

// TestEarlierGenerationIsACopy reports a generation that the host has left behind.
func TestEarlierGenerationIsACopy(t *testing.T) {
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		a, ctx := newAuthority(t, d), t.Context()
		m := a.join(client.AddHostRequest{Name: "web1"})
		must[*client.Joined](t)(a.renew(m, 1, newCSR(t), "k1"))
		check(t, a.Hosts.Report(ctx, m.principal, client.Report{Generation: 2}))
		a.exec(`UPDATE host SET identity_used = $1 WHERE name = $2`, db.Micros(time.Now().Add(-time.Hour)), "web1")
		check(t, a.Hosts.Report(ctx, m.principal, client.Report{Generation: 1}))
		if h := a.host("web1"); h.State != client.HostSuspect || !strings.Contains(h.Message, "said that it has generation 1") {
			t.Fatalf("shown: %+v", h)
		}
	})
}
