package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fault"
	"chancery/internal/fleet/trust"
	"chancery/internal/pki/cert"
	"chancery/internal/pki/checkpoint"
	"chancery/internal/store/keys"
	"chancery/internal/store/once"
	"chancery/internal/upkeep/backup"
	"chancery/internal/upkeep/doctor"
	"chancery/internal/upkeep/finding"
	"chancery/internal/upkeep/status"
	"chancery/internal/upkeep/verify"
)

func (s *Server) showStatus(ctx context.Context, _ *none) (*out[client.Status], error) {
	st, err := status.Of(ctx, s.Services, time.Now())
	if err != nil {
		return nil, err
	}
	w := client.Status{
		Version: s.options.Version, Node: st.Node, Time: st.Time, Started: s.started.UTC(), Ready: st.Clock == nil && s.DB.CheckWrites() == nil, Clock: "ok",
		Store:   client.StoreStatus{Engine: string(st.Engine), Durability: st.Durability, Schema: st.Schema},
		Pending: st.Pending, Issuers: []client.IssuerStatus{}, Expiring: []client.Expiring{}, Leases: []client.Lease{}, Warnings: []string{},
	}
	if st.Clock != nil {
		w.Clock = st.Clock.Error()
	}
	for _, i := range st.Issuers {
		is := client.IssuerStatus{
			Name: i.Name, State: string(i.State), NotAfter: i.NotAfter, CRLNumber: i.Number, ThisUpdate: i.ThisUpdate, NextUpdate: i.NextUpdate,
		}
		if !i.ThisUpdate.IsZero() {
			is.CRLAge = cert.Duration(st.Time.Sub(i.ThisUpdate).Round(time.Second)).String()
		}
		w.Issuers = append(w.Issuers, is)
	}
	for _, e := range st.Expiring {
		w.Expiring = append(w.Expiring, client.Expiring{Days: int(e.Days), Count: e.Count})
	}
	for _, l := range st.Leases {
		w.Leases = append(w.Leases, client.Lease{Name: l.Name, Holder: l.Holder, Epoch: l.Epoch, Expires: l.Expires})
	}
	w.Hosts = client.HostCounts(st.Hosts)
	budget, err := status.BudgetOf(ctx, s.Services, st.Time)
	if err != nil {
		return nil, err
	}
	w.Outage = wireBudget(budget, st.Time)
	w.Warnings = append(w.Warnings, st.Warnings...)
	return answer(w), nil
}

func wireBudget(b *status.Budget, now time.Time) client.OutageBudget {
	left, _, _ := b.Left(now)
	w := client.OutageBudget{Seconds: int64(left / time.Second), Ended: wireEnds(b.Ended), Ends: wireEnds(b.Ends)}
	if !b.Caches.IsZero() {
		w.OCSP = &client.OutageOCSP{Caches: b.Caches}
	}
	return w
}

func wireEnds(ends []status.End) []client.OutageEnd {
	all := []client.OutageEnd{}
	for _, e := range ends {
		all = append(all, client.OutageEnd{Kind: string(e.Kind), What: e.What, At: e.At})
	}
	return all
}

func (s *Server) signCheckpoint(ctx context.Context, in *in0) (*out[client.Checkpoint], error) {
	number, err := act(ctx, s, in, func(call once.Call) (int64, error) {
		signed, err := s.options.Checkpoints.Sign(ctx, call)
		if err != nil {
			return 0, err
		}
		return signed.Number, nil
	})
	if err != nil {
		return nil, err
	}
	signed, err := s.Audit.Numbered(ctx, number)
	if err != nil {
		return nil, err
	}
	return answer(wireCheckpoint(signed)), nil
}

func (s *Server) showCheckpoint(ctx context.Context, in *struct {
	Number string `path:"number" maxLength:"20" doc:"its number, or newest"`
}) (*out[client.Checkpoint], error) {
	if in.Number == "newest" {
		signed, err := s.Audit.Newest(ctx)
		if err != nil {
			return nil, err
		}
		return answer(wireCheckpoint(signed)), nil
	}
	number, err := strconv.ParseInt(in.Number, 10, 64)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%q is neither a checkpoint's number nor newest", in.Number).At("path number")
	}
	signed, err := s.Audit.Numbered(ctx, number)
	if err != nil {
		return nil, err
	}
	return answer(wireCheckpoint(signed)), nil
}

func wireCheckpoint(c *checkpoint.Signed) client.Checkpoint {
	return client.Checkpoint{Number: c.Number, Time: c.Time, Text: string(c.Raw)}
}

func (s *Server) doctor(ctx context.Context, _ *none) (*outStream, error) {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	look := doctor.Node{
		Dir: s.options.Dir, DB: s.DB, Keys: s.Keys, Issuer: s.issuerStates, Hosts: s.Hosts.Count, Trust: s.endingTrust, Moves: s.Rollouts.Working, Pairs: s.CA.KeyProblems, Drills: s.lastDrill, OfflineWarning: set.CRL.OfflineWarning.Std(),
		Clones: s.Clones.Troubles, Twins: s.CA.Twins, Renewed: s.renewedIssuers,
	}
	return s.findings(ctx, look.Look(ctx, time.Now())), nil
}

func (s *Server) verify(ctx context.Context, in *in[client.VerifyRequest]) (*outStream, error) {
	shown := verify.Shown{Checkpoints: in.Body.Checkpoints}
	for i, text := range in.Body.AuditKeys {
		pointer := fmt.Sprintf("/audit_keys/%d", i)
		der, err := decodePEM(text, pointer, "PUBLIC KEY")
		if err != nil {
			return nil, err
		}
		key, err := cert.ParsePublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pointer, err)
		}
		shown.AuditKeys = append(shown.AuditKeys, key)
	}
	all, err := verify.Store(ctx, s.Services, shown)
	if err != nil {
		return nil, err
	}
	return s.findings(ctx, all), nil
}

// lastDrill tells doctor whether backups were tried.
func (s *Server) lastDrill(ctx context.Context) (backup.Drilled, time.Duration, error) {
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return backup.Drilled{}, 0, err
	}
	last, err := backup.LastDrill(ctx, s.Audit)
	return last, set.Backup.Drill.Std(), err
}

// issuerStates tells doctor what status knows of the issuers.
func (s *Server) issuerStates(ctx context.Context) ([]doctor.IssuerState, error) {
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	states := make([]doctor.IssuerState, len(all))
	for n, i := range all {
		states[n] = doctor.IssuerState{Name: i.Name, Root: i.Root(), Online: i.KeyID != "", Retired: i.State == "retired", Pending: i.Certificate == nil}
		if i.Certificate == nil {
			continue
		}
		states[n].NotAfter = i.Certificate.NotAfter
		list, err := s.currentList(ctx, i)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if err == nil {
			states[n].NextUpdate, states[n].RenewAt = list.NextUpdate, list.RenewAt(set, i)
			if i.CRL.Partitions == 0 && !i.CRL.Delta && !i.CRL.Scheduled {
				states[n].Entries, states[n].WholeUpTo = list.Entries, set.CRL.WholeUpTo
			}
		}
	}
	return states, nil
}

// renewedIssuers tells doctor who presents what issuers had before they were renewed.
func (s *Server) renewedIssuers(ctx context.Context, now time.Time) (all []doctor.Renewed, err error) {
	issuers, err := s.CA.Issuers(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range issuers {
		former, err := s.former(ctx, i, now)
		if err != nil {
			return nil, err
		}
		for _, f := range former {
			if f.Placements == 0 {
				continue
			}
			r := doctor.Renewed{Issuer: i.Name, Serial: f.Serial, NotAfter: f.NotAfter, Revoked: f.State == string(ca.Revoked), Placements: f.Placements, Hosts: f.Hosts}
			if r.By, err = s.Hosts.WhoPresentsFormer(ctx, trust.Fingerprint(i.Certificate), f.Fingerprint, doctor.MostPresented); err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// findings streams findings as they are made, one a line.
func (s *Server) findings(ctx context.Context, all finding.Seq) *outStream {
	return &outStream{callOf(ctx).stream(mediaLines, func(w io.Writer) error {
		// Looking may take minutes before it finds anything, and the caller wants to know that it has begun.
		out := w.(*steady)
		out.begin()
		enc := json.NewEncoder(w)
		for f, err := range all {
			if err != nil {
				return err
			}
			err := enc.Encode(client.Finding{Level: string(f.Level), Check: f.Check, Object: f.Object, Message: f.Message, Seen: f.Seen, Do: f.Do, Hint: f.Hint})
			if err != nil {
				return err
			}
			out.Flush()
		}
		return nil
	})}
}

func (s *Server) backup(ctx context.Context, _ *in0) (*outStream, error) {
	recipient, err := s.recovery(ctx)
	if err != nil {
		return nil, err
	}
	set, err := s.Settings.Get(ctx)
	if err != nil {
		return nil, err
	}
	// Opened before the answer begins, so that a node that cannot sign says so instead of breaking off.
	signer, err := s.AuditSigner(ctx)
	if err != nil {
		return nil, err
	}
	header := backup.Header{Authority: set.Authority, Node: s.Audit.Node(), Version: s.options.Version}
	return &outStream{callOf(ctx).stream(mediaBinary, func(w io.Writer) error {
		return backup.Write(ctx, w, s.DB, recipient, header, signer)
	})}, nil
}

// recovery is the public key that only the offline recovery key answers to.
func (s *Server) recovery(ctx context.Context) (string, error) {
	all, err := s.Keys.Recipients(ctx)
	if err != nil {
		return "", err
	}
	for _, r := range all {
		// A row that somebody else put there, or changed, would make backups that only he can open.
		if r.Kind == keys.KindRecovery && r.Endorsed {
			return r.PublicKey, nil
		}
	}
	return "", fault.New(fault.Conflict, "the authority has no recovery recipient that this node vouches for, so its owner could not open a backup").
		WithHint("chancery doctor says what is wrong with the wraps")
}
