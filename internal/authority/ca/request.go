package ca

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/access"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/once"
)

// requestBody is what a request keeps of the call that made it: the order, and who asked, so that an approval judges the
// names by the requester's entitlements and not by the officer's.
type requestBody struct {
	Order     Order            `json:"order"`
	Requester access.Principal `json:"requester"`
}

// Submit asks for a certificate. Where the profile asks for no approval it is issued at once and returned; otherwise the
// request waits for an officer and is returned. What the caller is not entitled to is refused in either case.
func (c *CA) Submit(ctx context.Context, by access.Principal, order Order) (*Request, *Certificate, error) {
	now := time.Now()
	if err := c.admit(ctx, by, access.SubmitRequest, now); err != nil {
		return nil, nil, err
	}
	p, err := c.plan(ctx, by, &order, now)
	if err != nil {
		issued, err := c.replay(ctx, by, &order, now, fmt.Errorf("judge the request: %w", err))
		return nil, issued, err
	}
	if p.atOnce {
		issued, err := c.issue(ctx, by, &order, p, now)
		return nil, issued, err
	}
	if err := keepsNoSecret(&order); err != nil {
		return nil, nil, err
	}
	r := &Request{
		ID: db.NewID(), State: RequestPending, Requester: by.ID, Profile: p.profile, Issuer: p.issuer.Name, Subject: p.describe(),
		Order: order, TwoPerson: p.twoPerson, SubmittedAt: now.UTC().Truncate(time.Microsecond),
	}
	body, err := json.Marshal(requestBody{order, by})
	if err != nil {
		return nil, nil, fmt.Errorf("encode the request: %w", err)
	}
	s, err := c.settings.Get(ctx)
	if err != nil {
		return nil, nil, err
	}
	asked, err := newCall(by, order.IdempotencyKey, "request.submit", order)
	if err != nil {
		return nil, nil, err
	}
	var stored *Request
	err = c.db.Tx(ctx, func(tx *db.Tx) error {
		stored = nil
		earlier, err := asked.earlier(ctx, tx)
		if err != nil {
			return err
		}
		if earlier != "" {
			if stored, _, err = loadRequest(ctx, tx, earlier); err != nil {
				return err
			}
			_, err = tx.Exec(ctx, `UPDATE request SET state = state WHERE id = $1`, earlier) // as touch does
			return err
		}
		if err := checkPending(ctx, tx, by, s.Limits.PendingRequests); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO request (id, state, requester, profile, issuer, subject, body, two_person, assigned_to,
			decided_by, decided_at, reason, certificate, submitted_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, '', '', 0, '', 0, $9)`,
			r.ID, string(r.State), r.Requester, r.Profile, r.Issuer, r.Subject, body, bit(r.TwoPerson), db.Micros(r.SubmittedAt))
		if err != nil {
			return fmt.Errorf("insert request: %w", err)
		}
		if err := asked.remember(ctx, tx, r.ID, now); err != nil {
			return err
		}
		stored = r
		return c.auditRequest(ctx, tx, by, "request.submit", r, now)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("submit the request: %w", err)
	}
	return stored, nil, nil
}

func checkPending(ctx context.Context, tx *db.Tx, by access.Principal, limit int64) error {
	var pending int64
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM request WHERE requester = $1 AND state = 'pending'`, by.ID).Scan(&pending)
	if err != nil {
		return fmt.Errorf("count pending requests: %w", err)
	}
	if pending >= limit {
		return fault.New(fault.RateLimited, "%s has %d requests pending; at most %d may wait", by.Name, pending, limit).
			WithHint("have them decided or cancel some; limits.pending_requests is the bound")
	}
	return nil
}

// PendingRequests counts the requests that wait for an officer.
func (c *CA) PendingRequests(ctx context.Context) (pending int64, err error) {
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM request WHERE state = 'pending'`).Scan(&pending)
	})
	if err != nil {
		return 0, fmt.Errorf("count pending requests: %w", err)
	}
	return pending, nil
}

// Assign gives a pending request to an officer: only that officer may then decide it. An empty officer takes it back.
func (c *CA) Assign(ctx context.Context, by access.Principal, id, officer string, call once.Call) (*Request, error) {
	return c.decide(ctx, by, id, "request.assign", RequestPending, call, func(ctx context.Context, tx *db.Tx, r *Request, _ time.Time) error {
		if err := mayDecide(ctx, tx, officer); err != nil {
			return err
		}
		r.AssignedTo = officer
		_, err := tx.Exec(ctx, `UPDATE request SET assigned_to = $1 WHERE id = $2`, officer, id)
		return err
	})
}

// mayDecide refuses an assignee who could not decide: the request would wait for ever. Nobody is an assignee too.
func mayDecide(ctx context.Context, tx *db.Tx, officer string) error {
	if officer == "" {
		return nil
	}
	p, err := access.Lookup(ctx, tx, officer)
	switch {
	case err != nil:
		return err
	case p.Disabled:
		return fault.New(fault.Invalid, "%s is disabled, and could not decide the request", p.Actor()).At("assignee")
	case p.May(access.DecideRequest) != nil:
		return fault.New(fault.Invalid, "%s may not decide requests; an officer or an administrator may", p.Actor()).At("assignee")
	}
	return nil
}

// Reject ends a pending request without a certificate.
func (c *CA) Reject(ctx context.Context, by access.Principal, id, reason string, call once.Call) (*Request, error) {
	return c.decide(ctx, by, id, "request.reject", RequestRejected, call, func(ctx context.Context, tx *db.Tx, r *Request, now time.Time) error {
		if err := r.decidable(ctx, tx, by); err != nil {
			return err
		}
		return r.end(ctx, tx, RequestRejected, by, reason, now)
	})
}

// Cancel ends a caller's own pending request.
func (c *CA) Cancel(ctx context.Context, by access.Principal, id string, call once.Call) (*Request, error) {
	return c.act(ctx, by, id, "request.cancel", RequestCancelled, call, func(ctx context.Context, tx *db.Tx, r *Request, now time.Time) error {
		if r.Requester != by.ID {
			return fault.New(fault.Denied, "request %s is of another requester; an officer rejects it instead", id).
				WithHint("chancery request reject %s", id)
		}
		return r.end(ctx, tx, RequestCancelled, by, "", now)
	})
}

// decide is act for officers.
func (c *CA) decide(ctx context.Context, by access.Principal, id, action string, to RequestState, call once.Call, act requestAct) (*Request, error) {
	if err := by.May(access.DecideRequest); err != nil {
		return nil, err
	}
	return c.act(ctx, by, id, action, to, call, act)
}

type requestAct func(ctx context.Context, tx *db.Tx, r *Request, now time.Time) error

// act runs one act upon one pending request, in one transaction with its audit event and the answer to a repeated call. An
// end that is repeated by the same caller changes nothing.
func (c *CA) act(ctx context.Context, by access.Principal, id, action string, to RequestState, call once.Call, act requestAct) (*Request, error) {
	now := time.Now()
	if err := c.db.CheckClock(now); err != nil {
		return nil, err
	}
	var done *Request
	err := c.db.Tx(ctx, func(tx *db.Tx) (err error) {
		done, err = once.Act(ctx, tx, call, now, func() (*Request, error) {
			r, _, err := loadRequest(ctx, tx, id)
			if err != nil {
				return nil, err
			}
			if !readsAll(by) && r.Requester != by.ID {
				return nil, noRequest(id)
			}
			if r.State == to && r.State != RequestPending && r.DecidedBy == by.ID {
				return r, nil
			}
			if err := r.pending(); err != nil {
				return nil, err
			}
			if err := act(ctx, tx, r, now); err != nil {
				return nil, err
			}
			return r, c.auditRequest(ctx, tx, by, action, r, now)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", action, id, err)
	}
	return done, nil
}

func (r *Request) pending() error {
	if r.State != RequestPending {
		return fault.New(fault.Conflict, "request %s is %s already", r.ID, r.State)
	}
	return nil
}

// decidable says whether an officer may decide the request: not when it is assigned to another.
func (r *Request) decidable(ctx context.Context, tx *db.Tx, by access.Principal) error {
	if r.AssignedTo == "" || r.AssignedTo == by.ID {
		return nil
	}
	name, err := access.NameOf(ctx, tx, r.AssignedTo)
	if err != nil {
		return err
	}
	return fault.New(fault.Conflict, "request %s is assigned to %s", r.ID, name).WithHint("chancery request assign %s", r.ID)
}

func (r *Request) end(ctx context.Context, tx *db.Tx, state RequestState, by access.Principal, reason string, now time.Time) error {
	r.State, r.DecidedBy, r.DecidedAt, r.Reason = state, by.ID, now.UTC().Truncate(time.Microsecond), reason
	n, err := tx.Exec(ctx, `UPDATE request SET state = $1, decided_by = $2, decided_at = $3, reason = $4, certificate = $5
		WHERE id = $6 AND state = 'pending'`, string(r.State), r.DecidedBy, db.Micros(r.DecidedAt), r.Reason, r.Certificate, r.ID)
	if err != nil {
		return fmt.Errorf("end request %s: %w", r.ID, err)
	}
	if n != 1 {
		return fault.New(fault.Conflict, "request %s was decided meanwhile", r.ID)
	}
	return nil
}

// Approve issues the certificate of a pending request. Where the profile asks for two people, nobody approves what they
// requested themselves. An approval repeated by the same officer gets the same answer.
func (c *CA) Approve(ctx context.Context, by access.Principal, id string) (*Request, *Certificate, error) {
	now := time.Now()
	if err := by.May(access.DecideRequest); err != nil {
		return nil, nil, err
	}
	if err := c.db.CheckClock(now); err != nil {
		return nil, nil, err
	}
	var seen *Request
	var requester access.Principal
	err := c.db.ReadSnapshot(ctx, func(tx *db.Tx) (err error) {
		seen, _, err = loadRequest(ctx, tx, id)
		if err != nil || seen.State == RequestIssued && seen.DecidedBy == by.ID {
			return err
		}
		if err := seen.approvable(ctx, tx, by); err != nil {
			return err
		}
		requester, err = seen.requester(ctx, tx)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("approve request %s: %w", id, err)
	}
	if seen.State == RequestIssued {
		return c.Retrieve(ctx, by, id)
	}
	// Judged again, by what the requester may have now, and signed before the transaction that checks the request's state.
	p, err := c.plan(ctx, requester, &seen.Order, now)
	if err != nil {
		return nil, nil, fmt.Errorf("judge request %s again: %w", id, err)
	}
	s, err := c.sign(ctx, requester, p)
	if err != nil {
		return nil, nil, fmt.Errorf("sign for request %s: %w", id, err)
	}
	defer c.settle(s)
	var done *Request
	var issued *Certificate
	err = c.commit(ctx, func(tx *db.Tx, again bool) error {
		done, issued = nil, nil
		r, _, err := loadRequest(ctx, tx, id)
		if err != nil {
			return err
		}
		if again && slices.Contains(s.runs, r.Certificate) {
			done = r
			issued, err = c.committed(ctx, tx, s, now)
			return err
		}
		if err := errors.Join(r.approvable(ctx, tx, by), r.stillFrom(ctx, tx, requester)); err != nil {
			return err
		}
		if err := c.admitInTx(ctx, tx, requester, p.profile, now); err != nil {
			return err
		}
		if issued, err = c.record(ctx, tx, by, s, now); err != nil {
			return err
		}
		r.Certificate = issued.ID
		if err := r.end(ctx, tx, RequestIssued, by, "", now); err != nil {
			return err
		}
		done = r
		return c.auditRequest(ctx, tx, by, "request.approve", r, now)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("approve request %s: %w", id, err)
	}
	return done, issued, nil
}

func (r *Request) approvable(ctx context.Context, tx *db.Tx, by access.Principal) error {
	if err := r.pending(); err != nil {
		return err
	}
	if err := r.decidable(ctx, tx, by); err != nil {
		return err
	}
	if r.TwoPerson && r.Requester == by.ID {
		return fault.New(fault.Denied, "profile %q asks for two people, and %s requested this; another officer approves it", r.Profile, by.Name)
	}
	return nil
}

// Retrieve returns a request, and its certificate once it is issued. Others than the requester need a role that reads all.
func (c *CA) Retrieve(ctx context.Context, by access.Principal, id string) (*Request, *Certificate, error) {
	now := time.Now()
	var r *Request
	var issued *Certificate
	err := c.db.Read(ctx, func(tx *db.Tx) (err error) {
		issued = nil
		if r, _, err = loadRequest(ctx, tx, id); err != nil {
			return err
		}
		if !readsAll(by) && r.Requester != by.ID {
			return noRequest(id)
		}
		if r.Certificate == 0 {
			return nil
		}
		found, err := recordByID(ctx, tx, r.Certificate)
		if err != nil {
			return err
		}
		issued, err = c.complete(ctx, tx, found, now)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("retrieve request %s: %w", id, err)
	}
	return r, issued, nil
}

// RequestFilter selects requests; what is empty selects all.
type RequestFilter struct {
	State      RequestState
	Requester  string
	AssignedTo string
}

// Requests lists requests page by page, the newest first, as Search does.
func (c *CA) Requests(ctx context.Context, by access.Principal, f RequestFilter, after string, limit int) (found []*Request, next string, err error) {
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	if !readsAll(by) {
		if f.Requester != "" && f.Requester != by.ID {
			return nil, "", fault.New(fault.Denied, "%s may list its own requests, and not those of %s", by.Name, f.Requester)
		}
		f.Requester = by.ID
	}
	l := &listing{}
	for _, condition := range []struct{ column, value string }{
		{"state", string(f.State)}, {"requester", f.Requester}, {"assigned_to", f.AssignedTo},
	} {
		if condition.value != "" {
			l.add(condition.column+" = ?", condition.value)
		}
	}
	if after != "" {
		l.add("id < ?", after)
	}
	query := `SELECT ` + requestColumns + ` FROM request`
	if len(l.where) > 0 {
		query += ` WHERE ` + strings.Join(l.where, " AND ")
	}
	query += ` ORDER BY id DESC LIMIT ` + l.arg(int64(limit))
	err = c.db.Read(ctx, func(tx *db.Tx) error {
		found = nil
		rows, err := tx.Query(ctx, query, l.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			r, _, err := scanRequest(rows.Scan)
			if err != nil {
				return err
			}
			found = append(found, r)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list requests: %w", err)
	}
	if len(found) == limit {
		next = found[limit-1].ID
	}
	return found, next, nil
}

func noRequest(id string) error { return fault.New(fault.NotFound, "there is no request %q", id) }

const requestColumns = `id, state, requester, profile, issuer, subject, body, two_person, assigned_to, decided_by, decided_at,
	reason, certificate, submitted_at`

func scanRequest(scan func(...any) error) (*Request, requestBody, error) {
	var (
		r                  Request
		body               requestBody
		text               []byte
		decided, submitted int64
		twoPerson          int64
	)
	err := scan(&r.ID, &r.State, &r.Requester, &r.Profile, &r.Issuer, &r.Subject, &text, &twoPerson, &r.AssignedTo, &r.DecidedBy, &decided,
		&r.Reason, &r.Certificate, &submitted)
	if err != nil {
		return nil, body, err
	}
	if err := json.Unmarshal(text, &body); err != nil {
		return nil, body, fmt.Errorf("read the body of request %s: %w", r.ID, err)
	}
	r.Order, r.TwoPerson, r.SubmittedAt = body.Order, twoPerson == 1, db.FromMicros(submitted)
	if decided != 0 {
		r.DecidedAt = db.FromMicros(decided)
	}
	return &r, body, nil
}

// loadRequest reads a request.
func loadRequest(ctx context.Context, tx *db.Tx, id string) (*Request, requestBody, error) {
	r, body, err := scanRequest(tx.QueryRow(ctx, `SELECT `+requestColumns+` FROM request WHERE id = $1`, id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, body, noRequest(id)
	}
	if err != nil {
		return nil, body, fmt.Errorf("read request %s: %w", id, err)
	}
	return r, body, nil
}

func (c *CA) auditRequest(ctx context.Context, tx *db.Tx, by access.Principal, action string, r *Request, now time.Time) error {
	detail := map[string]any{"state": r.State, "requester": r.Requester, "profile": r.Profile, "subject": r.Subject}
	if r.AssignedTo != "" {
		detail["assignedTo"] = r.AssignedTo
	}
	if r.Reason != "" {
		detail["reason"] = r.Reason
	}
	return c.audit.Append(ctx, tx, audit.Event{Time: now, Actor: by.Actor(), Action: action, Object: r.ID, Detail: detail})
}
