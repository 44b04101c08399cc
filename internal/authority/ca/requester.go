package ca

import (
	"context"
	"slices"

	"chancery/internal/fault"
	"chancery/internal/pki/cert"
	"chancery/internal/store/access"
	"chancery/internal/store/db"
)

// keepsNoSecret refuses a challengePassword (RFC 2985 5.4.1) in what would be stored until it is decided, and shown to
// officers: it is a secret of the requester's, it is under his signature, so it cannot be taken out, and nothing here uses it.
func keepsNoSecret(order *Order) error {
	if len(order.CSR) == 0 {
		return nil
	}
	request, err := cert.CSRLimits{}.ParsePEM(order.CSR)
	if err != nil {
		return err
	}
	if request.ChallengePassword != "" {
		return fault.New(fault.Invalid, "the certification request has a challengePassword, which would be stored while the request waits").At("csr").
			WithHint("make the request without one")
	}
	return nil
}

// requester is who made a request, as they are now: between the request and its approval they may have lost a role, or have
// been disabled or deleted, and get no more than they could ask for today.
func (r *Request) requester(ctx context.Context, tx *db.Tx) (access.Principal, error) {
	p, err := access.Lookup(ctx, tx, r.Requester)
	switch {
	case fault.Is(err, fault.NotFound):
		return p, fault.New(fault.Denied, "%s, who made request %s, is no longer known", r.Requester, r.ID).WithHint("chancery request reject %s", r.ID)
	case err != nil:
		return p, err
	}
	if err := p.May(access.SubmitRequest); err != nil {
		return p, fault.New(fault.Denied, "request %s: who made it may not any more: %w", r.ID, err).WithHint("chancery request reject %s", r.ID)
	}
	return p, nil
}

// stillFrom refuses when the requester is not what they were when the request was judged.
func (r *Request) stillFrom(ctx context.Context, tx *db.Tx, judged access.Principal) error {
	p, err := r.requester(ctx, tx)
	if err == nil && !slices.Equal(p.Roles, judged.Roles) {
		err = fault.New(fault.Conflict, "the roles of %s changed while request %s was approved", p.Actor(), r.ID).WithHint("approve it again")
	}
	return err
}
