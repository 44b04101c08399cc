package loop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/crl"
	"chancery/internal/pki/keyfile"
)

// dirProofs holds what proofs of revocation are tried with, until they end.
const dirProofs = "proofs"

const (
	// proveAgain is the pause until a trial that waits is looked at again, where nothing wakes the agent earlier, and proveSlowly
	// that after the first minutes.
	proveAgain  = 5 * time.Second
	proveSlowly = time.Minute
	proveEager  = 3 * time.Minute
)

// mostProofs is how many proofs a host tries at a time.
const mostProofs = 16

// proofState is what the agent has of a proof.
type proofState struct {
	Began   time.Time           `json:"began"`
	Own     *proofKey           `json:"own,omitempty"`     // the revoked certificate itself, where the host had its key
	Twin    *proofKey           `json:"twin,omitempty"`    // its twin
	Control *proofKey           `json:"control,omitempty"` // a good one
	Trials  []client.ProofTrial `json:"trials,omitempty"`  // as they were reported
	Told    bool                `json:"told,omitempty"`
}

// proofKey is a key, and the path for it once that is there.
type proofKey struct {
	Key  string `json:"key"`            // PKCS#8, PEM
	Path string `json:"path,omitempty"` // PEM, leaf first, the root left out
}

// pair is the certificate as a client shows it; nil before it is issued.
func (k *proofKey) pair() (*tls.Certificate, error) {
	if k == nil || k.Path == "" {
		return nil, nil
	}
	key, err := keyfile.ParsePrivateKey([]byte(k.Key), nil)
	if err != nil {
		return nil, err
	}
	path, err := keyfile.ParseCertificates([]byte(k.Path))
	if err != nil {
		return nil, err
	}
	if err := keyfile.CheckPair(key.Public(), path[0]); err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: path[0]}
	for _, c := range path {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

func serialOf(c *x509.Certificate) string { return cert.FormatSerial(c.SerialNumber) }

// proofFile is the name of a proof's file: its ID comes over the network, and is no name of a file.
func proofFile(id string) string {
	return fmt.Sprintf("%x.json", client.Fingerprint([]byte(id))[:12])
}

// proofState reads what is kept of a proof. What cannot be read is begun anew.
func (a *Agent) proofState(id string, now time.Time) (*proofState, error) {
	var st proofState
	found, err := a.state.readJSON(&st, dirProofs, proofFile(id))
	if _, broken := errors.AsType[*unreadable](err); broken {
		a.log.Error("what is kept of a proof cannot be read, and is begun anew", "error", err)
		st, found, err = proofState{}, false, nil
	}
	if !found {
		st.Began = now
	}
	return &st, err
}

func (a *Agent) keepProof(id string, st *proofState) error {
	return a.state.writeJSON(st, dirProofs, proofFile(id))
}

// beginProofs tells of the proofs that it hears of, so that nobody takes this host for one that is off, and keeps the keys of the
// certificates themselves where the host has them: its placements are about to drop them.
func (a *Agent) beginProofs(ctx context.Context, d *client.Desired, now time.Time) error {
	for _, p := range d.Proofs[:min(len(d.Proofs), mostProofs)] {
		st, err := a.proofState(p.ID, now)
		if err != nil {
			return err
		}
		if st.Own == nil && st.Twin == nil {
			if st.Own = a.heldKey(d, p); st.Own != nil {
				if err := a.keepProof(p.ID, st); err != nil {
					return err
				}
			}
		}
		if st.Told || a.away() || !now.Before(p.Ends) {
			continue
		}
		if err := a.tellProof(ctx, p, st, waiting(d, "its agent has heard of it")); err != nil {
			return err
		}
	}
	return nil
}

// heldKey is the key of a certificate, with its path, where a placement has it and a client can show it; nil otherwise.
func (a *Agent) heldKey(d *client.Desired, p client.Proof) *proofKey {
	for _, order := range d.Placements {
		folder, err := a.state.folder(placementName(order))
		if err != nil {
			continue
		}
		record, err := folder.record()
		if err != nil || record.Plan == nil {
			continue
		}
		for _, planned := range record.Plan.Certificates {
			for _, suffix := range []string{suffixHeld, suffixNext} {
				h, err := folder.held(planned.ID, suffix)
				if err != nil || h == nil || h.serial() != p.Serial || !forClients(h.leaf()) {
					continue
				}
				return &proofKey{Key: h.Key, Path: h.Path}
			}
		}
	}
	return nil
}

func placementName(order client.DesiredPlacement) string {
	if order.Name != "" {
		return order.Name
	}
	return order.Recipe
}

// forClients reports whether a server may take the certificate for a client's.
func forClients(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// prove tries the revoked certificates of the desired state upon this host's consumers, and tells what was seen. It comes after
// the placements, which have placed the newest CRLs by then.
func (a *Agent) prove(ctx context.Context, d *client.Desired, t *trusts, now time.Time) (problems []string) {
	a.proveAt = time.Time{}
	if err := a.dropProofs(d, now); err != nil {
		problems = append(problems, err.Error())
	}
	if a.away() {
		return problems
	}
	for _, p := range d.Proofs[:min(len(d.Proofs), mostProofs)] {
		if ctx.Err() != nil || !now.Before(p.Ends) {
			continue
		}
		if err := a.proveOne(ctx, p, d, t, now); err != nil {
			problems = append(problems, fmt.Sprintf("the proof that %s is refused: %v", p.Serial, err))
			a.log.Warn("proof", "serial", p.Serial, "because", err)
		}
		a.beat()
	}
	return problems
}

// dropProofs removes what is kept of proofs that ended.
func (a *Agent) dropProofs(d *client.Desired, now time.Time) error {
	names, err := a.state.list(dirProofs)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.ContainsFunc(d.Proofs, func(p client.Proof) bool { return proofFile(p.ID) == name && now.Before(p.Ends) }) {
			continue
		}
		if err := a.state.remove(dirProofs, name); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) proveOne(ctx context.Context, p client.Proof, d *client.Desired, t *trusts, now time.Time) error {
	st, err := a.proofState(p.ID, now)
	if err != nil {
		return err
	}
	trials, err := a.proofTrials(ctx, p, st, d, t, now)
	if err != nil {
		return errors.Join(err, a.tellProof(ctx, p, st, waiting(d, err.Error())))
	}
	if slices.ContainsFunc(trials, unfinished) {
		again := proveAgain
		if now.Sub(st.Began) > proveEager {
			again = proveSlowly
		}
		a.proveAt = a.now().Add(again) // trials take their time
	}
	return a.tellProof(ctx, p, st, trials)
}

func unfinished(t client.ProofTrial) bool {
	return t.Result == client.ProofWaiting || t.Result == client.ProofAccepted
}

// waiting are trials that were not made yet.
func waiting(d *client.Desired, because string) []client.ProofTrial {
	var all []client.ProofTrial
	for _, order := range d.Placements {
		all = append(all, client.ProofTrial{Placement: placementName(order), Result: client.ProofWaiting, Detail: cut(because, mostDetail)})
	}
	return all
}

// mostDetail is what the authority takes of a trial's detail.
const mostDetail = 1000

func (a *Agent) tellProof(ctx context.Context, p client.Proof, st *proofState, trials []client.ProofTrial) error {
	if st.Told && slices.Equal(st.Trials, trials) {
		return nil
	}
	if err := a.api.ReportProof(ctx, p.ID, client.ProofReport{Trials: trials}); err != nil {
		return fmt.Errorf("tell what was seen: %w", err)
	}
	st.Trials, st.Told = trials, true
	return a.keepProof(p.ID, st)
}

// proofTrials tries what can be tried by now. What has its final result is not tried again.
func (a *Agent) proofTrials(ctx context.Context, p client.Proof, st *proofState, d *client.Desired, t *trusts, now time.Time) ([]client.ProofTrial, error) {
	tried := &trial{agent: a, proof: p, state: st, now: now}
	if p.NoTwin == "" || st.Own != nil {
		shown, err := a.proofKey(ctx, p, st)
		if err != nil {
			return nil, err
		}
		tried.shown, tried.twin = shown, st.Own == nil
	}
	for _, set := range t.all() {
		if !set.loaded && set.load != nil {
			set.loaded = true
			set.load()
		}
		for i := range set.issuers {
			if one := &set.issuers[i]; hex.EncodeToString(client.Fingerprint(one.certificate.Raw)) == p.IssuedBy {
				tried.takeIssuer(one)
			}
		}
	}
	if because := tried.notListed(); because != "" {
		return waiting(d, because), nil
	}
	var all []client.ProofTrial
	for _, order := range d.Placements {
		name := placementName(order)
		before := slices.IndexFunc(st.Trials, func(t client.ProofTrial) bool { return t.Placement == name })
		if before >= 0 && settledTrial(st.Trials[before]) {
			all = append(all, st.Trials[before])
			continue
		}
		one := tried.at(ctx, name)
		one.Placement, one.Detail = name, cut(one.Detail, mostDetail)
		all = append(all, one)
		a.beat()
	}
	return all, nil
}

// settledTrial reports whether a trial is not made again: something was shown, and not taken.
func settledTrial(t client.ProofTrial) bool {
	return t.With != "" && (t.Result == client.ProofRefused || t.Result == client.ProofUnclear)
}

// proofKey is what is tried: the certificate itself, or a twin, which is asked for here.
func (a *Agent) proofKey(ctx context.Context, p client.Proof, st *proofState) (*tls.Certificate, error) {
	if own, err := st.Own.pair(); own != nil || err != nil {
		return own, err
	}
	if err := a.askProofKey(ctx, p, st, &st.Twin, false); err != nil {
		return nil, fmt.Errorf("get a twin: %w", err)
	}
	return st.Twin.pair()
}

// askProofKey gets a twin or a control, where there is none. The key is on disk before it is asked for, so that a crash asks
// with the same one.
func (a *Agent) askProofKey(ctx context.Context, p client.Proof, st *proofState, slot **proofKey, control bool) error {
	if *slot != nil && (*slot).Path != "" {
		return nil
	}
	if *slot == nil {
		key, err := keyfile.Generate(algorithmLike(p.Algorithm), 0)
		if err != nil {
			return err
		}
		text, err := keyfile.EncodePKCS8(key)
		if err != nil {
			return err
		}
		*slot = &proofKey{Key: string(text)}
		if err := a.keepProof(p.ID, st); err != nil {
			return err
		}
	}
	key, err := keyfile.ParsePrivateKey([]byte((*slot).Key), nil)
	if err != nil {
		return err
	}
	csr, err := requestPEM(&cert.CSRTemplate{}, key)
	if err != nil {
		return err
	}
	issued, err := a.api.ProofKey(ctx, p.ID, client.ProofKeyRequest{CSR: csr, Control: control})
	if err != nil {
		return err
	}
	(*slot).Path = issued.PEM + issued.Chain
	if _, err := (*slot).pair(); err != nil {
		(*slot).Path = ""
		return fmt.Errorf("what the authority sent is not taken: %w", err)
	}
	return a.keepProof(p.ID, st)
}

// algorithmLike is the algorithm of a key of the same kind. An RSA key is no longer than needed: it lives an hour.
func algorithmLike(algorithm string) keyfile.Algorithm {
	if strings.HasPrefix(algorithm, "rsa") {
		return keyfile.RSA3072
	}
	if a, err := keyfile.ParseAlgorithm(algorithm); err == nil {
		return a
	}
	return keyfile.ECDSAP256
}

// listing is a complete CRL that lists a serial number: its own number.
func listing(list *crl.List, serial *big.Int) (number string, listed bool) {
	if list == nil {
		return "", false
	}
	if list.Number != nil {
		number = list.Number.String()
	}
	_, listed = list.Lookup(serial)
	return number, listed
}

// errNoControls says that the proof was begun without.
var errNoControls = fault.New(fault.Denied, "the proof was begun without controls")
