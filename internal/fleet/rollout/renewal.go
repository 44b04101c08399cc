package rollout

import (
	"context"
	"fmt"
	"slices"

	"chancery/client"
	"chancery/internal/authority/ca"
	"chancery/internal/fleet/host"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// Successor says under which issuer, by its name, a certificate is renewed or re-keyed whose own issuer still issues; empty for
// its own.
//
// What a host renews goes where everything else goes that it orders: to the issuer that it was told of, else to that which it is
// held at until its wave comes, else to the default of its pool. So after a rollout that was aborted half-way each host follows
// the default at its next renewal, whoever asks for it. What others renew stays under its issuer, unless a rollout is about to
// take the trust in that away.
func (s *Service) Successor(ctx context.Context, by access.Principal, old *ca.Certificate) (successor string, err error) {
	if old.Issuer.Default {
		return "", nil
	}
	all, err := s.CA.Issuers(ctx)
	if err != nil {
		return "", err
	}
	n := slices.IndexFunc(all, func(i *ca.Issuer) bool { return i.Default && i.Pool == old.Issuer.Pool })
	err = s.DB.Read(ctx, func(tx *db.Tx) error {
		order, isHost, err := host.OrderOf(ctx, tx, old.Requester)
		if err != nil {
			return err
		}
		follows := false
		switch {
		case isHost && order.Issuer != "":
			successor = order.Issuer
		case isHost:
			follows = !order.Held
		default:
			follows, err = isLeft(ctx, tx, old.Issuer)
		}
		if follows && n >= 0 {
			successor = all[n].Name
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("find under which issuer what %s has is renewed: %w", by.Name, err)
	}
	return successor, nil
}

// afterAbort says what becomes of the hosts of a rollout that was aborted while all trusted both the old and the new. What is
// placed stays; the default of the pool stays what it became with the stage rekey, and whoever gets a certificate, be it that his
// own is due, gets it under that.
func (r *row) afterAbort() string {
	follows, other := r.plan.To, r.plan.From
	if r.backwards && r.stage != client.StageTrust {
		follows, other = other, follows
	}
	text := fmt.Sprintf("both %s and %s stay trusted; a host keeps the certificate that it has until the next one is due, and gets that under %s, the default "+
		"of the pool", r.plan.Said.Old, r.plan.Said.New, follows)
	if follows != other && len(r.plan.Closed) == 0 {
		text += fmt.Sprintf(" (chancery issuer default %s has it get it under that)", other)
	}
	return text + "; chancery pool trust drop takes away the one that nobody presents under"
}

// isLeft reports whether a rollout is having the hosts of an issuer's pool leave it.
func isLeft(ctx context.Context, tx *db.Tx, i *ca.Issuer) (bool, error) {
	at, err := read(ctx, tx, `WHERE pool = $1 AND ended_at = 0`, i.Pool)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(at, func(r *row) bool {
		begun := r.stage == client.StageRekey || r.stage == client.StageLeave
		return movesTrust(r.kind) && begun && len(r.leaving([]*ca.Issuer{i})) > 0
	}), nil
}
