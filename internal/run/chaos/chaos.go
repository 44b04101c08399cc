package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/crl"
)

// Run makes chaos, heals it, and judges. An error says what was broken, or why there is no proof.
func Run(ctx context.Context, o Options) (err error) {
	fmt.Fprintf(o.Out, "chaos for %s, CHAOS_SEED=%d\n", o.Length, o.Seed)
	w, err := newWorld(ctx, o)
	defer func() {
		if err != nil && o.History != "" {
			err = errors.Join(err, w.keepLogs())
		}
		err = errors.Join(err, w.close())
	}()
	if err != nil {
		return err
	}
	if err := w.rush(ctx); err != nil {
		return fmt.Errorf("issue at two nodes at once: %w", err)
	}
	if err := w.load(ctx); err != nil {
		return err
	}
	w.say("healed; looking at what is there")
	final, err := w.end(ctx)
	if err != nil {
		return fmt.Errorf("look at the end: %w", err)
	}
	calls, err := w.history.written()
	if err != nil {
		return err
	}
	found := Check(calls, *final)
	if err := w.survive(ctx); err != nil {
		found = append(found, Violation{"a clone of a clone works without the one between", err.Error()})
	}
	return w.report(final, found)
}

// load has callers at work while faults strike, and ends when all is healed.
func (w *world) load(ctx context.Context) error {
	busy, stop := context.WithCancel(ctx)
	defer stop()
	group, busy := errgroup.WithContext(busy)
	var callers []*caller
	defer func() {
		for _, c := range callers {
			c.close()
		}
	}()
	start := func(name string, node int, do func(*caller, context.Context) error) error {
		c, err := w.caller(name, node)
		if err != nil {
			return err
		}
		callers = append(callers, c)
		group.Go(func() error { return do(c, busy) })
		return nil
	}
	for i, n := range w.nodes {
		for name, do := range map[string]func(*caller, context.Context) error{
			"steady": (*caller).steady, "mixed": (*caller).mixed, "asks": (*caller).asks, "pulse": (*caller).pulse,
		} {
			if err := start(name+"-"+n.name, i, do); err != nil {
				return err
			}
		}
	}
	if err := start("watch", 0, (*caller).watch); err != nil {
		return err
	}
	err := w.schedule(busy, time.Now().Add(w.Length))
	sleep(busy, 2*time.Second) // of peace
	stop()
	return errors.Join(err, group.Wait())
}

// rush has two nodes issue at once, as fast as they can.
func (w *world) rush(ctx context.Context) error {
	if w.Rush == 0 {
		return nil
	}
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	const callers = 64
	for node := range 2 {
		c, err := w.caller(fmt.Sprintf("rush-%s", w.nodes[node].name), node)
		if err != nil {
			return err
		}
		defer c.close()
		for i := range callers {
			group.Go(func() error {
				for n := i; n < w.Rush; n += callers {
					call, err := c.issue(ctx, attempts, true)
					if err == nil && call.Outcome != Acknowledged {
						err = fmt.Errorf("%s: %s: %s", call.Name, call.Outcome, call.Error)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	took := time.Since(begin)
	w.say("2 nodes issued %d certificates each, at once, in %s: %.0f a second", w.Rush, took.Round(100*time.Millisecond), float64(2*w.Rush)/took.Seconds())
	return nil
}

// end waits until all nodes are ready and have the same to say, and writes it down.
func (w *world) end(ctx context.Context) (*Final, error) {
	for _, n := range w.nodes {
		if err := w.ready(ctx, n); err != nil {
			return nil, err
		}
		epochs, err := n.logged()
		if err != nil {
			return nil, err
		}
		for _, epoch := range epochs {
			if err := w.history.add(Call{Act: Signer, Node: n.name, Begin: time.Now(), End: time.Now(), Name: "crl", Epoch: epoch, Holder: n.name}); err != nil {
				return nil, err
			}
		}
	}
	c, err := w.caller("end", 0)
	if err != nil {
		return nil, err
	}
	defer c.close()
	f := &Final{OCSP: map[string]map[string]string{}, CRL: map[string]List{}, Parted: w.parted}
	for one, err := range w.admin[0].Certificates(ctx, client.CertificateFilter{Profile: "server", PageSize: 1000}) {
		if err != nil {
			return nil, fmt.Errorf("list certificates: %w", err)
		}
		there := Certificate{Serial: plain(one.Serial), Issuer: one.Issuer, Name: strings.TrimPrefix(one.SAN[0], "dns:"), State: one.State}
		if one.Revocation != nil {
			there.Reason = one.Revocation.Reason
		}
		f.Certificates = append(f.Certificates, there)
	}
	if err := w.lastAnswers(ctx, c, f); err != nil {
		return nil, err
	}
	for e, err := range w.admin[0].Audit(ctx, client.AuditFilter{}) {
		if err != nil {
			return nil, fmt.Errorf("read the audit: %w", err)
		}
		f.Audit = append(f.Audit, Event{e.Node, e.Seq, e.Prev, e.Hash})
	}
	return f, w.verify(ctx, f)
}

// lastAnswers fetches a new CRL from each node, and asks each about everything that was revoked.
func (w *world) lastAnswers(ctx context.Context, c *caller, f *Final) error {
	var newest *client.CRL
	err := w.until(ctx, "a last CRL is signed", func(ctx context.Context) (err error) {
		newest, err = w.admin[1].IssueCRL(ctx, issuerName, client.IssueCRLRequest{})
		return err
	})
	if err != nil {
		return err
	}
	number, ok := new(big.Int).SetString(newest.Number, 10)
	if !ok {
		return fmt.Errorf("CRLNumber %q", newest.Number)
	}
	revoked := map[string]bool{}
	for _, call := range w.history.calls() {
		if call.Act == Revoke && call.Outcome == Acknowledged {
			revoked[call.Serial] = true
		}
	}
	for i, n := range w.nodes {
		err := w.until(ctx, n.name+" serves the last CRL", func(ctx context.Context) error {
			c.node = i
			if err := c.crl(ctx); err != nil {
				return err
			}
			list, _, err := c.list(ctx, n)
			if err != nil {
				return err
			}
			if list.Number.Cmp(number) < 0 {
				return fmt.Errorf("it serves number %s, and %s was signed", list.Number, number)
			}
			reasons := map[string]string{}
			for _, e := range list.RevokedCertificateEntries {
				reasons[plain(e.SerialNumber.Text(16))] = crl.Reason(e.ReasonCode).String()
			}
			f.CRL[n.name] = List{list.Number.Int64(), reasons}
			return nil
		})
		if err != nil {
			return err
		}
		f.OCSP[n.name] = map[string]string{}
		for serial := range revoked {
			status, _, err := c.status(ctx, n, serial)
			if err != nil {
				return fmt.Errorf("ask %s about %s: %w", n.name, serial, err)
			}
			f.OCSP[n.name][serial] = status
		}
	}
	return nil
}

// verify runs chancery verify as an operator does.
func (w *world) verify(ctx context.Context, f *Final) error {
	n := w.nodes[0]
	out, err := n.command(ctx, "verify", "--dir", string(n.dir), "-o", "json").Output()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		return err
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var all []client.Finding
		var one json.RawMessage
		if err := d.Decode(&one); err != nil {
			return fmt.Errorf("read what verify says: %w: %.300s", err, out)
		}
		if json.Unmarshal(one, &all) != nil {
			all = make([]client.Finding, 1)
			if err := json.Unmarshal(one, &all[0]); err != nil {
				return err
			}
		}
		for _, finding := range all {
			switch finding.Level {
			case "ok":
				f.Verified++
			case "error":
				f.Findings = append(f.Findings, finding.Check+" "+finding.Object+": "+finding.Message)
			}
		}
	}
	if err != nil && len(f.Findings) == 0 {
		f.Findings = append(f.Findings, fmt.Sprintf("verify says: %v: %.300s", err, out))
	}
	return nil
}

// survive destroys the second node, by which the third was invited, approved and given its keys: the third and the first remove it, issue, and
// sign on.
func (w *world) survive(ctx context.Context) error {
	lost := w.nodes[1]
	if err := errors.Join(lost.signal(syscall.SIGKILL), os.RemoveAll(string(lost.dir))); err != nil {
		return err
	}
	if err := w.admin[2].RemoveClone(ctx, lost.name, false); !client.IsKind(err, string(fault.Conflict)) {
		return fmt.Errorf("a node that was seen a moment ago was removed without a question: %v", err)
	}
	if err := w.admin[2].RemoveClone(ctx, lost.name, true); err != nil {
		return err
	}
	for _, i := range []int{0, 2} {
		c, err := w.caller("survivor-"+w.nodes[i].name, i)
		if err != nil {
			return err
		}
		defer c.close()
		call, err := c.issue(ctx, 10, true)
		if err == nil && call.Outcome != Acknowledged {
			err = errors.New(call.Error)
		}
		if err != nil {
			return fmt.Errorf("issue at %s: %w", w.nodes[i].name, err)
		}
		err = w.until(ctx, w.nodes[i].name+" has a CRL signed", func(ctx context.Context) error {
			_, err := c.api[i].IssueCRL(ctx, issuerName, client.IssueCRLRequest{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
