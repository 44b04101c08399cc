package loop

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/agent/probe"
	"chancery/internal/agent/recipe"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
)

// A consumer that was told of a new CRL may serve with the old one for a moment, so what it takes is shown to it again; and it may
// close its port for that moment, so what came to no end is.
const (
	takeAgain   = 250 * time.Millisecond
	takesToStay = 5 * time.Second
)

// trial tries one certificate at one placement after the other.
type trial struct {
	agent  *Agent
	proof  client.Proof
	state  *proofState
	now    time.Time
	shown  *tls.Certificate // nil where the host may show nothing
	twin   bool
	issuer *trustIssuer // nil where nothing here trusts it
}

// takeIssuer notes the issuer of what is tried, with the newest CRL of it that is at hand.
func (t *trial) takeIssuer(one *trustIssuer) {
	if t.issuer == nil || t.issuer.list == nil {
		t.issuer = one
	}
}

// notListed says why it cannot be tried yet: no complete CRL lists it.
func (t *trial) notListed() string {
	if t.issuer == nil || t.shown == nil {
		return "" // it is refused here for its issuer, if for nothing else; or nothing is shown
	}
	number, listed := listing(t.issuer.list, t.shown.Leaf.SerialNumber)
	switch {
	case listed:
		return ""
	case t.issuer.list == nil:
		return fmt.Sprintf("no CRL of %s has come yet", t.issuer.Name)
	}
	return fmt.Sprintf("CRL %s of %s does not list %s %s yet", number, t.issuer.Name, t.what(), serialOf(t.shown.Leaf))
}

func (t *trial) what() string {
	if t.twin {
		return "the twin"
	}
	return "the certificate"
}

// at tries one placement.
func (t *trial) at(ctx context.Context, placement string) client.ProofTrial {
	folder, err := t.agent.state.folder(placement)
	if err != nil {
		return client.ProofTrial{Result: client.ProofNotTried, Detail: err.Error()}
	}
	record, err := folder.record()
	if err != nil {
		return client.ProofTrial{Result: client.ProofNotTried, Detail: err.Error()}
	}
	if record.Plan == nil {
		return client.ProofTrial{Result: client.ProofNotTried, Detail: "nothing is placed there yet: " + record.Observed.Message}
	}
	number, files := t.files(folder, record.Plan)
	out := client.ProofTrial{CRL: number}
	p := record.Plan.Probe
	if p == nil || p.Address == "" {
		out.Result, out.Untried, out.Detail = client.ProofNotTried, client.UntriedNoPort, "it has no port; "+files
		return out
	}
	if t.shown == nil {
		out.Result, out.Untried, out.Detail = client.ProofNotTried, client.UntriedNoTwin, t.proof.NoTwin+"; "+files
		return out
	}
	if t.twin && !uses(record.Plan, "crls") {
		out.Result, out.Untried = client.ProofNotTried, client.UntriedNoCRL
		out.Detail = "a twin is shown to those only that are given CRLs, and it is given none: if it goes by the issuer, it takes the certificate"
		return out
	}
	up := record.Observed.State == client.PlacementServed
	shown, err := t.present(ctx, *p, t.shown, up, true)
	switch {
	case probe.IsDown(err):
		out.Result, out.Untried, out.Detail = client.ProofNotTried, client.UntriedDown, fmt.Sprintf("nothing listens at %s; %s", p.Address, files)
		return out
	case err == nil && !shown.Asked:
		out.Result, out.Detail = client.ProofOpen, fmt.Sprintf("%s asks for no client certificate: it lets everybody in", p.Address)
		return out
	}
	out.With, out.Twin = serialOf(t.shown.Leaf), t.twin
	switch {
	case err != nil:
		out.Result, out.Detail = t.cut(err)
	case shown.Accepted:
		out.Result, out.Detail = client.ProofAccepted, fmt.Sprintf("%s takes it: %s; %s", p.Address, shown.Said, files)
	default:
		control, wrong := t.control(ctx, folder, record.Plan)
		out.Result, out.Detail = t.judge(ctx, *p, up, shown, control, wrong)
		if number == "" {
			out.Detail += "; " + files
		}
	}
	return out
}

// cut says what it is worth that a connection came to no verdict. A consumer that is being restarted is tried again for some
// minutes; what it is like for longer is not clear.
func (t *trial) cut(err error) (result, detail string) {
	if probe.IsCut(err) && t.now.Sub(t.state.Began) < proveEager {
		return client.ProofWaiting, fmt.Sprintf("it may be restarting, and is tried again: %v", err)
	}
	return client.ProofUnclear, err.Error()
}

// present shows a certificate until there is a verdict, or for so long that it stays with what was seen: that the connection was
// cut, or, of a consumer that is up, that nothing listened. One that it is wanted to refuse is also shown again while it is taken.
func (t *trial) present(ctx context.Context, p recipe.Probe, own *tls.Certificate, up, refuse bool) (*probe.Shown, error) {
	for until := time.Now().Add(takesToStay); ; {
		shown, err := probe.Present(ctx, p, own)
		again := err == nil && refuse && shown.Accepted || err != nil && (probe.IsCut(err) || up && probe.IsDown(err))
		if !again || time.Now().After(until) {
			return shown, err
		}
		t.agent.beat()
		select {
		case <-ctx.Done():
			return shown, err
		case <-time.After(takeAgain):
		}
	}
}

// judge says what a refusal is worth: a good certificate of the same issuer, the control, must be taken by the same consumer. Who
// only ended the connection must do so again after that: he may have been restarting the first time.
func (t *trial) judge(ctx context.Context, p recipe.Probe, up bool, refused *probe.Shown, control *tls.Certificate, wrong error) (result, detail string) {
	if wrong != nil {
		if refused.Revoked {
			return client.ProofRefused, fmt.Sprintf("it says itself that the certificate is revoked (%s); there is no good one to compare: %v", refused.Said, wrong)
		}
		return client.ProofUnclear, fmt.Sprintf("it is refused (%s), and there is no good certificate to compare: %v", refused.Said, wrong)
	}
	serial := serialOf(control.Leaf)
	good, err := t.present(ctx, p, control, up, false)
	if err == nil && good.Cut {
		good, err = t.present(ctx, p, control, up, false)
	}
	if err == nil && good.Accepted && refused.Cut {
		again, err := t.present(ctx, p, t.shown, up, false)
		switch {
		case err != nil:
			return t.cut(fmt.Errorf("it is refused (%s); once more: %w", refused.Said, err))
		case again.Accepted:
			return client.ProofAccepted, fmt.Sprintf("it was refused once (%s), and is taken: %s", refused.Said, again.Said)
		}
		refused = again
	}
	switch {
	case err != nil && !refused.Revoked:
		return t.cut(fmt.Errorf("it is refused (%s), and a good certificate could not be shown: %w", refused.Said, err))
	case err != nil:
		return client.ProofRefused, fmt.Sprintf("it says itself that the certificate is revoked (%s); a good one could not be shown: %v", refused.Said, err)
	case good.Accepted:
		return client.ProofRefused, fmt.Sprintf("%s; certificate %s, which is good, is taken: %s", refused.Said, serial, good.Said)
	case refused.Revoked && !good.Revoked:
		return client.ProofRefused, fmt.Sprintf("it says itself that the certificate is revoked (%s); of %s, which is good and is refused too, it says: %s",
			refused.Said, serial, good.Said)
	default:
		return client.ProofUnclear, fmt.Sprintf("it is refused (%s), and so is certificate %s, which is good (%s): a list of names may stand before it, "+
			"a CRL of the path may be missing or out of date, or it takes nobody of this issuer", refused.Said, serial, good.Said)
	}
}

// control is a good certificate of the same issuer: the one that is placed there, where a client can show it, or else one that
// the authority issues for this.
func (t *trial) control(ctx context.Context, folder *folder, plan *recipe.Plan) (*tls.Certificate, error) {
	for _, planned := range plan.Certificates {
		h, err := folder.held(planned.ID, suffixHeld)
		if err != nil || h == nil || !forClients(h.leaf()) || !t.good(h) {
			continue
		}
		return (&proofKey{Key: h.Key, Path: h.Path}).pair()
	}
	control, err := t.state.Control.pair()
	if control != nil && t.now.After(control.Leaf.NotAfter) {
		return nil, fmt.Errorf("the one of this proof ended at %s", control.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if control != nil || err != nil {
		return control, err
	}
	if !t.proof.Controls {
		return nil, errNoControls
	}
	if err := t.agent.askProofKey(ctx, t.proof, t.state, &t.state.Control, true); err != nil {
		return nil, err
	}
	return t.state.Control.pair()
}

// good reports whether a certificate that is placed is a good one of the issuer.
func (t *trial) good(h *held) bool {
	leaf := h.leaf()
	if t.issuer == nil || h.serial() == t.proof.Serial || !t.now.Before(leaf.NotAfter) || leaf.CheckSignatureFrom(t.issuer.certificate) != nil {
		return false
	}
	_, listed := listing(t.issuer.list, leaf.SerialNumber)
	return !listed
}

// files say whether what is placed for a consumer lists the certificate, and in which CRL.
func (t *trial) files(folder *folder, plan *recipe.Plan) (number, said string) {
	if !uses(plan, "crls") {
		return "", "its files hold no CRL"
	}
	if t.issuer == nil {
		return "", "it is given no trust in the issuer"
	}
	der := placedCRL(folder, t.issuer)
	if der == nil {
		return "", "its files hold no CRL of " + t.issuer.Name
	}
	list, err := crl.Parse(der)
	if err != nil {
		return "", "the CRL in its files cannot be read: " + err.Error()
	}
	itself, err := cert.ParseSerial(t.proof.Serial)
	if err != nil {
		return "", err.Error()
	}
	number, listed := listing(list, itself)
	if t.shown != nil { // a list that has the twin and not the certificate would prove nothing
		_, has := list.Lookup(t.shown.Leaf.SerialNumber)
		listed = listed && has
	}
	if !listed {
		return "", fmt.Sprintf("its files hold CRL %s of %s, which does not list it", number, t.issuer.Name)
	}
	return number, fmt.Sprintf("its files hold CRL %s of %s, which lists it", number, t.issuer.Name)
}

// placedCRL is the CRL of an issuer that is placed for a consumer; nil where none is.
func placedCRL(folder *folder, issuer *trustIssuer) []byte {
	var kept keptTrust
	if found, err := folder.state.readJSON(&kept, dirPlacements, folder.name, fileTrust); err != nil || !found {
		return nil
	}
	for _, der := range kept.CRLs {
		list, err := crl.Parse(der)
		if err == nil && bytes.Equal(list.RawIssuer, issuer.certificate.RawSubject) && list.CheckIssuer(issuer.certificate) == nil {
			return der
		}
	}
	return nil
}
