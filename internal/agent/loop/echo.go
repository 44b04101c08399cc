package loop

import (
	"crypto/x509"
	"encoding/hex"
	"slices"

	"chancery/client"
	"chancery/internal/agent/recipe"
)

// This file is what a rollout goes by: which trust is in use here, and under whom what is placed was issued. All of it is
// said of what was seen in this pass, and none of it changes while nothing changes.

// observeTrust says which version of the trust set is placed and in use: the consumer has been seen to take it, or does not
// run, and then reads it when it starts.
func (w *work) observeTrust(o *client.Observation) {
	plan := w.record.Plan
	if plan == nil {
		if w.plan != nil && !takesTrust(w.plan) {
			o.Trust = w.trusts.general.version
		}
		return
	}
	t := w.trustOf(plan)
	if !takesTrust(plan) {
		o.Trust = w.trusts.general.version
		return
	}
	w.notes = append(w.notes, t.ended...)
	if uses(plan, "crls") {
		o.CRLEnds = w.record.CRLEnds
		w.notes = append(w.notes, t.listless()...)
	}
	if !w.sure || w.record.Owed != "" {
		return
	}
	if uses(plan, "pinned") {
		o.Pinned = w.pinned()
	}
	// What could not be placed leaves the version of before in use.
	if w.record.Placed.sameTrust(w.goal) && (!uses(plan, "crls") || t.whole()) && w.record.Trust != t.version {
		if err := w.settledStores(); err != nil {
			w.fail(err)
			return
		}
		w.record.Trust = t.version
	}
	o.Trust = w.record.Trust
}

// mostPinned bounds the fingerprints in a report.
const mostPinned = 1000

// pinned are the fingerprints of the pinned certificates that are placed.
func (w *work) pinned() []string {
	_, m, err := w.placedSet()
	if err != nil {
		return nil
	}
	var all []string
	for _, c := range m[mainOf(w.record.Plan)].Pinned {
		all = append(all, hex.EncodeToString(client.Fingerprint(c.Raw)))
	}
	slices.Sort(all)
	return all[:min(len(all), mostPinned)]
}

// observeUse says under whom what is placed was issued, and what a plan for a rollout needs to know of the consumer.
func (w *work) observeUse(o *client.Observation) {
	plan := w.record.Plan
	if plan == nil {
		plan = w.plan
	} else {
		w.observeIssuer(o, plan)
	}
	if plan == nil {
		return
	}
	if plan.Reload != nil {
		o.Reload, o.Interrupts = cut(plan.Reload.Name, 200), plan.Reload.Interrupts
	}
	if plan.Probe != nil {
		o.Address, o.StartTLS = plan.Probe.Address, plan.Probe.StartTLS
	}
}

// observeIssuer says whose the certificates are that are placed. Of several it is that of the one which is behind: the oldest
// of those that are not under the issuer that is wanted. A placement counts as moved when all of it is.
func (w *work) observeIssuer(o *client.Observation, plan *recipe.Plan) {
	var behind *held
	late := func(h *held) bool {
		return w.order.Issuer != "" && !w.trusts.general.under(h.leaf(), w.order.Issuer)
	}
	for n, planned := range plan.Certificates {
		h, err := w.folder.held(planned.ID, suffixHeld)
		if err != nil || h == nil {
			return
		}
		if n == 0 || h.Reissue < o.Reissued {
			o.Reissued = h.Reissue
		}
		if behind == nil || late(h) && !late(behind) || late(h) == late(behind) && h.leaf().NotBefore.Before(behind.leaf().NotBefore) {
			behind = h
		}
	}
	if issuer := w.issuerOf(behind); issuer != nil {
		o.Issuer = hex.EncodeToString(client.Fingerprint(issuer.Raw))
	}
}

// issuerOf is the certificate of whoever issued one: the next in its path, or a root.
func (w *work) issuerOf(h *held) *x509.Certificate {
	if h == nil {
		return nil
	}
	if len(h.path) > 1 {
		return h.path[1]
	}
	if i := w.trusts.general.issuerOf(h.leaf()); i != nil {
		return i.certificate
	}
	return nil
}
