package revocation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"math/big"
	"sync"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/pki/ocsp"
	"chancery/internal/store/db"
)

// Response is the answer to one OCSP request.
type Response struct {
	DER    []byte
	Status ocsp.ResponseStatus

	// ThisUpdate and NextUpdate are set when the answer may be kept by others until then: one certificate that was issued
	// here, and no nonce (RFC 5019 §6).
	ThisUpdate time.Time
	NextUpdate time.Time
	Tag        string // tells it from other answers; set with NextUpdate
	Cached     bool   // it was not signed for this request
}

func refusal(status ocsp.ResponseStatus) Response {
	return Response{DER: ocsp.ErrorResponse(status), Status: status}
}

// Respond answers a DER request. It always has an answer; err, where there is one, is what a node's log should say of it.
// allow, where it is not nil, is asked before anything is read or signed for this request alone, and may refuse that.
func (s *Service) Respond(ctx context.Context, request []byte, allow func() error) (Response, error) {
	r, err := ocsp.ParseRequest(request)
	if err != nil {
		return refusal(ocsp.MalformedRequest), err
	}
	now := time.Now()
	twins, err := s.issuersOf(ctx, r.CertIDs, now)
	if err != nil {
		return refusal(statusOf(err)), err
	}
	set, err := s.settings.Get(ctx)
	if err != nil {
		return refusal(statusOf(err)), err
	}
	of := periodAt(now.Add(-s.db.Age(now)), set.OCSP.Validity.Std())
	if len(r.CertIDs) == 1 && len(r.Nonce) == 0 {
		// A clock that was set back must not make an answer last longer. Nothing is signed until it is right again, so the answer
		// of a former period is the newest that there is.
		latest, in := s.db.Latest(now), &of
		if latest.After(now) {
			in = nil
		}
		for _, issuer := range twins {
			key := keyOf(issuer.ID, r.CertIDs[0].Serial)
			change := s.ca.ChangedHere(issuer.ID, r.CertIDs[0].Serial)
			if known, ok := s.answers.answer(key, &r.CertIDs[0], in, latest, change); ok {
				known.Cached = true
				return known, nil
			}
		}
	}
	if allow != nil {
		if err := allow(); err != nil {
			return refusal(statusOf(err)), err
		}
	}
	issuer, err := s.theOne(ctx, twins, r.CertIDs)
	if err != nil {
		return refusal(statusOf(err)), err
	}
	response, err := s.sign(ctx, issuer, r, of, now, int(set.OCSP.CacheEntries))
	if err != nil {
		return refusal(statusOf(err)), err
	}
	return response, nil
}

// statusOf is the map from refusals to OCSP statuses.
func statusOf(err error) ocsp.ResponseStatus {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.TooLarge:
		return ocsp.MalformedRequest
	case fault.NotFound, fault.Denied, fault.Unauthenticated:
		return ocsp.Unauthorized
	case fault.Unavailable, fault.RateLimited, fault.Conflict:
		return ocsp.TryLater
	default:
		return ocsp.InternalError
	}
}

// sign makes an answer; none while the clock is behind, since it would be dated before what was said already, and could
// call good what was revoked since.
func (s *Service) sign(ctx context.Context, issuer *ca.Issuer, r *ocsp.Request, of period, now time.Time, limit int) (Response, error) {
	if err := s.db.CheckClock(now); err != nil {
		return Response{}, err
	}
	statuses, asOf, history, err := s.statuses(ctx, issuer, r.CertIDs, now, limit)
	if err != nil {
		return Response{}, err
	}
	if known := periodAt(asOf, of.validity); known.start.Before(of.start) {
		of = known
	}
	responder, err := s.responder(ctx, issuer, of, now)
	if err != nil {
		return Response{}, err
	}
	if responder == nil {
		if issuer.KeyID == "" {
			return Response{}, fault.New(fault.NotFound,
				"issuer %s has no OCSP responder: its key is offline; use its CRL", issuer.Name)
		}
		return Response{}, fault.New(fault.Unavailable, "issuer %s has no OCSP responder yet", issuer.Name)
	}
	singles := make([]ocsp.SingleResponse, len(statuses))
	for i, status := range statuses {
		thisUpdate, nextUpdate, err := of.updates(status, responder.Certificate.NotAfter, now)
		if err != nil {
			return Response{}, err
		}
		singles[i] = single(r.CertIDs[i].Raw, status, thisUpdate, nextUpdate)
	}
	der, err := responder.Respond(singles, r.Nonce, now)
	if err != nil {
		return Response{}, err
	}
	response := Response{DER: der, Status: ocsp.Successful}
	if len(statuses) == 1 && len(r.Nonce) == 0 && statuses[0].Issued {
		sum := sha256.Sum256(der)
		response.ThisUpdate, response.NextUpdate, response.Tag = singles[0].ThisUpdate, singles[0].NextUpdate, hex.EncodeToString(sum[:16])
		id := &r.CertIDs[0]
		s.answers.keep(keyOf(issuer.ID, id.Serial), statuses[0], asOf, history, &answer{id.Hash, bytes.Clone(id.Raw), response, of}, limit)
	}
	return response, nil
}

// statuses returns what is known of certificates of an issuer, kept or read, since when all of it is known to be so, and in which history.
func (s *Service) statuses(ctx context.Context, issuer *ca.Issuer, ids []ocsp.CertID, now time.Time,
	limit int) (all []ca.Status, asOf time.Time, history int64, err error) {
	history = s.db.History()
	asOf = now.Add(-s.db.Age(now)) // before they are read
	if all, ok := s.kept(issuer, ids, now); ok {
		return all, asOf, history, nil
	}
	state, err := s.read(ctx, issuer, ids)
	if err == nil && s.db.MayBeBehind() && state.doubted(s.answers, issuer) {
		state, err = s.read(db.AtPrimary(ctx), issuer, ids)
	}
	if err == nil && state.ended {
		err = fault.New(fault.Unavailable, "the standby may show what was given up when another server was promoted")
	}
	if fault.Is(err, fault.Unavailable) {
		if all, at, ok := s.last(issuer, ids); ok {
			if at.After(asOf) {
				at = asOf
			}
			return all, at, history, nil
		}
	}
	if err != nil {
		return nil, time.Time{}, 0, err
	}
	state.old = state.lacks || asOf.Before(now)
	for i := range ids {
		status, err := s.judge(issuer, ids[i].Serial, state, state.statuses[i])
		if err != nil {
			return nil, time.Time{}, 0, err
		}
		if all = append(all, status); status.Issued {
			key := keyOf(issuer.ID, ids[i].Serial)
			if state.elsewhere && status.State == ca.Revoked {
				s.answers.told(key, state.statuses[i].Change, history)
			}
			s.answers.keep(key, status, asOf, history, nil, limit)
		}
	}
	return all, asOf, history, nil
}

// state is what one state of the database says of certificates.
type state struct {
	serials  []*big.Int
	statuses []ca.Status

	lacks, lacksFormer, ended bool // see db.Tx
	elsewhere                 bool // there is a server beside the node, and this was not read there
	old                       bool // something may have been issued since
}

func (s *Service) read(ctx context.Context, issuer *ca.Issuer, ids []ocsp.CertID) (st *state, err error) {
	err = s.db.Read(ctx, func(tx *db.Tx) error {
		st = &state{lacks: tx.Lacks(), lacksFormer: tx.LacksFormer(), ended: tx.MayHaveEnded(), elsewhere: s.db.ReadsStandby() && !tx.AtStandby()}
		for i := range ids {
			status, err := ca.StatusOf(ctx, tx, issuer, ids[i].Serial)
			if err != nil {
				return err
			}
			st.serials, st.statuses = append(st.serials, ids[i].Serial), append(st.statuses, status)
		}
		return nil
	})
	return st, err
}

// doubted reports whether more is known than a state says, so that the primary is asked, where it answers.
func (st *state) doubted(known *cache, issuer *ca.Issuer) bool {
	for i, status := range st.statuses {
		if _, ok := known.vouch(keyOf(issuer.ID, st.serials[i]), status); !ok && status.Issued {
			return true
		}
	}
	return st.ended
}

// judge returns what may be said of a certificate of which a state says something: what this node knows of later, or what the state
// says, unless it may lack a change of it. Revoked it stays, whatever else is lacking.
func (s *Service) judge(issuer *ca.Issuer, serial *big.Int, st *state, status ca.Status) (ca.Status, error) {
	here := s.ca.ChangedHere(issuer.ID, serial)
	if known, ok := s.answers.newer(issuer.ID, serial, status.Change); ok && known.Change >= here {
		return known, nil
	}
	vouched, ok := s.answers.vouch(keyOf(issuer.ID, serial), status)
	switch {
	case !status.Issued && st.old:
		return status, fault.New(fault.Unavailable, "serial %x is not in data that are not the newest; it may have been issued since", serial)
	case !status.Issued:
		return status, nil
	case st.lacks && status.Change < here:
		return status, fault.New(fault.Unavailable, "the status of %x was changed on this node, and the standby does not have that yet", serial)
	case st.lacksFormer && status.State != ca.Revoked: // which nothing takes back
		return status, fault.New(fault.Unavailable, "the standby may lack what this node acknowledged before it was started, and so a revocation of %x", serial)
	case ok:
		return vouched, nil
	case status.State != ca.Revoked:
		return status, fault.New(fault.Unavailable, "the standby may lack a change of the status of %x that this node has seen", serial)
	}
	return status, nil
}

// kept returns statuses that are kept, where all are, and changes were looked for a moment ago.
func (s *Service) kept(issuer *ca.Issuer, ids []ocsp.CertID, now time.Time) ([]ca.Status, bool) {
	all, upTo := make([]ca.Status, len(ids)), s.answers.upTo(issuer.ID)
	for i := range ids {
		status, _, ok := s.answers.status(keyOf(issuer.ID, ids[i].Serial), now)
		if !ok || status.Change < s.ca.ChangedHere(issuer.ID, ids[i].Serial) {
			return nil, false
		}
		// It was true when upTo was asked for, or it would not have been found after.
		status.Change = max(status.Change, upTo)
		all[i] = status
	}
	return all, true
}

// last returns what is kept of certificates, however old, and since when.
func (s *Service) last(issuer *ca.Issuer, ids []ocsp.CertID) (all []ca.Status, asOf time.Time, ok bool) {
	for i := range ids {
		status, at, ok := s.answers.last(keyOf(issuer.ID, ids[i].Serial))
		if !ok || status.Change < s.ca.ChangedHere(issuer.ID, ids[i].Serial) {
			return nil, time.Time{}, false
		}
		if all = append(all, status); i == 0 || at.Before(asOf) {
			asOf = at
		}
	}
	return all, asOf, true
}

// theOne chooses among issuers of one name and one key, which a request cannot tell apart: the one that issued what is
// asked about.
func (s *Service) theOne(ctx context.Context, twins []*ca.Issuer, ids []ocsp.CertID) (*ca.Issuer, error) {
	chosen := twins[0]
	if len(twins) == 1 {
		return chosen, nil
	}
	err := s.db.Read(ctx, func(tx *db.Tx) error {
		for _, issuer := range twins {
			for i := range ids {
				status, err := ca.StatusOf(ctx, tx, issuer, ids[i].Serial)
				if err != nil {
					return err
				}
				if status.Issued {
					chosen = issuer
					return nil
				}
			}
		}
		return nil
	})
	return chosen, err
}

// single says what is known of one certificate. A serial that was never issued is unknown; its answer has no nextUpdate,
// since it may be issued in a moment.
func single(certID []byte, status ca.Status, thisUpdate, nextUpdate time.Time) ocsp.SingleResponse {
	r := ocsp.SingleResponse{CertID: certID, ThisUpdate: thisUpdate, NextUpdate: nextUpdate}
	switch {
	case !status.Issued:
		r.Status, r.NextUpdate = ocsp.Unknown, time.Time{}
	case status.State == ca.Revoked || status.State == ca.Held:
		r.Status, r.RevokedAt, r.Reason = ocsp.Revoked, status.RevokedAt, status.Reason
	default:
		r.Status = ocsp.Good
	}
	return r
}

// directory finds issuers by the hashes in requests.
type directory struct {
	mu     sync.Mutex
	byHash map[issuerHash][]*ca.Issuer // several only where an issuer was certified again under its name and key
	byID   map[string]*ca.Issuer
	read   time.Time

	asking sync.Mutex // held by the one who asks the database; the others go on with what there is
}

type issuerHash struct {
	hash      crypto.Hash
	name, key string
}

// directoryAge is how long the directory is used before the issuers are read again; one that is not found is looked for
// anew, but not at every request.
const (
	directoryAge   = 10 * time.Second
	directoryRetry = 500 * time.Millisecond
)

// issuersOf returns the issuer of all certificates that a request asks about, and those that share its name and key. One
// signature speaks for one issuer, so a request about several is unauthorized.
func (s *Service) issuersOf(ctx context.Context, ids []ocsp.CertID, now time.Time) ([]*ca.Issuer, error) {
	var one []*ca.Issuer
	for i := range ids {
		found, err := s.directory.find(ctx, s.ca, &ids[i], now)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fault.New(fault.NotFound, "OCSP request is about an issuer that is not here")
		}
		if one != nil && one[0].ID != found[0].ID {
			return nil, fault.New(fault.NotFound,
				"OCSP request is about issuers %s and %s; one response speaks for one", one[0].Name, found[0].Name)
		}
		one = found
	}
	return one, nil
}

func (d *directory) find(ctx context.Context, authority *ca.CA, id *ocsp.CertID, now time.Time) ([]*ca.Issuer, error) {
	key := issuerHash{id.Hash, string(id.IssuerNameHash), string(id.IssuerKeyHash)}
	d.mu.Lock()
	found, age := d.byHash[key], now.Sub(d.read)
	d.mu.Unlock()
	// A negative age is that of a clock which was set back, and says nothing.
	if age >= 0 && (len(found) > 0 && age < directoryAge || len(found) == 0 && age < directoryRetry) {
		return found, nil
	}
	if !d.asking.TryLock() {
		if len(found) > 0 {
			return found, nil
		}
		d.asking.Lock()
	}
	defer d.asking.Unlock()
	d.mu.Lock()
	read := d.read
	found = d.byHash[key]
	d.mu.Unlock()
	if age := now.Sub(read); age > -directoryRetry && age < directoryRetry { // somebody else has asked meanwhile
		return found, nil
	}
	if err := d.load(ctx, authority, now); err != nil {
		if len(found) > 0 {
			return found, nil // the database is away; what was cached can still be answered
		}
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byHash[key], nil
}

func (d *directory) load(ctx context.Context, authority *ca.CA, now time.Time) error {
	issuers, err := authority.Issuers(ctx)
	if err != nil {
		return err
	}
	byHash, byID := make(map[issuerHash][]*ca.Issuer), make(map[string]*ca.Issuer)
	for _, issuer := range issuers {
		byID[issuer.ID] = issuer
		if issuer.Certificate == nil {
			continue
		}
		for _, hash := range ocsp.Hashes() {
			name, key, err := ocsp.IssuerHashes(hash, issuer.Certificate)
			if err != nil {
				return err
			}
			at := issuerHash{hash, string(name), string(key)}
			byHash[at] = append(byHash[at], issuer)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.byHash, d.byID, d.read = byHash, byID, now
	return nil
}
