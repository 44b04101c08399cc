package rollout_test

import (
	"strings"
	"testing"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/pkitest"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// rekeyed is under which issuer somebody's certificate is once he has re-keyed it, as he does when it is due.
func (w *world) rekeyed(by access.Principal, c *ca.Certificate, name string) (*ca.Certificate, string) {
	w.t.Helper()
	next := must[*ca.Certificate](w.t)(w.CA.Rekey(w.t.Context(), by, ca.Ref{Issuer: c.Issuer.ID, Serial: c.Serial}, []byte(newCSR(w.t, name)), nil, ca.RenewOrder{}))
	return next, next.Issuer.Name
}

func (a *agent) isDue() string {
	a.w.t.Helper()
	next, under := a.w.rekeyed(a.principal, a.certs["plain"], a.name)
	a.certs["plain"] = next
	check(a.w.t, a.w.Hosts.Report(a.w.t.Context(), a.principal, client.Report{
		Agent: "test", Generation: a.generation, Observations: []client.Observation{a.observe("plain")},
	}))
	return under
}

// TestWhatIsRenewedFollows: in the middle of a rollout a host's own renewal goes where the host is sent, and not before its wave;
// what nobody replaces but its owner goes to the successor when he renews it, so that it does not hold the stage leave again.
// After an abort, hosts go to the default of their pool at their next renewal, whichever that is by then.
func TestWhatIsRenewedFollows(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(3)
		var own []*ca.Certificate
		for _, name := range []string{"one.example.com", "two.example.com"} {
			own = append(own, must[*ca.Certificate](t)(w.CA.Issue(t.Context(), admin, ca.Order{
				Pool: lab, Profile: "server", CSR: []byte(newCSR(t, name)), Names: []string{"dns:" + name},
			})))
		}
		canary, last := w.hosts[0], w.hosts[2]
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h00.example.com", "100%"}})
		w.untilStage(client.StageTrust)
		for what, under := range map[string]string{
			"a host": last.isDue(), "an operator": second(w.rekeyed(admin, own[0], "one.example.com")),
		} {
			if under != "lab" {
				t.Errorf("before all trust the new one, what %s re-keys is under %s", what, under)
			}
		}
		w.until("the canary is re-keyed", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Waves[0].Done == 1 })
		next, under := w.rekeyed(admin, own[1], "two.example.com")
		if under != "lab-2" {
			t.Errorf("in the stage rekey, what an operator re-keys is under %s", under)
		}
		renewed := must[*ca.Certificate](t)(w.CA.Renew(t.Context(), admin, ca.Ref{Issuer: own[0].Issuer.ID, Serial: own[0].Serial}, ca.RenewOrder{}))
		if renewed.Issuer.Name != "lab-2" {
			t.Errorf("in the stage rekey, what an operator renews is under %s", renewed.Issuer.Name)
		}
		if a, b := canary.isDue(), last.isDue(); a != "lab-2" || b != "lab" {
			t.Errorf("the canary re-keys under %s, and a host whose wave has not come under %s", a, b)
		}
		r := must[*client.Rollout](t)(w.Rollouts.Abort(t.Context(), admin, w.id, once.Call{}))
		if !strings.Contains(r.Message, "gets that under lab-2, the default") || !strings.Contains(r.Message, "chancery issuer default lab has it") {
			t.Errorf("aborted, it says %q", r.Message)
		}
		last.converge()
		if under := last.certs["plain"].Issuer.Name; under != "lab" {
			t.Errorf("aborted, a host whose certificate is not due goes to %s", under)
		}
		if under := second(w.rekeyed(admin, next, "two.example.com")); under != "lab-2" {
			t.Errorf("aborted, what an operator re-keys goes from lab-2 to %s", under)
		}
		if a, b := canary.isDue(), last.isDue(); a != "lab-2" || b != "lab-2" {
			t.Errorf("aborted, hosts re-key under %s and %s", a, b)
		}
		must[*ca.Issuer](t)(w.CA.SetDefault(t.Context(), admin, "lab", once.Call{}))
		if a, b := canary.isDue(), last.isDue(); a != "lab" || b != "lab" {
			t.Errorf("with the old one the default again, hosts re-key under %s and %s", a, b)
		}
	})
}

// TestUndoneWhatIsRenewedGoesBack: on the way back it is the new issuer that is left.
func TestUndoneWhatIsRenewedGoesBack(t *testing.T) {
	t.Parallel()
	pkitest.EachDB(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d)
		w.addMany(2)
		w.start(client.StartRolloutRequest{Kind: client.RolloutIssuer, Waves: []string{"host:h00.example.com", "100%"}})
		w.until("the canary is re-keyed", func(r *client.Rollout) bool { return r.Stage == client.StageRekey && r.Waves[0].Done == 1 })
		own := must[*ca.Certificate](t)(w.CA.Issue(t.Context(), admin, ca.Order{
			Pool: lab, Profile: "server", CSR: []byte(newCSR(t, "one.example.com")), Names: []string{"dns:one.example.com"},
		}))
		must[*client.Rollout](t)(w.Rollouts.Undo(t.Context(), admin, w.id, once.Call{}))
		if under := second(w.rekeyed(admin, own, "one.example.com")); own.Issuer.Name != "lab-2" || under != "lab" {
			t.Errorf("undone, what is under %s is re-keyed under %s", own.Issuer.Name, under)
		}
		w.untilState(client.RolloutUndone)
	})
}

func second[A, B any](_ A, b B) B { return b }
