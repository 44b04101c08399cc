package loop

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// The reasons for a new certificate. Those that do not wait for two thirds of its life are urgent.
const (
	whyNone  = "there is none"
	whyDue   = "two thirds of its life are over"
	whyEnded = "it ended"
)

// refused is a certificate that the authority issued and that was not fit to be placed.
type refused struct {
	Serial string    `json:"serial"`
	Cause  string    `json:"cause"`
	At     time.Time `json:"at"`
}

// insist is for how long a call that brought something unfit is repeated word for word, which brings the same certificate,
// or the right one where it was changed on the way. Only then is another asked for.
const insist = time.Hour

// over reports whether another certificate may be asked for in the place of one that was refused: an hour went by, or that
// one was revoked, so that somebody has looked.
func (r *refused) over(w *work) bool {
	return !w.now.Before(r.At.Add(insist)) || slices.Contains(w.order.Revoked, r.Serial)
}

func (r *refused) Error() string {
	return fmt.Sprintf("ALARM: certificate %s, which the authority issued, is not placed: %s (another is asked for after %s, or once it is revoked)",
		r.Serial, r.Cause, r.At.Add(insist).UTC().Format("15:04:05"))
}

// candidate is the certificate to place for one of the plan: what was issued and is not placed yet, what is placed, or,
// where neither will do and the authority can be asked, a new one. The error says why there is no better one; the
// candidate may be there all the same.
func (w *work) candidate(ctx context.Context, planned recipe.PlannedCertificate) (*held, error) {
	current, err := w.folder.held(planned.ID, suffixHeld)
	if err != nil {
		return nil, err
	}
	if name := w.order.Issuer; name != "" && w.trusts.general.issuer(name) == nil {
		return current, fault.New(fault.Conflict, "its certificates are to be under issuer %s, which is not in the trust that came with the order; "+
			"until it is, none is asked for", name)
	}
	for _, from := range w.sources() {
		next, err := from.held(planned.ID, suffixNext)
		if err != nil {
			return nil, err
		}
		if next == nil {
			continue
		}
		// One that has waited long for those who pin it is better than another that they would have to be told of first.
		if why := w.replace(next, planned); why == "" || why == whyDue && planned.Announce != "" {
			return w.released(planned, current, next)
		}
		if from != w.asks {
			continue // it may do for the plan that it was asked for
		}
		if err := from.drop(planned.ID, suffixNext); err != nil {
			return nil, err
		}
	}
	why := w.replace(current, planned)
	if why == "" {
		return current, nil
	}
	fresh, err := w.obtain(ctx, planned, current, why)
	if err != nil {
		return current, fmt.Errorf("a certificate is wanted, because %s: %w", why, err)
	}
	return w.released(planned, current, fresh)
}

// replace says why a certificate does not do, and nothing where it does.
func (w *work) replace(h *held, planned recipe.PlannedCertificate) string {
	if h == nil {
		return whyNone
	}
	leaf := h.leaf()
	switch {
	case slices.Contains(w.order.Revoked, h.serial()):
		return fmt.Sprintf("certificate %s is revoked", h.serial())
	case w.now.After(leaf.NotAfter):
		return whyEnded
	case !sameAlgorithm(h.Planned.Algorithm, planned.Algorithm):
		return fmt.Sprintf("the key is to be %s, and is %s", planned.Algorithm, h.Planned.Algorithm)
	case !sameWish(h.Planned, planned):
		return "its names, usages or profile are to be others"
	case h.Epoch != w.agent.identity().Epoch:
		return "the host has joined anew since, and what it held before is revoked"
	case h.Pool != w.pool:
		return fmt.Sprintf("the host is of pool %s now", w.pool)
	case w.trusts.general.issuerOf(leaf) == nil:
		return fmt.Sprintf("its issuer, %s, is not one of the pool's any more", leaf.Issuer)
	case w.order.Issuer != "" && !w.trusts.general.under(leaf, w.order.Issuer):
		return fmt.Sprintf("it is to be under issuer %s, and is under %s", w.order.Issuer, leaf.Issuer)
	case h.Reissue < w.order.Reissue:
		return fmt.Sprintf("all are issued anew (number %d; it is of number %d)", w.order.Reissue, h.Reissue)
	case !w.now.Before(dueAt(leaf, w.holder(planned.ID))):
		return whyDue
	}
	return ""
}

func (w *work) holder(id string) string { return w.agent.Host() + "/" + w.folder.name + "/" + id }

// obtain asks for a certificate and keeps it as the next one. The key and the call are on disk before the call is made: a
// crash asks again with the same words, and gets the same certificate.
func (w *work) obtain(ctx context.Context, planned recipe.PlannedCertificate, current *held, why string) (*held, error) {
	a, what := w.agent, "issue "+w.asks.name+"/"+planned.ID
	ask, err := w.asks.wanted(planned.ID)
	if err != nil {
		return nil, err
	}
	if ask != nil && (!sameWish(ask.Planned, planned) || ask.Request.Pool != w.pool || ask.Request.Issuer != w.order.Issuer ||
		ask.Reissue < w.order.Reissue || ask.Epoch != w.agent.identity().Epoch) {
		ask = nil // what was wanted then is not wanted any more
	}
	if ask != nil && ask.Refused != nil && ask.Refused.over(w) {
		ask = nil
		a.tries.succeeded(what)
	}
	if a.away() {
		return nil, errors.New("the authority cannot be asked")
	}
	if problem := a.tooEarly(); problem != "" {
		return nil, errors.New(problem)
	}
	if !a.tries.may(what, w.now) {
		if ask != nil && ask.Refused != nil {
			return nil, ask.Refused
		}
		return nil, fmt.Errorf("it was refused, and is asked for again after %s", a.tries[what].next.UTC().Format("15:04:05"))
	}
	if ask == nil {
		var pinned crypto.Signer
		if planned.Pinned && current != nil && !slices.Contains(w.order.Revoked, current.serial()) &&
			current.Epoch == a.identity().Epoch && sameAlgorithm(current.Planned.Algorithm, planned.Algorithm) {
			pinned = current.key
		}
		if ask, err = newWanted(planned, w.pool, pinned, why, w.now); err != nil {
			return nil, err
		}
		ask.Epoch, ask.Reissue, ask.Request.Issuer = a.identity().Epoch, w.order.Reissue, w.order.Issuer
		if why == whyDue && a.tries[what].failures == 0 {
			ask.Replaces, ask.Renew = current.serial(), pinned != nil
		}
		if err := w.asks.keepWanted(ask); err != nil {
			return nil, err
		}
	}
	a.log.Info("certificate wanted", "placement", w.folder.name, "certificate", planned.ID, "profile", planned.Profile, "because", why)
	fresh, err := w.ask(ctx, ask)
	if err != nil {
		a.tries.failed(what, w.now, a.pace)
		return nil, err
	}
	a.tries.succeeded(what)
	a.log.Info("certificate issued", "placement", w.folder.name, "certificate", planned.ID, "serial", fresh.serial(), "not_after", fresh.leaf().NotAfter)
	return fresh, nil
}

// ask makes the call and checks what comes back before it is kept. What is of no use is not kept. The call that brought it
// is kept, so that it is repeated instead of another certificate being issued with each try.
func (w *work) ask(ctx context.Context, ask *wanted) (*held, error) {
	id := ask.Planned.ID
	result, err := w.call(client.WithIdempotencyKey(ctx, ask.IdempotencyKey), ask)
	if err != nil {
		if p, ok := errors.AsType[*client.Problem](err); ok && final(p) {
			err = errors.Join(err, w.asks.drop(id, suffixWanted))
		}
		return nil, err
	}
	if result.Certificate == nil {
		return nil, fault.New(fault.Conflict, "an officer must decide on profile %s, and an agent does not wait for one", ask.Planned.Profile)
	}
	// It begins when it was issued, which is after this pass began: where a profile does not backdate, and the authority was
	// slow, the time of the pass would be too early for it.
	w.now = w.agent.now()
	fresh := &held{Planned: ask.Planned, Pool: w.pool, Epoch: w.agent.identity().Epoch, Reissue: ask.Reissue, Key: ask.Key, Path: result.Certificate.PEM + result.Certificate.Chain}
	err = fresh.parse()
	if err == nil {
		err = probe.Check(w.material(fresh, w.plan), w.plan, ask.Planned, w.now)
		if err != nil && w.judgedByTrust(fresh, ask.Planned) {
			err = nil // it waits for the CRLs, and those of a new pool are seconds away; check says so
		}
	}
	if err == nil {
		if why := w.replace(fresh, ask.Planned); why == whyEnded || why != "" && why != whyDue {
			err = errors.New(why)
		}
	}
	if err != nil {
		if ask.Refused == nil {
			ask.Refused = &refused{At: w.now}
		}
		ask.Refused.Serial, ask.Refused.Cause = result.Certificate.Serial, err.Error()
		if len(fresh.path) > 0 {
			ask.Refused.Serial = fresh.serial() // whatever the answer says beside it
		}
		return nil, errors.Join(ask.Refused, w.asks.keepWanted(ask))
	}
	if err := keyfile.CheckPair(fresh.key.Public(), fresh.leaf()); err != nil {
		return nil, err
	}
	if err := w.asks.keepHeld(fresh, suffixNext); err != nil {
		return nil, err
	}
	return fresh, w.asks.drop(id, suffixWanted)
}

// call asks for a certificate: for one in the place of another, so that the authority knows that the other one is not
// needed any more, or for one of its own.
func (w *work) call(ctx context.Context, ask *wanted) (*client.IssueResult, error) {
	api := w.agent.api
	switch {
	case ask.Replaces == "":
		return api.Issue(ctx, ask.Request)
	case ask.Renew:
		return api.Renew(ctx, "", ask.Replaces, client.RenewRequest{})
	}
	return api.Rekey(ctx, "", ask.Replaces, client.RekeyRequest{CSR: ask.Request.CSR})
}

// final reports whether the same call will never succeed, so that another is to be made: its words are refused, or its
// idempotency key was used. A refusal of the caller, or for a while, says nothing of the call.
func final(p *client.Problem) bool {
	switch fault.Kind(p.Kind()) {
	case fault.Invalid, fault.Conflict, fault.TooLarge, fault.NotFound:
		return true
	}
	return false
}
